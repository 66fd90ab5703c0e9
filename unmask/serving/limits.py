"""What a server takes on, and how it says that something is too much."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a server takes on at once.

    Attributes:
        rows: Sequences of a model worked on at once.
        tokens: Positions of a forward pass of a model, padding included: sequences times the longest of them.
        queue: Sequences of a model that wait.
        seconds: Time of a request, from when it is accepted.
        overtaking: Sequences that may be admitted before one that waits for room, and came earlier.
        answers: Sequences of one request.
        body: Bytes of a request.
        slow: Seconds in which the head of a request must be there, and in which its body must.
        connections: Open connections.
    """

    rows: int = 64
    tokens: int = 16384
    queue: int = 1024
    seconds: float = 300.0
    overtaking: int = 16
    answers: int = 128
    body: int = 1 << 20
    slow: float = 10.0
    connections: int = 2048


class Full(Exception):
    """The queue is full.

    Attributes:
        seconds: When it may be worth while to ask again.
    """

    def __init__(self, waiting: int, seconds: float) -> None:
        self.seconds = seconds
        super().__init__(f"{waiting} sequences are waiting already; ask again in {seconds:.0f} s")
