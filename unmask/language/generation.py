"""Answers many prompts with the one sampling loop: makes batches, ends texts, and counts what each answer cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..denoiser import Denoiser, device_of
from ..models.pretrained.cache import Cached
from ..sampling.blocks import windows
from ..sampling.draw import Settings
from ..sampling.loop import Sampler
from ..sampling.result import StepInfo
from ..sampling.state import State
from .asked import Asked
from .canvas import Canvas
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
    on_turn: Callable[[Canvas], None] | None = None,
) -> list[Completion]:
    """Writes every answer; rows of similar lengths share a batch, so that little of it is padding.

    Args:
        model: The model.
        asked: The answers that are wanted, all with the same settings.
        batch_size: Rows per batch.
        on_step: Called with the state of the batch and the step's information.
        on_turn: Called with the canvas of an answer, after each turn that the answer took part in.
    """
    # Longest first: a batch that does not fit into memory fails before the work, not after it.
    order = sorted(range(len(asked)), key=lambda index: (-len(asked[index].row), index))
    completions: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        run = _Batch(model, [asked[index] for index in batch], on_turn)
        run.finish(on_step)
        completions |= {index: run.completion(place) for place, index in enumerate(batch)}
    return [completions[index] for index in range(len(asked))]


class _Batch:
    """One batch: where its answers are, and when each was finished."""

    def __init__(self, model: LanguageModel, asked: Sequence[Asked], on_turn: Callable[[Canvas], None] | None) -> None:
        self.asked, self.began, settings = asked, time.perf_counter(), asked[0].settings
        self.on_turn = on_turn
        self.canvases = [one.canvas(model) for one in asked]
        denoiser: Denoiser = model
        if settings.cache != "none":
            denoiser = Cached(model, settings.cache, len(asked), settings.cache_refresh)
        if settings.guidance is not None:
            denoiser = Guided(model, settings.guidance, _before(asked, model))
        self.sampler = Sampler(denoiser, settings.rule)
        self.state = begin(self.sampler, asked, model.block_causal)
        self.seconds = [0.0] * len(asked)

    def finish(self, on_step: Callable[[State, StepInfo], None] | None) -> None:
        """Runs the loop until every answer has ended."""
        self.sampler.run(self.state, on_step=on_step, settle=self._settle)

    def _settle(self, state: State, info: StepInfo) -> State:
        """Notes what the step did, and drops positions after the end of an answer from the pending ones."""
        done = changes(state, info)
        state = settle(state, [(one, self.canvases[one.slot]) for one in done])
        now = time.perf_counter() - self.began
        for one in done:
            if not self.canvases[one.slot].open:
                self.seconds[one.slot] = now
            if self.on_turn is not None:
                self.on_turn(self.canvases[one.slot])
        return state

    def completion(self, place: int) -> Completion:
        """Returns the result of one row."""
        one = self.asked[place]
        return self.canvases[place].completion(one.prompt.text, self.seconds[place], one.stream)


def begin(
    sampler: Sampler, wanted: Sequence[Asked], block_causal: int | None, slots: Sequence[int] | None = None
) -> State:
    """Prepares sequences for the loop, each to be drawn as its settings say.

    Args:
        sampler: Denoiser and rule; its own settings of the draw are not looked at.
        wanted: The sequences, all with the same rule and the same length of blocks.
        block_causal: Block length of the model's attention, if it is block-causal.
        slots: Numbers by which caches identify the sequences; default: 0, 1, 2, ...
    """
    vocab_size, mask_id, device = sampler.denoiser.vocab_size, sampler.denoiser.mask_id, device_of(sampler.denoiser)
    rows = [torch.tensor([*one.row, *[mask_id] * one.ahead], dtype=torch.int64, device=device) for one in wanted]
    gap = pad_sequence([row == mask_id for row in rows], batch_first=True)
    for row, one in zip(gap, wanted, strict=True):
        row[len(one.row) :] = False
    distinct = {id(one.settings): one.settings for one in wanted}
    draws = {key: Settings.of(vocab_size, mask_id, **settings.draw) for key, settings in distinct.items()}
    temperature: Float[Tensor, " batch"] = torch.tensor(
        [one.settings.temperature for one in wanted], dtype=torch.float64, device=device
    )
    return sampler.start(
        rows,
        streams=[one.stream for one in wanted],
        temperature=temperature,
        blocks=_blocks(gap, wanted[0].settings.block_length, block_causal),
        settings=[draws[id(one.settings)] for one in wanted] if len(draws) > 1 else next(iter(draws.values())),
        slots=slots,
        fill=gap,
    )


def _blocks(
    gap: Bool[Tensor, "batch length"], size: int | None, block_causal: int | None
) -> Int[Tensor, "batch length"]:
    """Returns the block of each position, counted as a block-causal model's attention does, or else from the gap."""
    if size is None:
        return torch.zeros_like(gap, dtype=torch.int64)
    if block_causal is None:
        return windows(gap, size)
    position = torch.arange(gap.shape[1], device=gap.device)
    return position.div(size, rounding_mode="floor").expand_as(gap)


def _before(asked: Sequence[Asked], model: LanguageModel) -> Bool[Tensor, "batch length"]:
    """Returns what comes before each answer."""
    counts = [one.row.index(model.mask_id) if model.mask_id in one.row else len(one.row) for one in asked]
    width = max(len(one.row) + one.ahead for one in asked)
    count = torch.tensor(counts, device=model.device).unsqueeze(-1)
    return torch.arange(width, device=model.device) < count
