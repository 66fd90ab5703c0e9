"""The sequences that a model works on, which share its forward passes. Which ones these are, the scheduler decides."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..denoiser import Denoiser
from ..language.asked import Asked
from ..language.canvas import Canvas
from ..language.generation import begin
from ..language.turns import Change, changes, settle
from ..models.pretrained.cache import Cached
from ..sampling.loop import Sampler
from ..sampling.pool import Pool
from .within_memory import WithinMemory


@dataclass(frozen=True)
class Work:
    """A sequence to be written.

    Attributes:
        number: The number that identifies the sequence.
        asked: The answer that is wanted.
        canvas: The canvas that it is written on.
        candidates: How many of the most probable tokens to report for each token written.
    """

    number: int
    asked: Asked
    canvas: Canvas
    candidates: int = 0


@dataclass(frozen=True)
class Turned:
    """What happened to a sequence in a forward pass.

    Attributes:
        work: The sequence.
        change: What was written and erased; `None` if it has left or failed.
        done: Whether it is no longer worked on.
        error: Why it has failed, if it has.
    """

    work: Work
    change: Change | None = None
    done: bool = False
    error: Exception | None = None


class Runner:
    """Works on sequences of one model, with any rules. Only one thread may use it.

    Args:
        denoiser: The model.
        cached: The model with kept keys and values. Not used for rules that ask about several states of a sequence.

    Attributes:
        passes: Forward passes made.
    """

    def __init__(self, denoiser: Denoiser, cached: Cached | WithinMemory | None = None) -> None:
        self.denoiser, self.cached, self.passes = denoiser, cached, 0
        self._work: dict[int, Work] = {}
        self._pools = [Pool(denoiser, keep_going=True)]
        if cached is not None:
            self._pools.append(Pool(cached, keep_going=True))
        self._asked: set[int] = set()  # to leave

    def __len__(self) -> int:
        return len(self._work)

    def emptied(self) -> Runner:
        """Returns a runner of the same model without any sequences, for use after an error of the model itself."""
        if self.cached is not None:
            self.cached.forget(list(self._work))
        return Runner(self.denoiser, self.cached)

    def join(self, works: Sequence[Work]) -> list[tuple[Work, Exception]]:
        """Adds sequences, which take part from the next forward pass on; those that can start together do.

        Returns:
            Those that were not added, because their settings do not go with the model, with the reasons.
        """
        refused = []
        for together in _alike(works):
            try:
                self._start(together)
            except Exception as error:
                if len(together) > 1:
                    refused += [one for work in together for one in self.join([work])]
                else:
                    refused.append((together[0], error))
        return refused

    def _start(self, works: Sequence[Work]) -> None:
        """Adds sequences with one rule, and one length of blocks."""
        rule = works[0].asked.settings.rule
        pool = self._pools[-1 if rule.asks_once else 0]
        sampler = Sampler(pool.denoiser, rule)
        blocks, numbers = getattr(self.denoiser, "block_causal", None), [work.number for work in works]
        pool.join(sampler, begin(sampler, [work.asked for work in works], blocks, numbers))
        self._work |= {work.number: work for work in works}

    def leave(self, numbers: Iterable[int]) -> None:
        """Asks sequences to leave: they are not evaluated any more, and the next `step` reports that they are gone."""
        self._asked |= {number for number in numbers if number in self._work}

    def step(self) -> list[Turned]:
        """Makes a forward pass, and returns what happened to each sequence."""
        left = self._left(self._asked) if self._asked else []
        # A sequence in an open turn stays in the pool until the turn has ended, but costs nothing any more.
        left += [Turned(self._work.pop(number), done=True) for number in self._asked if number in self._work]
        self._asked = set()
        turned = []
        candidates = max((work.candidates for work in self._work.values()), default=0)
        for pool in self._pools:
            before = pool.passes
            for batch, info in pool.evaluate(candidates):
                own = [(one, self._work[one.slot]) for one in changes(batch.state, info) if one.slot in self._work]
                batch.state = settle(batch.state, [(one, work.canvas) for one, work in own])
                turned += [Turned(work, one) for one, work in own]
            self.passes += pool.passes - before
        left += self._left(set())
        if self.cached is not None:
            self.cached.forget([one.work.number for one in left])
        return [*turned, *left]

    def _left(self, asked: set[int]) -> list[Turned]:
        """Returns the sequences that are no longer worked on: finished, failed, or asked to leave."""
        left = []
        for pool in self._pools:
            gone = [(state, None) for state in pool.leave(asked)] + pool.failed
            pool.failed = []
            for state, error in gone:
                work = self._work.pop(int(state.slot), None)
                if work is not None:
                    left.append(Turned(work, done=True, error=error))
        return left


def _alike(works: Sequence[Work]) -> list[list[Work]]:
    """Returns sequences in groups of one rule, and one length of blocks."""
    groups: list[list[Work]] = []
    for work in works:
        own = work.asked.settings
        for group in groups:
            other = group[0].asked.settings
            if own.block_length == other.block_length and own.rule == other.rule:
                group.append(work)
                break
        else:
            groups.append([work])
    return groups
