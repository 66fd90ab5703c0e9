"""A plugin for SGLang that unmasks with any rule of this package; SGLang finds it by its entry point.

    sglang serve --model-path ... --dllm-algorithm Unmask --dllm-algorithm-config unmask.yaml

The file `unmask.yaml` holds `rule: entropy-bound:gamma=0.1`, and optionally `seed: 0`. If the model's vocabulary is
padded beyond its tokenizer's, it should also hold `tokenizer: FOLDER`, so that only ids with a token are drawn. The
server evaluates the model, block by block and for many requests together; the algorithm decides which positions are
unmasked, and draws their tokens.

It was written for SGLang 0.5.23 (`sglang.srt.dllm.algorithm.base.DllmAlgorithm`), and tested with that interface but
not inside a server.
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
"""The name of the algorithm, for `--dllm-algorithm`."""

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
"""Sampling parameters that the algorithm does not support, and the value of each that has no effect."""


class SamplingInfo(Protocol):
    """The sampling parameters of the requests of a batch; a greedy request has `top_k` 1."""

    temperatures: Float[Tensor, "batch 1"]
    top_ps: Float[Tensor, " batch"]
    top_ks: Int[Tensor, " batch"]


class ForwardBatch(Protocol):
    """The part of SGLang's batch that the algorithm reads: one block of each request, one after the other.

    `dllm_prompt_mask` is present if a prompt contains the mask token: positions that are True must not change.
    """

    batch_size: int
    input_ids: Int[Tensor, " tokens"]
    positions: Int[Tensor, " tokens"]
    rids: list[str]
    sampling_info: SamplingInfo
    dllm_prompt_mask: Bool[Tensor, "batch block"] | None


class RuleSteps:
    """The algorithm, a mixin for SGLang's base class, which has the loop (see `algorithm`).

    - *Randomness.* The stream of a block is a function of the configuration's seed, the request's id and the position
      of the block. So the other requests of the batch do not matter, all ranks draw the same tokens, and, given the
      same logits, a request that is sent again with the same id gets the same answer.
    - *Temperature*, `top_p` and `top_k` are those of the request; planning always uses the model's own distribution.
    - A block is reported as done one evaluation after its last mask was filled, when its key/value cache is that of the
      final tokens.

    Args:
        config: SGLang's configuration. Its `algorithm_config` has the rule, as on the command line, and optionally a
            seed and a tokenizer.

    Raises:
        ValueError: If there is no such rule or setting, or the rule needs more than one evaluation per step.
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
        """Returns an error message for a request with unsupported parameters, and `None` for any other request."""
        asked = [
            name for name, idle in _UNSUPPORTED.items() if getattr(req.sampling_params, name, idle) not in (idle, None)
        ]
        if getattr(req, "return_logprob", False):
            asked.append("return_logprob")
        if getattr(req, "custom_logit_processor", None):
            asked.append("custom_logit_processor")
        return f"the algorithm {NAME} does not support {', '.join(asked)}" if asked else None

    def init_step_state(self, forward_batch: ForwardBatch) -> list[Any]:
        """Returns the stream of each request's block; the first step replaces it by the state of the sampler."""
        first = forward_batch.positions.view(forward_batch.batch_size, -1)[:, 0].tolist()
        return [derive(self.seed, rid, place) for rid, place in zip(forward_batch.rids, first, strict=True)]

    def step(self, forward_batch: ForwardBatch, full_logits: Any, states: list[Any]) -> list[bool]:
        """Unmasks the positions that the rule chooses, in place in `forward_batch.input_ids`.

        Args:
            forward_batch: The blocks.
            full_logits: The logits of their tokens, `[tokens, vocab]`, or the output of the logits processor, which has
                them as `full_logits`.
            states: The state of each block; the list is updated.

        Returns:
            True for the blocks that had no mask before this step.

        Raises:
            LogitsError: If the logits of a masked position are not a distribution.
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
        forward_batch.input_ids.copy_(tokens.view(-1))  # in place, because a captured CUDA graph reads this tensor
        return [not has for has in masked]


def algorithm(base: type) -> type:
    """Returns the algorithm as a subclass of `base`, which is SGLang's `DllmAlgorithm`."""
    return type(NAME, (RuleSteps, base), {"__doc__": RuleSteps.__doc__, "__module__": __name__})


def register() -> None:
    """Registers the algorithm with SGLang under the name `Unmask`; this is the entry point of the plugin."""
    from sglang.srt.dllm import algorithm as registry  # pyright: ignore[reportMissingImports]
    from sglang.srt.dllm.algorithm.base import DllmAlgorithm  # pyright: ignore[reportMissingImports]

    registry.algo_name_to_cls[NAME] = algorithm(DllmAlgorithm)


def _configured(settings: Mapping[str, Any] | None) -> tuple[Any, int]:
    """Returns the rule and the seed of a configuration."""
    settings = settings or {}
    if not isinstance(settings, Mapping) or "rule" not in settings:
        raise ValueError(f"the configuration must name a rule, as in 'rule: entropy-bound:gamma=0.1'; got {settings!r}")
    if unknown := sorted(set(settings) - set(_SETTINGS)):
        raise ValueError(f"unknown setting {', '.join(unknown)}; choose from {', '.join(_SETTINGS)}")
    seed = settings.get("seed", 0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ValueError(f"seed must be an integer, got {seed!r}")
    return check_rule(named_rule(str(settings["rule"])).rule), seed


def _tokenizer(settings: Mapping[str, Any]) -> Any:
    """Returns the tokenizer that a configuration names, or `None` if it names none."""
    folder = settings.get("tokenizer")
    if folder is None:
        return None
    from ..models.pretrained.hf import tokenizer_of

    return tokenizer_of(Path(str(folder)))
