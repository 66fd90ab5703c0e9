"""Answers many prompts on the one sampling loop: batches, ends of texts, and what each answer cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Denoiser
from ..models.pretrained.cache import Cached
from ..sampling.blocks import windows
from ..sampling.conversation import AnyRule
from ..sampling.draw import Processor
from ..sampling.loop import Sampler
from ..sampling.result import StepInfo
from ..sampling.state import State
from .completion import Completion
from .guidance import Guided
from .prompts import Prompt
from .texts import Continuation

if TYPE_CHECKING:
    from .model import LanguageModel


@dataclass(frozen=True)
class Settings:
    """How to answer.

    Attributes:
        rule: What to unmask when.
        temperature: Of the draw.
        top_k: Of the draw.
        top_p: Of the draw.
        forbidden: Tokens that must not appear.
        processor: Changes logits before planning and drawing.
        last: Tokens that wait for the others.
        ends: Tokens that end an answer.
        stops: Texts that end an answer.
        block_length: Tokens per block.
        guidance: Scale of classifier-free guidance.
        cache: Which keys and values are kept, one of `CACHES`.
        cache_refresh: Evaluations of a block from one that computes everything to the next.
        batch_size: Prompts per batch.
        whole: Whether the text of an answer is the whole sequence, not only what was masked.
    """

    rule: AnyRule
    temperature: float
    top_k: int | None
    top_p: float | None
    forbidden: tuple[int, ...]
    last: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    stops: tuple[str, ...] = ()
    block_length: int | None = None
    guidance: float | None = None
    cache: str = "none"
    cache_refresh: int | None = None
    batch_size: int = 1
    whole: bool = False
    processor: Processor | None = None


def answer_all(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    rows: Sequence[Sequence[int]],
    streams: Sequence[int],
    settings: Settings,
    on_step: Callable[[State, StepInfo], None] | None,
) -> list[Completion]:
    """Completes every row; rows of similar lengths share a batch, so that little of it is padding.

    Args:
        model: The model.
        prompts: What was asked.
        rows: The same with masks, one sequence per prompt.
        streams: The random stream of each.
        settings: How to answer.
        on_step: Called with the state of the batch and the step's information.

    Raises:
        ValueError: If a row is longer than the model takes.
    """
    for index, row in enumerate(rows):
        if model.max_length is not None and len(row) > model.max_length:
            masks = sum(token == model.mask_id for token in row)
            raise ValueError(
                f"prompt {index} has {len(row) - masks} tokens, which with {masks} masks is more than the"
                f" {model.max_length} that the model takes"
            )
    # Longest first: a batch that does not fit into memory fails before the work, not after it.
    order = sorted(range(len(rows)), key=lambda index: (-len(rows[index]), index))
    completions: dict[int, Completion] = {}
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        part = [rows[index] for index in batch]
        run = _Batch(model, part, [streams[index] for index in batch], settings)
        run.finish(on_step)
        for place, index in enumerate(batch):
            completions[index] = run.completion(place, prompts[index])
    return [completions[index] for index in range(len(rows))]


class _Batch:
    """One batch: where its answers are, and what becomes known of each token on the way."""

    def __init__(
        self, model: LanguageModel, rows: Sequence[Sequence[int]], streams: Sequence[int], settings: Settings
    ) -> None:
        self.model, self.settings, self.began = model, settings, time.perf_counter()
        device = model.device
        x = [torch.tensor(row, dtype=torch.int64, device=device) for row in rows]
        shown = [torch.nn.functional.pad(row, (0, self._ahead(row)), value=model.mask_id) for row in x]
        width = max(map(len, shown))
        self.gap: Bool[Tensor, "batch length"] = torch.zeros(len(rows), width, dtype=torch.bool, device=device)
        for place, row in enumerate(x):
            self.gap[place, : len(row)] = row == model.mask_id
        blocks = self._blocks()
        denoiser: Denoiser = model
        if settings.cache != "none":
            denoiser = Cached(model, settings.cache, len(rows), settings.cache_refresh)
        if settings.guidance is not None:
            denoiser = Guided(model, settings.guidance, self._prompt(x))
        self.sampler = Sampler(
            denoiser,
            settings.rule,
            top_k=settings.top_k,
            top_p=settings.top_p,
            forbidden=settings.forbidden,
            last=settings.last,
            processor=settings.processor,
        )
        self.state = self.sampler.start(
            shown, streams=streams, temperature=settings.temperature, blocks=blocks, fill=self.gap
        )
        self.streams = [stream % 2**64 for stream in streams]
        self.ends = torch.tensor(settings.ends, dtype=torch.int64, device=device)
        self.log_prob: Float[Tensor, "batch length"] = torch.zeros(self.gap.shape, dtype=torch.float64, device=device)
        self.step: Int[Tensor, "batch length"] = torch.zeros(self.gap.shape, dtype=torch.int64, device=device)
        self.seconds = [0.0] * len(rows)
        self.stopped: list[tuple[int, str] | None] = [None] * len(rows)
        self.texts = [Continuation(model.tokenizer, _beginning(row, model.mask_id)) for row in rows]
        self.searched = [0] * len(rows)

    def _ahead(self, row: Int[Tensor, " length"]) -> int:
        """How many masks a block-causal model is shown behind an answer, as it was trained: up to the end of its block.

        They are not filled in: an answer may end anywhere. Where text follows the answer there are none.
        """
        size = self.model.block_causal
        if size is None or int(row[-1]) != self.model.mask_id or self.settings.whole:
            return 0
        ahead, most = -len(row) % size, self.model.max_length
        return ahead if most is None else min(ahead, most - len(row))

    def _blocks(self) -> Int[Tensor, "batch length"]:
        """The block of each position: of a block-causal model counted as its attention counts, or else from the gap."""
        size = self.settings.block_length
        if size is None:
            return torch.zeros_like(self.gap, dtype=torch.int64)
        if self.model.block_causal is None:
            return windows(self.gap, size)
        position = torch.arange(self.gap.shape[1], device=self.gap.device)
        return position.div(size, rounding_mode="floor").expand_as(self.gap)

    def _prompt(self, x: list[Tensor]) -> Bool[Tensor, "batch length"]:
        """What comes before the answer."""
        lengths = torch.tensor([len(row) for row in x], device=self.gap.device)
        position = torch.arange(self.gap.shape[1], device=self.gap.device)
        return (position < lengths.unsqueeze(-1)) & (self.gap.cumsum(-1) == 0)

    def finish(self, on_step: Callable[[State, StepInfo], None] | None) -> None:
        """Runs the loop until every answer has ended."""
        self.sampler.run(self.state, on_step=on_step, settle=self._settle)

    def _settle(self, state: State, info: StepInfo) -> State:
        """Notes what the step did, and lets go of positions after the end of an answer."""
        row, column = info.chosen.nonzero(as_tuple=True)
        row = info.sequence[row]
        self.log_prob[row, column] = info.log_prob.double()
        self.step[row, column] = state.nfe[row]
        going = torch.tensor([stop is None for stop in self.stopped], device=state.x.device)
        # An end token may be masked again, and what comes after it is then to be written after all.
        masks = (state.x == state.mask_id) & state.editable & self.gap
        pending = (state.pending | masks) & going.unsqueeze(-1)
        if len(self.ends):
            ended = torch.isin(state.x, self.ends) & self.gap
            pending = pending & (ended.cumsum(-1) == 0)
        if self.settings.stops:
            pending = self._stop(state.x, pending, info.sequence.tolist())
        now = time.perf_counter() - self.began
        finished = ~pending.any(-1)
        for place in info.sequence[finished[info.sequence]].tolist():
            self.seconds[place] = now
        going = torch.tensor([stop is None for stop in self.stopped], device=state.x.device)
        self.state = replace(state, pending=pending, more=state.more & going)
        return self.state

    def _stop(self, x: Tensor, pending: Tensor, sequences: list[int]) -> Tensor:
        """Looks for stop strings in what has been written without a gap."""
        pending = pending.clone()
        for place in sequences:
            gap = self.gap[place].nonzero().squeeze(-1)
            written = int((~pending[place, gap]).int().cumprod(-1).sum())
            tokens = self._before_end(x[place, gap[:written]].tolist())
            if len(tokens) == self.searched[place]:
                continue
            self.searched[place] = len(tokens)
            if (stopped := self.texts[place].stop(tokens, self.settings.stops)) is not None:
                self.stopped[place] = stopped
                pending[place] = False
        return pending

    def _before_end(self, tokens: list[int]) -> list[int]:
        ends = [place for place, token in enumerate(tokens) if token in self.settings.ends]
        return tokens[: ends[0]] if ends else tokens

    def completion(self, place: int, prompt: Prompt) -> Completion:
        """What became of one row."""
        state, model = self.state, self.model
        gap = self.gap[place].nonzero().squeeze(-1)
        tokens = state.x[place, gap].tolist()
        kept = self._before_end(tokens)
        reason: Literal["end", "stop", "length"] = "length"
        if (stopped := self.stopped[place]) is not None:
            reason, count, text = "stop", stopped[0], stopped[1]
        elif len(kept) < len(tokens):
            reason, count, text = "end", len(kept) + 1, self.texts[place].text(kept)
        else:
            count, text = len(tokens), self.texts[place].text(tokens)
        if self.settings.whole:
            text = model.decode(state.x[place, : int(state.valid[place].sum())].tolist())
        return Completion(
            prompt=prompt.text,
            text=text,
            tokens=tuple(tokens[:count]),
            log_probs=tuple(self.log_prob[place, gap[:count]].tolist()),
            steps=tuple(self.step[place, gap[:count]].tolist()),
            nfe=int(state.nfe[place]),
            new_tokens=count,
            seconds=self.seconds[place],
            finish_reason=reason,
            stream=self.streams[place],
        )


def _beginning(row: Sequence[int], mask_id: int) -> Sequence[int]:
    """What comes before the first mask."""
    return row[: row.index(mask_id)] if mask_id in row else row
