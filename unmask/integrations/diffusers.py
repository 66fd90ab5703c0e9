"""A scheduler for the `LLaDA2Pipeline` of diffusers that unmasks by any rule of this package (extra `diffusers`).

    from diffusers import LLaDA2Pipeline
    from unmask.integrations.diffusers import UnmaskScheduler

    pipe = LLaDA2Pipeline(model=model, scheduler=UnmaskScheduler("entropy-bound:gamma=0.1"), tokenizer=tokenizer)
    pipe("What is 2 + 3?", temperature=0.7, generator=torch.Generator().manual_seed(0))

The pipeline evaluates the model and walks through the blocks; the scheduler decides what is unmasked, and draws it.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

try:
    from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_block_refinement import BlockRefinementSchedulerOutput
except ImportError as error:
    raise ImportError(
        "unmask.integrations.diffusers needs diffusers >= 0.42.1: pip install 'unmask[diffusers]'"
    ) from error

from ..draws.streams import derive
from ..models.pretrained.nameless import nameless_ids
from ..rules.named import named_rule
from ..sampling.draw import Settings
from ..sampling.state import State
from .stepwise import advance_block, begin, check_rule

_REPLACED = ("threshold", "editing_threshold", "minimal_topk")
"""Settings of the pipeline that the rule takes the place of."""

_DEFAULTS = {name: inspect.signature(LLaDA2Pipeline.__call__).parameters[name].default for name in _REPLACED}
_CALL = inspect.unwrap(LLaDA2Pipeline.__call__).__code__


class UnmaskScheduler(BlockRefinementScheduler):
    """Unmasks the positions of each block by a rule of this package, as many evaluations as the rule takes.

    - *Randomness.* A generation takes one number from `generator`, and each sequence of the batch its own stream from
      that. With a list of generators, one per sequence, each takes one number from its own: a sequence then gets the
      same tokens in whatever batch it is, given the same logits. (The pipeline pads prompts on the left or right and
      cuts the padded width into blocks; prompts of one length are unaffected.)
    - *Temperature* 0 and `sampling_method="greedy"` take the argmax; planning always uses the model's own distribution.
    - `num_inference_steps` neither asks for evaluations nor limits them: the rule decides, and no mask is left but
      after an end-of-text token. For a fixed number take the rule `steps:steps=...`.
    - *Positions.* A prompt's are never written to, whatever they hold; what the last block has beyond the length that
      was asked for is not part of the sequence: it is not evaluated for, and rules do not count it.
    - *Tokens.* Ids that are not tokens of the pipeline's tokenizer, as where a vocabulary is padded, are never drawn.
    - Tokens are never edited once they are unmasked. `threshold`, `editing_threshold` and `minimal_topk` belong to the
      scheduler this one replaces; any value but the pipeline's default (or `None`) is refused.

    Args:
        rule: Name and settings, as on the command line: `entropy-bound:gamma=0.1`.
        block_length: Positions per block, where the pipeline is told none.
        num_inference_steps: Kept for the pipeline, which reads it.

    Attributes:
        nfe: Evaluations each sequence of the last generation took part in: those before which it had a mask and no
            end-of-text token behind which nothing is wanted.

    Raises:
        ValueError: If there is no such rule, or it needs evaluations of its own.
    """

    @register_to_config
    def __init__(self, rule: str, block_length: int = 32, num_inference_steps: int = 32) -> None:
        self.rule, self._name = check_rule(named_rule(rule).rule), rule
        self.nfe: Int[Tensor, " batch"] = torch.zeros(0, dtype=torch.int64)
        self.set_timesteps(num_inference_steps, block_length=block_length)

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: str | torch.device | None = None,
        block_length: int | None = None,
        *,
        gen_length: int | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Begins a generation: the next step draws the streams of its sequences.

        Args:
            num_inference_steps: Kept for the pipeline.
            device: Kept for the pipeline.
            block_length: Positions per block.
            gen_length: Positions that are wanted after the prompt; those of the last block beyond them are not.
                Default: what `LLaDA2Pipeline` was asked for; elsewhere, whole blocks.
            tokenizer: Only its tokens may be drawn. Default: the pipeline's, if `LLaDA2Pipeline` has one; else any may.
        """
        self._end: int | None = None
        # The pipeline tells a scheduler neither how much of the last block it cuts off nor its tokenizer; both are
        # where it calls from.
        caller = sys._getframe(1)
        if caller.f_code is _CALL:
            gen_length = caller.f_locals["gen_length"] if gen_length is None else gen_length
            tokenizer = caller.f_locals["self"].tokenizer if tokenizer is None else tokenizer
            self._end = caller.f_locals["eos_token_id"]
        self._wanted, self._tokenizer = gen_length, tokenizer
        self._known: dict[int, list[int]] = {}
        self._passed = self._here = 0
        super().set_timesteps(num_inference_steps, device=device, block_length=block_length)
        self._streams: list[int] | None = None
        self._finished: Bool[Tensor, " batch"] | None = None
        self._state: State | None = None
        self._block = -1

    def step(
        self,
        model_output: Float[Tensor, "batch block vocab"],
        timestep: int | Tensor,
        sample: Int[Tensor, "batch block"],
        *,
        mask_token_id: int | None = None,
        temperature: float = 0.0,
        top_p: float | None = None,
        top_k: int | None = None,
        sampling_method: str = "auto",
        threshold: float | None = None,
        editing_threshold: float | None = None,
        minimal_topk: int | None = None,
        prompt_mask: Bool[Tensor, " block"] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> BlockRefinementSchedulerOutput | tuple[Any, ...]:
        """Unmasks what the rule chooses of one block.

        Args:
            model_output: The logits of the block.
            timestep: Number of the evaluation within the block; 0 begins a new one.
            sample: The tokens of the block.
            mask_token_id: Id of the mask token.
            temperature: The temperature of the draw.
            top_p: Draw among the fewest tokens that hold this mass.
            top_k: Draw among the `k` most probable tokens; `None` or 0 is all.
            sampling_method: `"greedy"`, or `"auto"` or `"multinomial"`, which both draw unless the temperature is 0.
            threshold: Replaced by the rule; see the class.
            editing_threshold: Likewise.
            minimal_topk: Likewise.
            prompt_mask: True at the positions of the prompt, which are never written to; default: there are none.
            generator: Where the streams come from, at the first step of a generation; one, or one per sequence.
                Without one, PyTorch's global generator.
            return_dict: Whether to return an object or the tuple of its fields.

        Returns:
            The new tokens, and which were unmasked. `sampled_probs` are their probabilities at temperature 1, and 0
            elsewhere; nothing is edited.

        Raises:
            ValueError: If a setting is out of range or has no meaning here, or there is no mask token.
            LogitsError: If the logits of a candidate are no distribution.
        """
        if mask_token_id is None:
            raise ValueError("this scheduler is for masked models: it needs mask_token_id, and renoises nothing")
        given = {"threshold": threshold, "editing_threshold": editing_threshold, "minimal_topk": minimal_topk}
        for name, value in given.items():
            if value is not None and value != _DEFAULTS[name] and not (name == "editing_threshold" and value <= 0):
                raise ValueError(
                    f"{name}={value} has no effect: what is unmasked is up to the rule {self._name}, and nothing"
                    " is edited; leave it out"
                )
        if sampling_method not in ("auto", "greedy", "multinomial"):
            raise ValueError(f"sampling_method must be auto, greedy or multinomial, got {sampling_method!r}")
        prompt = torch.zeros_like(sample[0], dtype=torch.bool) if prompt_mask is None else prompt_mask.to(sample.device)
        if prompt.dtype != torch.bool or prompt.shape != sample.shape[1:]:
            raise ValueError(
                f"prompt_mask is one truth value per position of the block ({sample.shape[1]}), got {prompt.dtype}"
                f" {list(prompt.shape)}"
            )
        vocab = model_output.shape[-1]
        if self._state is None or int(timestep) == 0:
            if self._streams is None:
                self._streams = _streams(generator, len(sample))
                self._finished = torch.zeros(len(sample), dtype=torch.bool, device=sample.device)
                self.nfe = torch.zeros(len(sample), dtype=torch.int64, device=sample.device)
            self._block += 1
            streams = [derive(stream, self._block) for stream in self._streams]
            self._passed, self._here = self._passed + self._here, int((~prompt).sum())
            self._state = begin(
                self.rule,
                sample,
                vocab,
                mask_token_id,
                streams,
                fixed=prompt.expand_as(sample),
                padding=self._beyond(prompt).expand_as(sample),
            )
        self._state, info = advance_block(
            self._state,
            self.rule,
            sample,
            model_output,
            temperature=0.0 if sampling_method == "greedy" else temperature,
            settings=Settings.of(vocab, mask_token_id, top_k or None, top_p, self._nameless(vocab)),
            fixed=prompt | (torch.zeros_like(prompt[:1]) if self._finished is None else self._finished.unsqueeze(-1)),
        )
        self.nfe = self.nfe.index_add(0, info.sequence, info.evaluations)
        transfer = torch.zeros_like(sample, dtype=torch.bool).index_copy(0, info.sequence, info.chosen)
        probability = torch.zeros(sample.shape, device=sample.device).masked_scatter(
            transfer, info.log_prob.exp().float()
        )
        output = BlockRefinementSchedulerOutput(
            prev_sample=self._state.x,  # pyright: ignore[reportArgumentType]
            transfer_index=transfer,  # pyright: ignore[reportArgumentType]
            editing_transfer_index=torch.zeros_like(transfer),  # pyright: ignore[reportArgumentType]
            sampled_tokens=self._state.x,  # pyright: ignore[reportArgumentType]
            sampled_probs=probability,
            pred_logits=model_output,
        )
        return output if return_dict else output.to_tuple()

    def check_block_should_continue(
        self,
        step_idx: int,
        masks_remaining: bool,
        editing_enabled: bool,
        editing_transfer_index: Bool[Tensor, "batch block"],
        post_steps: int,
        max_post_steps: int,
        finished: Bool[Tensor, " batch"],
    ) -> bool:
        """Goes on while a sequence that is not finished has a mask in the block, however many steps that takes."""
        assert self._state is not None
        self._finished = finished.clone()
        return bool((self._state.pending.any(-1) & ~finished).any())

    def _beyond(self, prompt: Bool[Tensor, " block"]) -> Bool[Tensor, " block"]:
        """Which positions of a block are neither the prompt's nor wanted."""
        place = self._passed + (~prompt).cumsum(-1) - 1
        return ~prompt & (place >= (self._passed + len(prompt) if self._wanted is None else self._wanted))

    def _nameless(self, vocab_size: int) -> list[int]:
        """The ids that are neither tokens of the tokenizer nor the end of a text, if there is a tokenizer."""
        if self._tokenizer is None:
            return []
        if vocab_size not in self._known:
            found = nameless_ids(self._tokenizer, vocab_size)
            self._known[vocab_size] = [token for token in found if token != self._end]
        return self._known[vocab_size]


def _streams(generator: torch.Generator | list[torch.Generator] | None, batch: int) -> list[int]:
    """One stream per sequence, from one generator or from one per sequence."""
    if not isinstance(generator, list):
        base = _number(generator)
        return [derive(base, row) for row in range(batch)]
    if len(generator) != batch:
        raise ValueError(f"{len(generator)} generators for a batch of {batch} sequences")
    return [derive(_number(own)) for own in generator]


def _number(generator: torch.Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
