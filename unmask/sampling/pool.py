"""Sequences with any rules that share their forward passes, and join and leave between them.

A `Pool` holds sequences with any rules. Sequences with the same rule form a batch, whose turns do not wait for those of
other batches; the questions of all batches are evaluated in one forward pass. So a rule that asks seven questions does
not delay the other sequences.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser, Query
from .loop import Sampler
from .result import StepInfo
from .state import State
from .turn import Turn

_ROWS = ("x", "where", "valid", "sequence", "time", "block", "stepwise")
"""What a query has of each state."""


def together(queries: Sequence[Query], mask_id: int) -> Query:
    """Several queries as one, right-padded to a common length."""
    if len(queries) == 1:
        return queries[0]
    length = max(query.x.shape[1] for query in queries)
    columns: dict[str, Any] = {}
    for name in _ROWS:
        parts = [getattr(query, name) for query in queries]
        if name == "stepwise" and any(part is not None for part in parts):
            parts = [
                torch.zeros_like(query.sequence, dtype=torch.bool) if part is None else part
                for query, part in zip(queries, parts, strict=True)
            ]
        if any(part is None for part in parts):
            columns[name] = None
            continue
        if parts[0].ndim == 2:
            fill = mask_id if name == "x" else 0
            parts = [torch.nn.functional.pad(part, (0, length - part.shape[1]), value=fill) for part in parts]
        columns[name] = torch.cat(parts)
    return Query(**columns)


@torch.no_grad()
def evaluate(
    denoiser: Denoiser, turns: Sequence[Turn], gone: Collection[int] = (), failed: dict[int, Exception] | None = None
) -> None:
    """Answers the open questions of several turns with one forward pass.

    Args:
        denoiser: The model.
        turns: The turns.
        gone: Slots that are not evaluated: their turns are told that all tokens are equally probable.
        failed: Collects the error of each turn that raises one, by its index; otherwise errors are raised.
    """
    asking = [(place, turn, *_here(turn.query, gone)) for place, turn in enumerate(turns) if turn.query is not None]
    if not asking:
        return
    queries = [query for _, _, query, _ in asking if len(query.x)]
    counts = [len(query.rows) for _, _, query, _ in asking]
    nothing = torch.zeros(0, denoiser.vocab_size, device=asking[0][2].x.device)
    logits = denoiser(together(queries, denoiser.mask_id)) if queries else nothing
    if not isinstance(logits, Tensor) or logits.ndim == 0 or len(logits) != sum(counts):
        parts = [logits] * len(asking)  # each turn says what is wrong
    else:
        parts = logits.split(counts)
    for (place, turn, _, here), part in zip(asking, parts, strict=True):
        try:
            turn.tell(part if here is None else part.new_zeros(len(here), part.shape[1]).masked_scatter(here, part))
        except Exception as error:
            if failed is None:
                raise
            failed[place] = error


def _here(query: Query, gone: Collection[int]) -> tuple[Query, Tensor | None]:
    """A query without the states of some slots, and a column that says which of its positions are left, if not all."""
    kept = [place for place, slot in enumerate(query.sequence.tolist()) if slot not in gone] if gone else []
    if not gone or len(kept) == len(query.x):
        return query, None
    rows = torch.tensor(kept, dtype=torch.int64, device=query.x.device)
    here = torch.zeros_like(query.sequence, dtype=torch.bool).index_fill(0, rows, True)
    state = query.rows.div(query.x.shape[1], rounding_mode="floor")
    return query.narrow(rows, query.x.shape[1]), here[state].unsqueeze(-1)


class Batch:
    """The sequences of a pool that have one rule, and their open turn."""

    def __init__(self, sampler: Sampler, state: State) -> None:
        self.sampler, self.state = sampler, state
        self.turn: Turn | None = None
        self.waiting: list[State] = []

    def begin(self) -> Turn:
        """Returns the open turn, or a new one in which the waiting sequences take part."""
        if self.turn is None:
            if self.waiting:
                self.state = State.join([self.state, *self.waiting])
                self.waiting = []
            self.turn = self.sampler.begin(self.state)
        return self.turn


class Pool:
    """Sequences with any rules, which share one denoiser and its forward passes.

    A sequence gets the tokens and the evaluations it would get alone, with the same stream. Those that join while a
    turn of their rule is open take part in the next one.

    Args:
        denoiser: The model. If sequences differ in length, it must know what padding is.
        keep_going: Whether an error in a turn ends only the sequence that causes it, which is found by taking the batch
            apart; the error is then in `failed`. Default: the error is raised.

    Attributes:
        passes: Forward passes made.
        failed: The sequences that have failed, with their errors.
    """

    def __init__(self, denoiser: Denoiser, keep_going: bool = False) -> None:
        self.denoiser, self.keep_going, self.passes = denoiser, keep_going, 0
        self.failed: list[tuple[State, Exception]] = []
        self._batches: list[Batch] = []
        self._gone: set[int] = set()  # asked to go, and in an open turn

    def __len__(self) -> int:
        return sum(len(state.x) for state in self.everyone())

    def join(self, sampler: Sampler, state: State) -> None:
        """Adds the sequences of a state of the sampler's rule.

        Their slots must differ from those of the sequences already in the pool.

        Raises:
            ValueError: If the sampler has another denoiser.
        """
        if sampler.denoiser is not self.denoiser:
            raise ValueError("all sequences of a pool have one denoiser")
        for batch in self._batches:
            if batch.sampler.rule is sampler.rule or batch.sampler.rule == sampler.rule:
                batch.waiting.append(state)
                return
        self._batches.append(Batch(sampler, state))

    def everyone(self) -> list[State]:
        """Returns the states of the sequences in the pool, as they were when their last turn ended."""
        return [state for batch in self._batches for state in (batch.state, *batch.waiting)]

    def evaluate(self, candidates: int = 0) -> list[tuple[Batch, StepInfo]]:
        """Makes one forward pass; returns the batches whose turn ended with it, and what their step did.

        Args:
            candidates: For each unmasked position, also report this many of its most probable tokens.
        """
        failed: dict[int, Exception] | None = {} if self.keep_going else None
        batches, turns = [], []
        for batch in list(self._batches):
            with self._watched(batch):
                turns.append(batch.begin())
                batches.append(batch)
        if any(turn.query is not None for turn in turns):
            self.passes += 1
        evaluate(self.denoiser, turns, self._gone, failed)
        ended = []
        for place, (batch, turn) in enumerate(zip(batches, turns, strict=True)):
            if failed and place in failed:
                self._take_apart(batch, failed[place])
            elif turn.query is None:
                with self._watched(batch):
                    batch.state, info = turn.end(candidates)
                    batch.turn = None
                    ended.append((batch, info))
        return ended

    @contextlib.contextmanager
    def _watched(self, batch: Batch) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.keep_going:
                raise
            self._take_apart(batch, error)

    def _take_apart(self, batch: Batch, error: Exception) -> None:
        """Splits a batch whose turn has failed into one batch per sequence; a sequence that fails alone leaves."""
        place = self._batches.index(batch)
        parts = batch.state.split() if len(batch.state.x) > 1 else []
        if not parts:
            self.failed.append((batch.state, error))
            self._gone.discard(int(batch.state.slot))
        self._batches[place : place + 1] = [Batch(batch.sampler, part) for part in [*parts, *batch.waiting]]

    def leave(self, slots: Iterable[int] | None = None) -> list[State]:
        """Removes the finished sequences and those in the given slots; returns a state of each.

        A sequence whose turn is open stays until the turn has ended, but is not evaluated any more.

        Args:
            slots: Sequences that leave unfinished, such as those of a cancelled request.
        """
        asked, gone = self._gone | set(slots or ()), []
        for batch in list(self._batches):
            for part in batch.waiting:
                gone += [one for one in part.split() if int(one.slot) in asked]
            batch.waiting = [_without(part, asked) for part in batch.waiting]
            batch.waiting = [part for part in batch.waiting if len(part.x)]
            if batch.turn is None:
                done = batch.state.finished.cpu()
                if asked:
                    done = done | torch.tensor([slot in asked for slot in batch.state.slot.tolist()], dtype=torch.bool)
                if bool(done.any()):
                    device = batch.state.x.device
                    gone += batch.state.select(done.nonzero().squeeze(-1).to(device)).split()
                    batch.state = _trimmed(batch.state.select((~done).nonzero().squeeze(-1).to(device)))
            if not len(batch.state.x) and batch.turn is None:
                if batch.waiting:
                    batch.state, batch.waiting = State.join(batch.waiting), []
                else:
                    self._batches.remove(batch)
        here = {slot for batch in self._batches if batch.turn is not None for slot in batch.state.slot.tolist()}
        self._gone = asked & here
        return gone


def _trimmed(state: State) -> State:
    """Returns a state without the columns that are padding in all remaining sequences."""
    length = int(state.valid.any(0).nonzero().amax()) + 1 if len(state.x) and bool(state.valid.any()) else 0
    return state.narrow(length) if 0 < length < state.x.shape[1] else state


def _without(state: State, slots: set[int]) -> State:
    kept = [row for row, slot in enumerate(state.slot.tolist()) if slot not in slots]
    return state if len(kept) == len(state.x) else state.select(torch.tensor(kept, dtype=torch.int64))
