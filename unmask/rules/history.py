"""Rules that compare an evaluation with the ones before it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.categorical import Marginals, check_marginals, forbid
from ..draws.kept import Kept, compared
from ..errors import LogitsError
from ..sampling.conversation import Answer, Ask, Conversation, Move, Situation
from ..sampling.draw import Settings
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
        kept: Their logits, row-major over `where`.
        drifts: `KL(evaluation || the one before it)` in nats of the latest evaluations of each position, newest last;
            `+inf` where there was none to compare with.
        masked: How many positions of each row were masked.
        time: The diffusion time of each row's evaluation, if the denoiser wants time.
    """

    where: Bool[Tensor, "rows length"]
    kept: Kept
    drifts: Float[Tensor, "rows length history"]
    masked: Int[Tensor, " rows"]
    time: Float[Tensor, " rows"] | None

    def index(self, where: Bool[Tensor, "rows length"]) -> Int[Tensor, " positions"]:
        """Looks positions up: which row of `kept` each of those in `where` (row-major) has, -1 if none."""
        number = (self.where.flatten().cumsum(0) - 1).view(where.shape)
        return number.masked_fill_(~self.where, -1)[where]

    @staticmethod
    def after(
        before: Past | None,
        where: Bool[Tensor, "rows length"],
        kept: Kept,
        drift: Float[Tensor, " positions"] | None,
        masked: Int[Tensor, " rows"],
        time: Float[Tensor, " rows"] | None,
        history: int,
    ) -> Past:
        """Adds an evaluation to what came before it, of which the last `history` comparisons are kept.

        Args:
            before: What came before it.
            where: The positions that were evaluated.
            kept: Their logits.
            drift: How far each has moved since the evaluation before; `None` if no comparisons are kept.
            masked: How many positions of each row are masked.
            time: The diffusion time of each row.
            history: How many comparisons are kept.
        """
        if before is None:
            drifts = torch.full((*where.shape, history), torch.inf, dtype=torch.float64, device=where.device)
        elif drift is None:
            drifts = before.drifts
        else:
            drifts = torch.cat([before.drifts[..., 1:], spread(drift, where).unsqueeze(-1)], -1)
        return Past(where, kept, drifts, masked, time)

    def select(self, rows: Int[Tensor, " kept"]) -> Past:
        """Some of the rows, in the given order."""
        start = self.where.sum(-1).cumsum(0) - self.where.sum(-1)  # of each row's logits
        number = (self.where.cumsum(-1) - 1 + start.unsqueeze(-1))[rows]
        where, time = self.where[rows], None if self.time is None else self.time[rows]
        return Past(where, self.kept.select(number[where]), self.drifts[rows], self.masked[rows], time)

    @staticmethod
    def nothing(like: Past, rows: int, length: int) -> Past:
        """Rows that have not been evaluated yet."""
        where = like.where.new_zeros(rows, length)
        drifts = like.drifts.new_full((rows, length, like.drifts.shape[-1]), torch.inf)
        time = None if like.time is None else like.time.new_full((rows,), torch.nan)
        return Past(where, like.kept.select(like.masked[:0]), drifts, like.masked.new_zeros(rows), time)

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
            Kept.cat([part.kept for part in parts]),
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
                past.kept,
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


def compare(rule: Rule, seen: Situation) -> Conversation:
    """The turn of a rule that wants to see how marginals moved, or to extrapolate them.

    Args:
        rule: Its budget may look at `View.drift`, its predictor at the evaluation before.
        seen: What it is told.
    """
    memory, history = seen.memory, _looks_back(rule.budget)
    assert isinstance(memory, Remembered)
    # On a CPU the statistics come with the comparison, in one visit of the logits.
    alone = history == 0 or not seen.x.is_cpu
    answer = yield Ask(seen.candidate, time=rule.time(seen), measure=alone)
    past, count = memory.past, seen.masked.sum(-1)
    if history:
        index = torch.full_like(answer.index, -1) if past is None else past.index(seen.candidate)
        stats, kept, drift = compared_with(seen, answer, None if past is None else past.kept, index)
        answer = measured(answer, stats)
    else:
        kept, drift = Kept(answer.logits, answer.stats.log_norm), None
    now = Past.after(past, seen.candidate, kept, drift, count, answer.ask.time, history)
    view = seen.view(answer, memory.numbers)
    chosen, numbers = rule.choose(replace(view, drift=now.drifts.amax(-1)) if history else view)
    predicted = None
    if rule.predictor is not None:
        log_p = log_probs(seen, answer, chosen)
        predicted = rule.predictor.predict(log_p, chosen, seen.noise, count, answer.ask.time, past)
    return Move(chosen, Remembered(numbers, now), answer, logits=predicted)


def compared_with(
    seen: Situation, answer: Answer, before: Kept | None, index: Int[Tensor, " positions"]
) -> tuple[Marginals, Kept, Float[Tensor, " positions"]]:
    """Compares an answer with rows that were kept, without the tokens that their sequences forbid.

    Args:
        seen: The situation.
        answer: The answer, measured or not.
        before: Rows that were kept.
        index: Which of them each row of the answer is compared with; -1 for none.

    Returns:
        The statistics of the answer, its logits to be kept, and `KL(now || before)` of each row in nats.
    """
    parts = list(seen.draw.parts(answer.row, "forbidden"))
    if len(parts) == 1 and isinstance(parts[0][1], slice):
        return compared(answer.logits, before, index, parts[0][0].forbidden, answer.marginals)
    return _joined(answer, before, index, parts)


def _joined(
    answer: Answer,
    before: Kept | None,
    index: Int[Tensor, " positions"],
    parts: Sequence[tuple[Settings, Int[Tensor, " part"] | slice]],
) -> tuple[Marginals, Kept, Float[Tensor, " positions"]]:
    """`compared` of each of some parts of the rows, with the tokens that are forbidden there."""
    columns: dict[str, Tensor] = {}

    def put(name: str, values: Tensor | None, rows: Int[Tensor, " part"] | slice) -> None:
        if values is not None:
            empty = values.new_empty(len(index), *values.shape[1:])
            columns.setdefault(name, empty)[rows] = values

    for one, rows in parts:
        stats, kept, drift = compared(answer.logits[rows], before, index[rows], one.forbidden)
        for name in ("entropy", "doubt", "closeness", "token", "log_norm", "top"):
            put(name, getattr(stats, name), rows)
        put("norm", kept.norm, rows)
        put("drift", drift, rows)
    norm, drift = columns.pop("norm", None), columns.pop("drift")
    return Marginals(**columns), Kept(answer.logits, columns["log_norm"], norm), drift


def measured(answer: Answer, stats: Marginals) -> Answer:
    """Returns an answer with its statistics, which were not asked for.

    Raises:
        LogitsError: If a row is no distribution; it names its place. Of an answer that came with statistics the turn
            says so at its end.
    """
    if answer.marginals is not None:
        return answer
    try:
        check_marginals(stats)
    except LogitsError as error:
        position = int(answer.index[error.row]) % answer.ask.where.shape[1]
        place = f" (unfinished sequence {int(answer.row[error.row])}, position {position})"
        raise LogitsError(error.row, error.reason, place) from None
    return replace(answer, marginals=stats)


def log_probs(seen: Situation, answer: Answer, chosen: Bool[Tensor, "rows length"]) -> Float[Tensor, "chosen vocab"]:
    """The log-probabilities of those candidates that were chosen, without the tokens that their sequences forbid."""
    taken = chosen[seen.candidate].nonzero().squeeze(-1)
    log_norm = answer.stats.log_norm[taken].unsqueeze(-1)
    logits = answer.logits[taken].to(log_norm.dtype)
    for settings, index in seen.draw.parts(answer.row[taken], "forbidden"):
        logits[index] = forbid(logits[index], settings.forbidden)
    return logits.sub_(log_norm)


def _looks_back(part: object) -> int:
    """How many comparisons with the evaluation before a part of a rule wants to see."""
    return getattr(part, "history", 0)


def history_of(rule: Rule) -> int:
    """How many comparisons with the evaluation before the parts of a rule want to see."""
    return max(_looks_back(part) for part in (rule.budget, rule.predictor))
