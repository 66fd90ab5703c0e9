"""What runs of every kind share: one process per folder, a log that survives a kill, a progress bar."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unmask.models.networks.checkpoint import write_atomically


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Keeps a second process from training in the same folder, and removes what a killed one left half-written.

    Raises:
        ValueError: If another process is training there.
    """
    with (out / ".lock").open("w") as lock:
        with contextlib.suppress(ImportError):  # no fcntl on Windows
            import fcntl

            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(f"another process is training in {out}") from error
        for left in out.glob(".*.tmp"):
            left.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def log(path: Path, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Appends lines to a JSONL log, after dropping those of steps that are to be taken again."""
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # the last line may be half-written
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
    write_atomically(path, "".join(kept).encode())
    with path.open("a") as file:

        def write_line(line: dict[str, Any]) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        yield write_line


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A rich progress bar on a terminal, otherwise a line now and then."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, note="")
            yield lambda done, note: bar.update(task, completed=done, note=note)
        return
    began, last = time.monotonic(), -math.inf

    def line(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= 30 or done == total:
            last = now
            print(f"{what} {done}/{total}  {now - began:.0f} s  {note}".rstrip(), file=sys.stderr, flush=True)

    yield line
