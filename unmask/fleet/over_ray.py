"""Work carried out by Ray Data: actors that hold a model each, restarted if they die, their work done again."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .cluster import Cluster, ray  # first: it says which extra is missing

import ray.data  # isort: skip
from ray.exceptions import RayError  # isort: skip

from ..errors import UnmaskError
from .engine import Make

_SAID = (UnmaskError, ValueError, OSError, ImportError)
"""Errors that say in a line what is wrong; others are Ray's, or bugs."""
_AT_ONCE = 1
"""Pieces of work that a worker has at a time. One more would wait for a worker that died, until it is back."""


@dataclass(frozen=True)
class Sent:
    """An object that Ray carries as it is: it takes tuples and dictionaries apart, into columns."""

    what: Any


@dataclass(frozen=True)
class OverRay:
    """An engine (see `unmask.fleet.engine`) whose workers are actors of Ray.

    Attributes:
        cluster: Where they run.
    """

    cluster: Cluster

    def __call__(self, make: Make[Any, Any], work: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        """Carries out every piece of work once; see `Engine`.

        Raises:
            UnmaskError: If the cluster cannot be reached, or a worker cannot be made or fails.
        """
        if not work:
            return
        with self.cluster.connected() as workers:
            _quiet()
            try:
                yield from self._carried_out(make, work, min(workers, len(work)))
            except RayError as error:
                if os.environ.get("UNMASK_DEBUG"):
                    raise
                raise UnmaskError(_plain(error)) from None

    def _carried_out(
        self, make: Make[Any, Any], work: Sequence[tuple[int, Any]], workers: int
    ) -> Iterator[tuple[int, Any]]:
        items = [{"number": number, "piece": Sent(piece)} for number, piece in work]
        found = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            _Worker,
            fn_constructor_args=[make],
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=_AT_ONCE),
            num_cpus=self.cluster.cpus,
            num_gpus=self.cluster.gpus or None,
        )
        for row in found.iter_rows():
            done, value = row["found"].what
            if not done:
                raise UnmaskError(value)
            yield int(row["number"]), value


class _Worker:
    """An actor: makes a worker once, and hands it a piece of work at a time.

    What is wrong in a known way goes back as a value: an exception would be tried again, and wrapped several times.
    """

    def __init__(self, make: Make[Any, Any]) -> None:
        self.do, self.failure = None, ""
        try:
            self.do = make()
        except _SAID as error:
            self.failure = _located(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = np.empty(len(batch["piece"]), dtype=object)
        found[:] = [Sent(self._found(piece.what)) for piece in batch["piece"]]
        return {"number": batch["number"], "found": found}

    def _found(self, piece: Any) -> tuple[bool, Any]:
        if self.do is None:
            return False, self.failure
        try:
            return True, self.do(piece)
        except _SAID as error:
            return False, _located(error)


def _located(error: Exception) -> str:
    said = " ".join(str(error).split("\n"))
    if isinstance(error, ImportError):
        said += "; install the same extras on every machine of the cluster as here, such as 'unmask[ray,train]'"
    return f"worker on {socket.gethostname()}: {said}"


def _plain(error: Exception) -> str:
    """Says in a line why Ray gave up."""
    text = str(error)
    missing = re.search(r"No module named '([\w.]+)'", text)
    if missing:
        return (
            f"a worker has no module {missing[1]}: install the same extras on every machine of the cluster as here,"
            " such as 'unmask[ray,train]'"
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"a worker failed: {lines[-1] if lines else type(error).__name__}; UNMASK_DEBUG=1 shows all that Ray says"


def _quiet() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
