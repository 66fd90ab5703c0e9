"""Reaching a cluster of Ray, or starting one of this machine (extra `ray`)."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ..checks import needs_extra
from ..errors import UnmaskError

with needs_extra("ray", "--engine ray"):
    import ray
    from ray.exceptions import RayError

_SPARE = 2
"""Slots of a cluster that is started here beyond those of the workers: they hold theirs to the end, and whatever else
Ray runs would wait for ever."""

_PATIENCE = 10.0
"""Seconds within which a cluster must answer."""


@dataclass(frozen=True)
class Cluster:
    """Which cluster, and what of it is used.

    Attributes:
        address: Of a running cluster: `host:port`, `ray://host:port` or `auto`. `None`: the one that `RAY_ADDRESS`
            names, or else this machine.
        workers: How many workers there are, each with a model of its own; default: as many as fit.
        cpus: Processor cores of each; a worker on a processor computes with so many threads.
        gpus: GPUs of each.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    gpus: float = 0.0

    @contextlib.contextmanager
    def connected(self) -> Iterator[int]:
        """Connects to the cluster, or starts one here, for as long as the block runs.

        Yields:
            The number of workers.

        Raises:
            UnmaskError: If the cluster cannot be reached, or no machine of it has room for a worker.
        """
        mine = not ray.is_initialized()
        # Ray prints what befalls workers, whatever it is told; the standard output is for results.
        with contextlib.redirect_stdout(sys.stderr):
            if mine:
                self._connect()
            try:
                yield self._fitting()
            finally:
                if mine:
                    ray.shutdown()

    def _connect(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if not os.environ.get("UNMASK_DEBUG"):
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of its C++, which writes to standard error
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address in (None, "local"):
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody unasked
            slots = max(os.cpu_count() or 1, (self.workers or 1) * self.cpus) + _SPARE
            try:
                ray.init(address="local", num_cpus=slots, include_dashboard=False, **quiet)
            except Exception as error:  # a bare one, if a process of Ray does not start in time
                raise UnmaskError(f"Ray could not be started on this machine: {str(error).splitlines()[0]}") from error
            return
        try:
            _knock(str(address))
            ray.init(address=address, **quiet)
        except (RayError, RuntimeError, ValueError, OSError) as error:
            said = str(error).split("\n")[0][:200]
            raise UnmaskError(
                f"cannot reach a Ray cluster at {address} ({said}); check the address, run this command on a machine of"
                " the cluster (`ray status` works there), or leave --address out to use this machine alone"
            ) from None

    def _fitting(self) -> int:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        counts = [self._room(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
        room = sum(counts)
        if not room:
            raise UnmaskError(
                f"no machine of the cluster has room for a worker of {self.cpus} cores and {self.gpus:g} GPUs: lower"
                " --worker-cpus or --worker-gpus, or add such a machine first"
            )
        if self.workers is not None:
            return self.workers
        here = len(nodes) == 1 and not self.gpus
        return max(1, min(room, (os.cpu_count() or 1) // self.cpus)) if here else room

    def _room(self, cpus: float, gpus: float) -> int:
        room = int(cpus // self.cpus)
        return min(room, int(gpus / self.gpus + 1e-9)) if self.gpus else room


def _knock(address: str) -> None:
    """Raises `OSError` if nobody listens at an address, or `ValueError` if it is none: Ray would wait for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is host:port, ray://host:port or auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
