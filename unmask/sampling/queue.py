"""Any number of sequences through a fixed number of slots: who is finished leaves, who waits takes the place.

A `Pool` holds sequences with any rules. Those with one rule are a batch of their own, whose turns go on independently
of the others'; what all of them ask is evaluated in one forward pass. So a rule that asks seven questions holds up
nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Denoiser, Query
from ..draws.streams import derive
from .loop import Sampler
from .result import Result, StepInfo
from .state import State
from .turn import Turn


def together(queries: Sequence[Query], mask_id: int) -> Query:
    """Several queries as one, right-padded to a common length."""
    if len(queries) == 1:
        return queries[0]
    length = max(query.x.shape[1] for query in queries)
    columns: dict[str, Any] = {}
    for name in ("x", "where", "valid", "sequence", "time", "block"):
        parts = [getattr(query, name) for query in queries]
        if any(part is None for part in parts):
            columns[name] = None
            continue
        if parts[0].ndim == 2:
            fill = mask_id if name == "x" else 0
            parts = [torch.nn.functional.pad(part, (0, length - part.shape[1]), value=fill) for part in parts]
        columns[name] = torch.cat(parts)
    return Query(**columns)


@torch.no_grad()
def evaluate(denoiser: Denoiser, turns: Sequence[Turn]) -> None:
    """Answers the open questions of several turns by one forward pass; of turns that ask nothing, none."""
    asking = [turn for turn in turns if turn.query is not None]
    if not asking:
        return
    queries = [turn.query for turn in asking if turn.query is not None]
    counts = [len(query.rows) for query in queries]
    logits = denoiser(together(queries, denoiser.mask_id))
    if not isinstance(logits, Tensor) or logits.ndim == 0 or len(logits) != sum(counts):
        parts = [logits] * len(asking)  # each turn says what is wrong
    else:
        parts = logits.split(counts)
    for turn, part in zip(asking, parts, strict=True):
        turn.tell(part)


class Batch:
    """The sequences of a pool that have one rule, and their open turn."""

    def __init__(self, sampler: Sampler, state: State) -> None:
        self.sampler, self.state = sampler, state
        self.turn: Turn | None = None
        self.waiting: list[State] = []

    def begin(self) -> Turn:
        """The open turn, or a new one, which those who wait take part in."""
        if self.turn is None:
            if self.waiting:
                self.state = State.join([self.state, *self.waiting])
                self.waiting = []
            self.turn = self.sampler.begin(self.state)
        return self.turn


class Pool:
    """Sequences with any rules that share their forward passes. All have one denoiser.

    A sequence gets the tokens and the evaluations it would get alone, with the same stream. Those that join while a
    turn of their rule is open take part in the next one.

    Args:
        denoiser: The model. If sequences differ in length, it must know what padding is.

    Attributes:
        passes: Forward passes made.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.passes = denoiser, 0
        self._batches: list[Batch] = []

    def __len__(self) -> int:
        return sum(len(state.x) for batch in self._batches for state in (batch.state, *batch.waiting))

    def join(self, sampler: Sampler, state: State) -> None:
        """Takes in the sequences of a state of the sampler's rule.

        Slots must be other ones than those of the sequences that are here.

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
        """The states of those who are here, as they were when their last turn ended."""
        return [state for batch in self._batches for state in (batch.state, *batch.waiting)]

    def evaluate(self, candidates: int = 0) -> list[tuple[Batch, StepInfo]]:
        """Makes one forward pass; returns the batches whose turn ended by it, with what was done.

        Args:
            candidates: As in `Sampler.step`.
        """
        turns = [batch.begin() for batch in self._batches]
        if any(turn.query is not None for turn in turns):
            self.passes += 1
        evaluate(self.denoiser, turns)
        ended = []
        for batch, turn in zip(self._batches, turns, strict=True):
            if turn.query is None:
                batch.state, info = turn.end(candidates)
                batch.turn = None
                ended.append((batch, info))
        return ended

    def leave(self, slots: Iterable[int] | None = None) -> list[State]:
        """Lets sequences go: those that are finished, and those in some slots; returns a state of each.

        One whose turn is open stays until it has ended; so does the turn of a slot that is asked to go.

        Args:
            slots: Who leaves although not finished, such as a cancelled request.
        """
        asked, gone = set(slots or ()), []
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
                    batch.state = batch.state.select((~done).nonzero().squeeze(-1).to(device))
            if not len(batch.state.x) and batch.turn is None:
                if batch.waiting:
                    batch.state, batch.waiting = State.join(batch.waiting), []
                else:
                    self._batches.remove(batch)
        return gone


def _without(state: State, slots: set[int]) -> State:
    kept = [row for row, slot in enumerate(state.slot.tolist()) if slot not in slots]
    return state if len(kept) == len(state.x) else state.select(torch.tensor(kept, dtype=torch.int64))


@dataclass(frozen=True)
class Job:
    """A sequence for the queue with settings of its own.

    Attributes:
        x: Its tokens.
        sampler: Its denoiser and rule, and how its tokens are drawn.
        stream: Its random stream.
        temperature: The temperature of the draw.
        blocks: Window length for semi-autoregressive sampling.
    """

    x: Sequence[int] | Int[Tensor, " length"]
    sampler: Sampler
    stream: int
    temperature: float = 1.0
    blocks: int | None = None


def stream(
    sampler: Sampler,
    x: Iterable[Sequence[int] | Int[Tensor, " length"]],
    slots: int,
    *,
    seed: int | None = None,
    streams: Iterable[int] | None = None,
    temperature: float = 1.0,
    blocks: int | None = None,
    on_step: Callable[[State, StepInfo], None] | None = None,
) -> Iterator[tuple[int, Result]]:
    """Fills in the masks of a queue of sequences, and yields each as soon as it is finished.

    Every sequence gets the tokens and the evaluations it would get alone, with the same stream; so the number of slots
    changes nothing but the time.

    Args:
        sampler: Denoiser and rule.
        x: The sequences, read as slots become free. If lengths differ, the denoiser must know what padding is.
        slots: How many are worked on at once.
        seed: Gives sequence `i` of the queue the stream `derive(seed, i)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence, read along with them.
        temperature: The temperature of the draw.
        blocks: Window length for semi-autoregressive sampling.
        on_step: Called after each turn with the state of the batch and what was done.

    Yields:
        The number of a sequence in the queue, and the result of a batch of that one.

    Raises:
        ValueError: If an argument is out of range, or there are fewer streams than sequences.
    """
    if (seed is None) == (streams is None):
        raise ValueError("pass either seed=... (sequence i gets the stream derive(seed, i)) or streams=..., one each")
    _slots(slots)

    def jobs() -> Iterator[Job]:
        ids = None if streams is None else iter(streams)
        for number, tokens in enumerate(x):
            own = derive(seed, number) if seed is not None else next(ids or iter(()), None)
            if own is None:
                raise ValueError(f"there are {number} streams, and more sequences")
            yield Job(tokens, sampler, own, temperature, blocks)

    return run_jobs(jobs(), slots, on_step)


def _slots(slots: int) -> None:
    if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
        raise ValueError(f"slots must be an integer >= 1, got {slots!r}")


def run_jobs(
    jobs: Iterable[Job], slots: int, on_step: Callable[[State, StepInfo], None] | None = None
) -> Iterator[tuple[int, Result]]:
    """`stream` for sequences with settings of their own, different rules among them.

    Args:
        jobs: The sequences, read as slots become free; all must have one denoiser.
        slots: How many are worked on at once.
        on_step: Called after each turn with the state of its batch and what was done.

    Yields:
        The number of a job, and the result of a batch of that one.

    Raises:
        ValueError: If an argument is out of range.
    """
    _slots(slots)
    queue, pool, read = iter(jobs), None, 0
    working: dict[int, tuple[Tensor, list[float]]] = {}  # tokens at the start, bounds of the turns
    while True:
        fresh = list(islice(queue, slots - len(working)))
        for numbers, group in _alike(fresh, read):
            first = group[0]
            pool = Pool(first.sampler.denoiser) if pool is None else pool
            tokens = [torch.as_tensor(job.x) for job in group]
            working |= {number: (row, []) for number, row in zip(numbers, tokens, strict=True)}
            temperature: Float[Tensor, " batch"] = torch.tensor(
                [job.temperature for job in group], dtype=torch.float64, device=tokens[0].device
            )
            pool.join(
                first.sampler,
                first.sampler.start(
                    tokens,
                    streams=[job.stream for job in group],
                    temperature=temperature,
                    blocks=first.blocks,
                    slots=numbers,
                ),
            )
        read += len(fresh)
        if pool is None or not working:
            return
        left = pool.leave()
        for one in left:
            yield int(one.slot), _result(one, *working.pop(int(one.slot)))
        if left:
            continue
        for batch, info in pool.evaluate():
            for slot, nats in zip(batch.state.slot[info.sequence].tolist(), info.bound.tolist(), strict=True):
                working[slot][1].append(nats)
            if on_step is not None and len(info.sequence):
                on_step(batch.state, info)


def _alike(jobs: Sequence[Job], first: int) -> list[tuple[list[int], list[Job]]]:
    """Neighbours that can be started as one batch, with their numbers."""
    groups: list[tuple[list[int], list[Job]]] = []
    for number, job in enumerate(jobs, first):
        if groups and groups[-1][1][0].sampler is job.sampler and groups[-1][1][0].blocks == job.blocks:
            groups[-1][0].append(number)
            groups[-1][1].append(job)
        else:
            groups.append(([number], [job]))
    return groups


def _result(one: State, tokens: Tensor, bounds: list[float]) -> Result:
    """The result of the only sequence of a state, without the padding of its neighbours."""
    result = Result.of(one.narrow(len(tokens)), tokens.unsqueeze(0), int(one.nfe), [], None)
    return replace(result, bounds=(tuple(bounds),))
