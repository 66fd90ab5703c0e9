"""A scheduler for diffusers' `LLaDA2Pipeline` that unmasks with any rule of this package (extra `diffusers`).

    from diffusers import LLaDA2Pipeline
    from unmask.integrations.diffusers import UnmaskScheduler

    pipe = LLaDA2Pipeline(model=model, scheduler=UnmaskScheduler("entropy-bound:gamma=0.1"), tokenizer=tokenizer)
    pipe("What is 2 + 3?", temperature=0.7, generator=torch.Generator().manual_seed(0))

The pipeline evaluates the model block by block; the scheduler decides which positions are unmasked, and draws tokens.
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
"""Settings of the pipeline that the rule replaces."""

_DEFAULTS = {name: inspect.signature(LLaDA2Pipeline.__call__).parameters[name].default for name in _REPLACED}
_CALL = inspect.unwrap(LLaDA2Pipeline.__call__).__code__


class UnmaskScheduler(BlockRefinementScheduler):
    """Unmasks the positions of each block by a rule of this package, with as many evaluations as the rule needs.

    - *Randomness.* A generation draws one number from `generator`, from which each sequence of the batch gets its own
      stream. With a list of generators, one per sequence, each stream comes from the sequence's own generator: given
      the same logits, a sequence then gets the same tokens in any batch. (The pipeline pads prompts on the left or
      right and divides the padded length into blocks; this does not matter for prompts of equal length.)
    - *Temperature* 0 and `sampling_method="greedy"` take the argmax; planning always uses the model's own distribution.
    - `num_inference_steps` does not determine the number of evaluations: the rule does, and no mask is left except
      after an end-of-text token. For a fixed number of evaluations use the rule `steps:steps=...`.
    - *Positions.* Those of the prompt are never changed, whatever they hold. Positions of the last block beyond the
      requested length are not part of the sequence: no evaluation is made for them, and rules ignore them.
    - *Tokens.* Ids for which the pipeline's tokenizer has no token, as in a padded vocabulary, are never drawn.
    - Tokens are never edited after they were unmasked. `threshold`, `editing_threshold` and `minimal_topk` belong to
      the scheduler that this one replaces; any value but the pipeline's default (or `None`) is refused.

    Args:
        rule: The rule's name and settings, as on the command line: `entropy-bound:gamma=0.1`.
        block_length: Positions per block, if the pipeline is not given it.
        num_inference_steps: Ignored, but the pipeline reads it.

    Attributes:
        nfe: Number of evaluations of each sequence in the last generation, which counts only those before which it had
            a mask and was not finished by an end-of-text token.

    Raises:
        ValueError: If there is no such rule, or it needs more than one evaluation per step.
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
        """Begins a generation; the next step draws the streams of its sequences.

        Args:
            num_inference_steps: Stored for the pipeline.
            device: Stored for the pipeline.
            block_length: Positions per block.
            gen_length: Requested number of positions after the prompt; positions of the last block beyond them are not
                part of the sequence. Default: that of the call of `LLaDA2Pipeline`; in other pipelines, whole blocks.
            tokenizer: The tokenizer; only its tokens may be drawn. Default: that of `LLaDA2Pipeline`; without a
                tokenizer, all tokens may be drawn.
        """
        self._end: int | None = None
        # The pipeline does not pass its tokenizer or the requested length to a scheduler, so they are read from the
        # local variables of its call.
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
        """Unmasks the positions of a block that the rule chooses.

        Args:
            model_output: The logits of the block.
            timestep: Index of the evaluation within the block; 0 begins a new block.
            sample: The tokens of the block.
            mask_token_id: Id of the mask token.
            temperature: The temperature of the draw.
            top_p: Draw from the smallest set of tokens with at least this probability in total.
            top_k: Draw from the `k` most probable tokens; `None` or 0: from all tokens.
            sampling_method: `"greedy"`, or `"auto"` or `"multinomial"`, which both draw unless the temperature is 0.
            threshold: Replaced by the rule, see the class.
            editing_threshold: Replaced by the rule, see the class.
            minimal_topk: Replaced by the rule, see the class.
            prompt_mask: True at the positions of the prompt, which are never changed; default: there is no prompt.
            generator: The generator of the streams, used in the first step of a generation: one, or one per sequence.
                Default: PyTorch's global generator.
            return_dict: Whether to return an object or the tuple of its fields.

        Returns:
            The new tokens, and which positions were unmasked. `sampled_probs` are the probabilities of the new tokens
            at temperature 1, and 0 at other positions; no position is edited.

        Raises:
            ValueError: If a setting is out of range or not supported, or there is no mask token.
            LogitsError: If the logits of a candidate are not a distribution.
        """
        if mask_token_id is None:
            raise ValueError("this scheduler is for masked models: it needs mask_token_id")
        given = {"threshold": threshold, "editing_threshold": editing_threshold, "minimal_topk": minimal_topk}
        for name, value in given.items():
            if value is not None and value != _DEFAULTS[name] and not (name == "editing_threshold" and value <= 0):
                raise ValueError(
                    f"{name}={value} has no effect: the rule {self._name} decides what is unmasked, and nothing is"
                    " edited; leave it out"
                )
        if sampling_method not in ("auto", "greedy", "multinomial"):
            raise ValueError(f"sampling_method must be auto, greedy or multinomial, got {sampling_method!r}")
        prompt = torch.zeros_like(sample[0], dtype=torch.bool) if prompt_mask is None else prompt_mask.to(sample.device)
        if prompt.dtype != torch.bool or prompt.shape != sample.shape[1:]:
            raise ValueError(
                f"prompt_mask must be one boolean per position of the block ({sample.shape[1]}), got {prompt.dtype}"
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
        """Returns whether a sequence that is not finished still has a mask in the block."""
        assert self._state is not None
        self._finished = finished.clone()
        return bool((self._state.pending.any(-1) & ~finished).any())

    def _beyond(self, prompt: Bool[Tensor, " block"]) -> Bool[Tensor, " block"]:
        """Returns which positions of a block lie beyond the requested length."""
        place = self._passed + (~prompt).cumsum(-1) - 1
        return ~prompt & (place >= (self._passed + len(prompt) if self._wanted is None else self._wanted))

    def _nameless(self, vocab_size: int) -> list[int]:
        """Returns the ids that are neither tokens of the tokenizer nor the end token; none without a tokenizer."""
        if self._tokenizer is None:
            return []
        if vocab_size not in self._known:
            found = nameless_ids(self._tokenizer, vocab_size)
            self._known[vocab_size] = [token for token in found if token != self._end]
        return self._known[vocab_size]


def _streams(generator: torch.Generator | list[torch.Generator] | None, batch: int) -> list[int]:
    """Returns a stream for each sequence, from one generator or from one per sequence."""
    if not isinstance(generator, list):
        base = _number(generator)
        return [derive(base, row) for row in range(batch)]
    if len(generator) != batch:
        raise ValueError(f"{len(generator)} generators for a batch of {batch} sequences")
    return [derive(_number(own)) for own in generator]


def _number(generator: torch.Generator | None) -> int:
    device = None if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))
