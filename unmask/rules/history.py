"""Rules that compare an evaluation with the ones before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.categorical import forbid
from ..sampling.conversation import Answer, Ask, Conversation, Move, Situation
from ..sampling.view import spread

if TYPE_CHECKING:
    from .ranked import Rule

EVERY = 1 << 30
"""A history of all evaluations."""


@dataclass(frozen=True)
class Past:
    """The last evaluation of each row.

    Attributes:
        where: The positions that were evaluated; none of a row that has not been evaluated yet.
        log_p: Their log-probabilities without the forbidden tokens, row-major over `where`.
        drifts: `KL(evaluation || the one before it)` in nats of the latest evaluations of each position, newest last;
            `+inf` where there was none to compare with.
        masked: How many positions of each row were masked.
        time: The diffusion time of each row's evaluation, if the denoiser wants time.
    """

    where: Bool[Tensor, "rows length"]
    log_p: Float[Tensor, "positions vocab"]
    drifts: Float[Tensor, "rows length history"]
    masked: Int[Tensor, " rows"]
    time: Float[Tensor, " rows"] | None

    def at(self, where: Bool[Tensor, "rows length"]) -> tuple[Bool[Tensor, " positions"], Float[Tensor, "known vocab"]]:
        """Looks positions up: which of those in `where` (row-major) it knows, and their log-probabilities."""
        known = self.where & where
        return known[where], self.log_p[known[self.where]]

    @staticmethod
    def after(
        before: Past | None,
        where: Bool[Tensor, "rows length"],
        log_p: Float[Tensor, "positions vocab"],
        masked: Int[Tensor, " rows"],
        time: Float[Tensor, " rows"] | None,
        history: int,
    ) -> Past:
        """Adds an evaluation to what came before it, of which the last `history` comparisons are kept."""
        if before is None:
            none = torch.full((*where.shape, history), torch.inf, dtype=torch.float64, device=where.device)
            return Past(where, log_p, none, masked, time)
        known, then = before.at(where)
        now = log_p[known]
        # exp underflows to 0 where log_p is -inf: 0 · (-inf - anything finite) counts as 0.
        terms = torch.where(now.isneginf(), 0.0, now.exp() * (now - then))
        drift = torch.full((len(log_p),), torch.inf, dtype=torch.float64, device=where.device)
        drift[known] = terms.sum(-1).double().clamp(min=0)
        drifts = torch.cat([before.drifts[..., 1:], spread(drift, where).unsqueeze(-1)], -1)
        return Past(where, log_p, drifts, masked, time)

    def select(self, rows: Int[Tensor, " kept"]) -> Past:
        """Some of the rows, in the given order."""
        start = self.where.sum(-1).cumsum(0) - self.where.sum(-1)  # of each row's log-probabilities
        number = (self.where.cumsum(-1) - 1 + start.unsqueeze(-1))[rows]
        where, time = self.where[rows], None if self.time is None else self.time[rows]
        return Past(where, self.log_p[number[where]], self.drifts[rows], self.masked[rows], time)

    @staticmethod
    def nothing(like: Past, rows: int, length: int) -> Past:
        """Rows that have not been evaluated yet."""
        where = like.where.new_zeros(rows, length)
        drifts = like.drifts.new_full((rows, length, like.drifts.shape[-1]), torch.inf)
        time = None if like.time is None else like.time.new_full((rows,), torch.nan)
        return Past(where, like.log_p[:0], drifts, like.masked.new_zeros(rows), time)

    def resize(self, length: int) -> Past:
        """Returns this memory for sequences with more padding, or with less."""
        more = length - self.where.shape[1]
        where = torch.nn.functional.pad(self.where, (0, more))
        drifts = torch.nn.functional.pad(self.drifts, (0, 0, 0, more), value=torch.inf)
        return replace(self, where=where, drifts=drifts)

    @staticmethod
    def cat(parts: Sequence[Past]) -> Past:
        """The rows of one after the other."""
        times = [part.time for part in parts if part.time is not None]
        return Past(
            torch.cat([part.where for part in parts]),
            torch.cat([part.log_p for part in parts]),
            torch.cat([part.drifts for part in parts]),
            torch.cat([part.masked for part in parts]),
            torch.cat(times) if len(times) == len(parts) else None,
        )


@dataclass(frozen=True)
class Remembered:
    """What a rule with history remembers: its budget's numbers, and the last evaluation.

    Attributes:
        numbers: The numbers that the budget remembers.
        past: The last evaluation; `None` before the first one.
    """

    numbers: Float[Tensor, "rows memory"]
    past: Past | None = None

    def select(self, rows: Int[Tensor, " kept"]) -> Remembered:
        """Some of the rows, in the given order."""
        return Remembered(self.numbers[rows], None if self.past is None else self.past.select(rows))

    def put(self, rows: Int[Tensor, " part"], part: Remembered) -> Remembered:
        """Returns this memory with some rows replaced. The others are finished, so their evaluation is forgotten."""
        numbers, past = self.numbers.index_copy(0, rows, part.numbers), part.past
        if past is not None:
            none = Past.nothing(past, len(self.numbers), past.where.shape[1])
            past = Past(
                none.where.index_copy(0, rows, past.where),
                past.log_p,
                none.drifts.index_copy(0, rows, past.drifts),
                none.masked.index_copy(0, rows, past.masked),
                None if past.time is None or none.time is None else none.time.index_copy(0, rows, past.time),
            )
        return Remembered(numbers, past)

    def resize(self, length: int) -> Remembered:
        """Returns this memory for sequences with more padding, or with less."""
        return replace(self, past=None if self.past is None else self.past.resize(length))

    def join(self, others: Sequence[Remembered]) -> Remembered:
        """These rows, then those of the others."""
        parts = [self, *others]
        numbers = torch.cat([part.numbers for part in parts])
        known = next((part.past for part in parts if part.past is not None), None)
        if known is None:
            return Remembered(numbers)
        length = known.where.shape[1]
        pasts = [part.past or Past.nothing(known, len(part.numbers), length) for part in parts]
        return Remembered(numbers, Past.cat(pasts))


def compare(rule: Rule, seen: Situation, history: int) -> Conversation:
    """The turn of a rule that wants to see how marginals moved, or to extrapolate them.

    Args:
        rule: Its budget may look at `View.drift`, its predictor at the evaluation before.
        seen: What it is told.
        history: How many comparisons are kept.
    """
    memory = seen.memory
    assert isinstance(memory, Remembered)
    answer = yield Ask(seen.candidate, time=rule.time(seen))
    log_p, count = log_probs(seen, answer), seen.masked.sum(-1)
    now = Past.after(memory.past, seen.candidate, log_p, count, answer.ask.time, history)
    view = seen.view(answer, memory.numbers)
    chosen, numbers = rule.choose(replace(view, drift=now.drifts.amax(-1)))
    predicted = None
    if rule.predictor is not None:
        rows = log_p[chosen[seen.candidate]]
        predicted = rule.predictor.predict(rows, chosen, seen.noise, count, answer.ask.time, memory.past)
    return Move(chosen, Remembered(numbers, now), answer, logits=predicted)


def log_probs(seen: Situation, answer: Answer) -> Float[Tensor, "positions vocab"]:
    """The log-probabilities of an answer's rows, without the tokens that their sequences forbid."""
    log_norm = answer.stats.log_norm
    parts = torch.empty(answer.logits.shape, dtype=log_norm.dtype, device=log_norm.device)
    for settings, index in seen.draw.parts(answer.row, "forbidden"):
        parts[index] = forbid(answer.logits[index].to(log_norm.dtype), settings.forbidden)
    return parts - log_norm.unsqueeze(-1)


def history_of(rule: Rule) -> int:
    """How many comparisons with the evaluation before the parts of a rule want to see."""
    return max(getattr(part, "history", 0) for part in (rule.budget, rule.predictor))
