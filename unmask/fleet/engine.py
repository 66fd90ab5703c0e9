"""What carries out pieces of work: this process here; several at once with Ray in `unmask.fleet.over_ray`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

Payload = TypeVar("Payload")
Found = TypeVar("Found")

Make = Callable[[], Callable[[Payload], Found]]
"""Makes a worker, which may take long (it loads a model): a function of one piece of work. It can be pickled."""


class Engine(Protocol):
    """Carries out pieces of work that do not depend on each other."""

    def __call__(self, make: Make[Any, Any], work: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Carries out every piece of work once.

        Args:
            make: Makes a worker.
            work: Numbers and pieces of work, which can be pickled.

        Yields:
            The number of each piece and what the worker returned for it, in any order.
        """
        ...


def here(make: Make[Payload, Found], work: Sequence[tuple[int, Payload]]) -> Iterator[tuple[int, Found]]:
    """Carries out work in this process, piece by piece in the order given."""
    do = make() if work else None
    for number, piece in work:
        assert do is not None
        yield number, do(piece)
