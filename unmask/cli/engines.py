"""The options that say what carries out the work of a command: this process, or workers of Ray."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

import typer

from ..fleet.engine import Engine

ENGINES = ("ray",)


@dataclass(frozen=True)
class EngineOptions:
    """What carries out the work."""

    engine: Annotated[
        str | None, typer.Option(help="ray: workers of Ray share the work (extra ray); default: this process does it.")
    ] = None
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: how many, each with the model; default: all that fit.")
    ] = None
    worker_cpus: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: cores, and threads, of a worker; default 1.")
    ] = None
    worker_gpus: Annotated[
        float | None, typer.Option(min=0, help="With --engine ray: GPUs of a worker, such as 0.5; default 0.")
    ] = None
    address: Annotated[
        str | None, typer.Option(help="With --engine ray: a running cluster; default: RAY_ADDRESS, or this machine.")
    ] = None

    def chosen(self) -> Engine | None:
        """Returns the engine, or nothing if this process is to do the work.

        Raises:
            ValueError: If there is no such engine, or options are given that go with one.
            ImportError: If the extra `ray` is not installed.
        """
        check_engine(self, "this process")
        if self.engine is None:
            return None
        from ..fleet.cluster import Cluster
        from ..fleet.over_ray import OverRay

        return OverRay(Cluster(self.address, self.workers, self.worker_cpus or 1, self.worker_gpus or 0.0))


def check_engine(options: Any, otherwise: str) -> None:
    """Checks a dataclass of options, one of which is the engine.

    Args:
        options: The options.
        otherwise: What does the work without an engine.

    Raises:
        ValueError: If there is no such engine, or options are given that go with one.
    """
    if options.engine not in (None, *ENGINES):
        raise ValueError(f"unknown engine {options.engine!r}; there is ray, and without --engine {otherwise}")
    given = [one.name for one in fields(options) if one.name != "engine" and getattr(options, one.name) is not None]
    if options.engine is None and given:
        raise ValueError(f"--{given[0].replace('_', '-')} goes with --engine ray")


HERE = EngineOptions()
"""This process does the work."""
