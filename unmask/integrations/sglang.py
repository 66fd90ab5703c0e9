"""A plugin for SGLang that unmasks by any rule of this package; SGLang finds it by its entry point.

    sglang serve --model-path ... --dllm-algorithm Unmask --dllm-algorithm-config unmask.yaml

with, in `unmask.yaml`, `rule: entropy-bound:gamma=0.1`, and perhaps `seed: 0`; and `tokenizer: FOLDER` where the
model's vocabulary is padded beyond its tokenizer's, so that only tokens are drawn. The server evaluates the model,
block by block and for many requests together; the algorithm decides what is unmasked, and draws it.

Written for SGLang 0.5.23 (`sglang.srt.dllm.algorithm.base.DllmAlgorithm`) and tested against that interface, not
inside a server.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.streams import derive
from ..models.pretrained.nameless import nameless_ids
from ..rules.named import named_rule
from ..sampling.draw import Settings
from ..sampling.state import State
from .stepwise import advance_block, begin, check_rule

NAME = "Unmask"
"""What `--dllm-algorithm` is told."""

_SETTINGS = ("rule", "seed", "block_size", "tokenizer")
_UNSUPPORTED = {
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "min_p": 0.0,
    "logit_bias": None,
    "sampling_seed": None,
    "json_schema": None,
    "regex": None,
    "ebnf": None,
    "structural_tag": None,
}
"""Sampling parameters this algorithm cannot heed, and the value that asks for nothing."""


class SamplingInfo(Protocol):
    """How the requests of a batch want their tokens drawn. A greedy request comes with `top_k` 1."""

    temperatures: Float[Tensor, "batch 1"]
    top_ps: Float[Tensor, " batch"]
    top_ks: Int[Tensor, " batch"]


class ForwardBatch(Protocol):
    """What the algorithm reads of SGLang's batch: one block of each request, one after the other.

    `dllm_prompt_mask` is there if a prompt holds the mask token as text: what is True is not written to.
    """

    batch_size: int
    input_ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    rids: list[str]
    sampling_info: SamplingInfo
    dllm_prompt_mask: Bool[Tensor, "batch block"] | None


class RuleSteps:
    """The algorithm, to be mixed with SGLang's base class, which owns the loop (see `algorithm`).

    - *Randomness.* A block of a request draws from a stream of the seed of the configuration, the request's id and the
      place of the block: what else the batch holds does not matter, all ranks draw alike, and a request that is sent
      again with the same id is answered alike, given the same logits.
    - *Temperature*, `top_p` and `top_k` are the request's own; planning always uses the model's own distribution.
    - A block is reported done one evaluation after its last mask went, when its cache holds its final tokens.

    Args:
        config: SGLang's: `algorithm_config` has the rule, as on the command line, and perhaps a seed and a tokenizer.

    Raises:
        ValueError: If there is no such rule or setting, or the rule needs more than one block's evaluations.
        AdapterError: If the tokenizer cannot be loaded.
    """

    block_size: int
    mask_id: int

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # pyright: ignore[reportCallIssue]
        self.rule, self.seed = _configured(config.algorithm_config)
        self.tokenizer = _tokenizer(config.algorithm_config)

    @classmethod
    def validate_request(cls, req: Any) -> str | None:
        """Returns an error for a request that asks for what is not supported here, `None` for any other."""
        asked = [
            name for name, idle in _UNSUPPORTED.items() if getattr(req.sampling_params, name, idle) not in (idle, None)
        ]
        if getattr(req, "return_logprob", False):
            asked.append("return_logprob")
        if getattr(req, "custom_logit_processor", None):
            asked.append("custom_logit_processor")
        return f"the algorithm {NAME} does not support {', '.join(asked)}" if asked else None

    def init_step_state(self, forward_batch: ForwardBatch) -> list[Any]:
        """Returns the stream of each request's block; the first step puts the sampler's state in its place."""
        first = forward_batch.positions.view(forward_batch.batch_size, -1)[:, 0].tolist()
        return [derive(self.seed, rid, place) for rid, place in zip(forward_batch.rids, first, strict=True)]

    def step(self, forward_batch: ForwardBatch, full_logits: Any, states: list[Any]) -> list[bool]:
        """Unmasks what the rule chooses, in `forward_batch.input_ids` itself.

        Args:
            forward_batch: The blocks.
            full_logits: The logits of their tokens, `[tokens, vocab]`, or the logits processor's output with them.
            states: One per block, updated.

        Returns:
            True for the blocks that had no mask before.

        Raises:
            LogitsError: If the logits of a masked position are no distribution.
        """
        logits = getattr(full_logits, "full_logits", full_logits)
        x = forward_batch.input_ids.view(forward_batch.batch_size, self.block_size)
        logits = logits.view(*x.shape, logits.shape[-1])
        prompt = getattr(forward_batch, "dllm_prompt_mask", None)
        fixed = torch.zeros_like(x, dtype=torch.bool) if prompt is None else prompt
        masked = ((x == self.mask_id) & ~fixed).any(-1).tolist()
        info = forward_batch.sampling_info
        top_k, top_p = info.top_ks.tolist(), info.top_ps.tolist()
        rows = [row for row in range(len(x)) if masked[row]]
        tokens, vocab = x.clone(), logits.shape[-1]
        forbidden = [] if self.tokenizer is None else nameless_ids(self.tokenizer, vocab)
        fresh = [row for row in rows if not isinstance(states[row], State)]
        if fresh:
            streams = [states[row] for row in fresh]
            begun = begin(self.rule, x[fresh].long(), vocab, self.mask_id, streams, fixed=fixed[fresh])
            for row, state in zip(fresh, begun.split(), strict=True):
                states[row] = state
        if rows:
            greedy = torch.tensor([top_k[row] == 1 for row in rows], device=x.device)
            kept = [top_k[row] if 0 < top_k[row] < vocab else None for row in rows]
            after, _ = advance_block(
                State.join([states[row] for row in rows]),
                self.rule,
                x[rows].long(),
                logits[rows],
                temperature=info.temperatures.view(-1)[rows].double().masked_fill(greedy, 0.0),
                settings=[
                    Settings.of(vocab, self.mask_id, k, top_p[row], forbidden)
                    for k, row in zip(kept, rows, strict=True)
                ],
                fixed=fixed[rows],
            )
            tokens[rows] = after.x.to(tokens.dtype)
            for row, state in zip(rows, after.split(), strict=True):
                states[row] = state
        forward_batch.input_ids.copy_(tokens.view(-1))  # in place: a captured graph reads this very tensor
        return [not has for has in masked]


def algorithm(base: type) -> type:
    """Returns the algorithm as a subclass of SGLang's `DllmAlgorithm`."""
    return type(NAME, (RuleSteps, base), {"__doc__": RuleSteps.__doc__, "__module__": __name__})


def register() -> None:
    """The entry point: makes the algorithm known to SGLang under the name `Unmask`."""
    from sglang.srt.dllm import algorithm as registry  # pyright: ignore[reportMissingImports]
    from sglang.srt.dllm.algorithm.base import DllmAlgorithm  # pyright: ignore[reportMissingImports]

    registry.algo_name_to_cls[NAME] = algorithm(DllmAlgorithm)


def _configured(settings: Mapping[str, Any] | None) -> tuple[Any, int]:
    """The rule and the seed that a configuration asks for."""
    settings = settings or {}
    if not isinstance(settings, Mapping) or "rule" not in settings:
        raise ValueError(f"the configuration must name a rule, as in 'rule: entropy-bound:gamma=0.1'; got {settings!r}")
    if unknown := sorted(set(settings) - set(_SETTINGS)):
        raise ValueError(f"unknown setting {', '.join(unknown)}; there are {', '.join(_SETTINGS)}")
    seed = settings.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    return check_rule(named_rule(str(settings["rule"])).rule), seed


def _tokenizer(settings: Mapping[str, Any]) -> Any:
    """The tokenizer that a configuration names, if it names one."""
    folder = settings.get("tokenizer")
    if folder is None:
        return None
    from ..models.pretrained.hf import tokenizer_of

    return tokenizer_of(Path(str(folder)))
