"""Which sequences are worked on next: as many as there is room for, with requests taking turns.

The scheduler handles only numbers and lengths, no tensors. A forward pass costs its rows times the length of the
longest of them, so this product is limited. Among the waiting requests, the one with the fewest sequences at work goes
first, and of equals the oldest. So a request for a hundred answers does not hold up a request for one, and still gets
its share. Others may overtake a sequence that does not fit yet, but only a limited number of times; then room is kept
free until it fits.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from .limits import Full, Limits

SHORTEST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds after which to ask again when the queue is full: no less, and no more."""


@dataclass
class _Request:
    name: str
    arrived: int
    deadline: float
    waiting: deque[tuple[int, int]]  # numbers and lengths
    running: dict[int, int] = field(default_factory=dict)
    overtaken: int = 0


class Scheduler:
    """Decides which sequences of a model are worked on.

    Args:
        limits: Limits on the rows and positions of a forward pass, and on the queue.

    Attributes:
        waiting: How many sequences wait.
        running: The lengths of those that are worked on, by number.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.waiting = limits, 0
        self.running: dict[int, int] = {}
        self._requests: dict[str, _Request] = {}
        self._owner: dict[int, _Request] = {}
        self._arrivals = 0
        self._pace, self._last = 0.0, 0.0  # seconds from one sequence finished to the next, lately

    def check(self, lengths: Sequence[int]) -> None:
        """Raises `ValueError` if sequences could never be worked on."""
        if len(lengths) > self.limits.answers:
            raise ValueError(f"a request is for at most {self.limits.answers} answers, got {len(lengths)}")
        if max(lengths) > self.limits.tokens:
            raise ValueError(
                f"prompt and answer are {max(lengths)} tokens; this server takes {self.limits.tokens} at once"
            )

    def submit(self, name: str, sequences: Sequence[tuple[int, int]], now: float) -> None:
        """Takes a request into the queue.

        Args:
            name: The name that identifies it from now on.
            sequences: A number and a length for each sequence.
            now: The time, in seconds.

        Raises:
            ValueError: If it could never be worked on.
            Full: If the queue has no room for it.
        """
        self.check([length for _, length in sequences])
        if self.waiting + len(sequences) > self.limits.queue:
            raise Full(self.waiting, self.patience())
        self._arrivals += 1
        request = _Request(name, self._arrivals, now + self.limits.seconds, deque(sequences))
        self._requests[name] = request
        self._owner |= dict.fromkeys((number for number, _ in sequences), request)
        self.waiting += len(sequences)

    def patience(self) -> float:
        """Seconds until the queue will have moved on, at its recent pace."""
        return min(max(math.ceil(self._pace * self.waiting), SHORTEST_WAIT), LONGEST_WAIT)

    def admit(self) -> list[int]:
        """Returns the numbers of the sequences that are worked on from now on."""
        admitted: list[int] = []
        if len(self.running) >= self.limits.rows:
            return admitted
        queue = sorted((one for one in self._requests.values() if one.waiting), key=_turn)
        while queue:
            room = self._room()
            place = next((place for place, one in enumerate(queue) if one.waiting[0][1] <= room), None)
            if place is None or any(one.overtaken >= self.limits.overtaking for one in queue[:place]):
                break
            request = queue.pop(place)
            for other in queue[:place]:
                other.overtaken += 1
            number, length = request.waiting.popleft()
            request.overtaken = 0
            request.running[number] = self.running[number] = length
            self.waiting -= 1
            admitted.append(number)
            if request.waiting:
                queue.append(request)
                queue.sort(key=_turn)
        return admitted

    def _room(self) -> int:
        """Returns the length up to which one more sequence fits."""
        rows, longest = len(self.running) + 1, max(self.running.values(), default=0)
        most = self.limits.tokens // rows
        return most if rows <= self.limits.rows and longest <= most else 0

    def finish(self, number: int, now: float) -> None:
        """Makes room: a sequence is finished, has failed, or has left."""
        request = self._owner.pop(number)
        del self.running[number], request.running[number]
        gap = min(now - self._last, LONGEST_WAIT) if self._last else 0.0
        self._pace, self._last = 0.9 * self._pace + 0.1 * gap, now
        self._forget(request)

    def cancel(self, name: str) -> list[int]:
        """Takes a request out of the queue; returns the numbers of its sequences at work, which have yet to leave."""
        request = self._requests.get(name)
        if request is None:
            return []
        self.waiting -= len(request.waiting)
        for number, _ in request.waiting:
            del self._owner[number]
        request.waiting.clear()
        running = list(request.running)
        self._forget(request)
        return running

    def _forget(self, request: _Request) -> None:
        if not request.waiting and not request.running:
            self._requests.pop(request.name, None)

    def expired(self, now: float) -> list[str]:
        """Returns the requests that have run out of time."""
        return [one.name for one in self._requests.values() if now >= one.deadline]

    @property
    def busy(self) -> bool:
        """Whether any sequence waits or is worked on."""
        return bool(self._requests)


def _turn(request: _Request) -> tuple[int, int]:
    return len(request.running), request.arrived
