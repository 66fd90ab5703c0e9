"""Answers many prompts on the one sampling loop: batches, ends of texts, and what each answer cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..denoiser import Denoiser
from ..models.pretrained.cache import Cached
from ..sampling.blocks import windows
from ..sampling.loop import Sampler
from ..sampling.result import StepInfo
from ..sampling.state import State
from .asked import Asked
from .completion import Completion
from .guidance import Guided
from .turns import changes, settle

if TYPE_CHECKING:
    from .model import LanguageModel


def answer_all(
    model: LanguageModel,
    asked: Sequence[Asked],
    batch_size: int,
    on_step: Callable[[State, StepInfo], None] | None,
) -> list[Completion]:
    """Writes every answer; rows of similar lengths share a batch, so that little of it is padding.

    Args:
        model: The model.
        asked: The answers that are wanted, all with the same settings.
        batch_size: Rows per batch.
        on_step: Called with the state of the batch and the step's information.
    """
    # Longest first: a batch that does not fit into memory fails before the work, not after it.
    order = sorted(range(len(asked)), key=lambda index: (-len(asked[index].row), index))
    completions: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        run = _Batch(model, [asked[index] for index in batch])
        run.finish(on_step)
        completions |= {index: run.completion(place) for place, index in enumerate(batch)}
    return [completions[index] for index in range(len(asked))]


class _Batch:
    """One batch: where its answers are, and when each was finished."""

    def __init__(self, model: LanguageModel, asked: Sequence[Asked]) -> None:
        self.asked, self.began, settings = asked, time.perf_counter(), asked[0].settings
        x = [torch.tensor(one.row, dtype=torch.int64, device=model.device) for one in asked]
        self.canvases = [one.canvas(model) for one in asked]
        gap = torch.nn.utils.rnn.pad_sequence([row == model.mask_id for row in x], batch_first=True)
        denoiser: Denoiser = model
        if settings.cache != "none":
            denoiser = Cached(model, settings.cache, len(asked), settings.cache_refresh)
        if settings.guidance is not None:
            denoiser = Guided(model, settings.guidance, _before(gap, x))
        self.sampler = Sampler(denoiser, settings.rule, **settings.draw)
        blocks = answer_blocks(gap, settings.block_length, model.block_causal)
        self.state = self.sampler.start(
            x, streams=[one.stream for one in asked], temperature=settings.temperature, blocks=blocks
        )
        self.seconds = [0.0] * len(asked)

    def finish(self, on_step: Callable[[State, StepInfo], None] | None) -> None:
        """Runs the loop until every answer has ended."""
        self.sampler.run(self.state, on_step=on_step, settle=self._settle)

    def _settle(self, state: State, info: StepInfo) -> State:
        """Notes what the step did, and lets go of positions after the end of an answer."""
        done = changes(state, info)
        state = settle(state, [(one, self.canvases[one.slot]) for one in done])
        now = time.perf_counter() - self.began
        for one in done:
            if not self.canvases[one.slot].open:
                self.seconds[one.slot] = now
        return state

    def completion(self, place: int) -> Completion:
        """What became of one row."""
        one = self.asked[place]
        return self.canvases[place].completion(one.prompt.text, self.seconds[place], one.stream)


def answer_blocks(
    gap: Bool[Tensor, "batch length"], size: int | None, block_causal: int | None
) -> Int[Tensor, "batch length"]:
    """The block of each position: of a block-causal model its own, if they are as long, or counted from the gap.

    Args:
        gap: The positions to write.
        size: Tokens per block; `None` is one block.
        block_causal: Block length of the model's attention.
    """
    if size is None:
        return torch.zeros_like(gap, dtype=torch.int64)
    if size != block_causal:
        return windows(gap, size)
    position = torch.arange(gap.shape[1], device=gap.device)
    return position.div(size, rounding_mode="floor").expand_as(gap)


def _before(gap: Bool[Tensor, "batch length"], x: Sequence[Tensor]) -> Bool[Tensor, "batch length"]:
    """What comes before each answer."""
    lengths = torch.tensor([len(row) for row in x], device=gap.device)
    position = torch.arange(gap.shape[1], device=gap.device)
    return (position < lengths.unsqueeze(-1)) & (gap.cumsum(-1) == 0)
