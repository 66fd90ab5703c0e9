"""How far a long computation is: a bar on a terminal, elsewhere a line every ten seconds, on standard error."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

EVERY = 10.0
"""Seconds between two lines."""


@dataclass
class _Job:
    description: str
    total: float | None
    completed: float
    note: str


class ProgressLines:
    """Tells every few seconds, in a line, how far the last job is that was added.

    The lines come from a thread of their own, so that a step that takes minutes is not silent either; a computation
    that ends before the first line prints nothing. It is used as rich's `Progress` is.

    Args:
        stream: Where to write; default: standard error.
        every: Seconds between two lines.
    """

    def __init__(self, stream: TextIO | None = None, every: float = EVERY) -> None:
        self.stream, self.every = stream, every
        self._jobs: list[_Job] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._began = time.monotonic()

    def __enter__(self) -> ProgressLines:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def add_task(self, description: str, total: float | None = 100.0, completed: float = 0, **fields: Any) -> TaskID:
        """Begins a job and returns its number."""
        self._jobs.append(_Job(description, total, completed, str(fields.get("note", ""))))
        return TaskID(len(self._jobs) - 1)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Notes that so much more of a job is done."""
        self._jobs[task_id].completed += advance

    def update(self, task_id: TaskID, *, completed: float | None = None, note: str | None = None) -> None:
        """Notes how much of a job is done, and a word about it."""
        job = self._jobs[task_id]
        job.completed = job.completed if completed is None else completed
        job.note = job.note if note is None else note

    def _run(self) -> None:
        while not self._done.wait(self.every):
            # A stream that is closed, or a reader that has gone, does not stop the work.
            with contextlib.suppress(OSError, ValueError):
                print(self._line(), file=self.stream or sys.stderr, flush=True)

    def _line(self) -> str:
        seconds = f"{time.monotonic() - self._began:.0f} s"
        if not self._jobs:
            return f"working, {seconds}"
        job = self._jobs[-1]
        of = "" if job.total is None else f" of {job.total:g}"
        return f"{job.description}: {job.completed:g}{of}, {seconds}  {job.note}".rstrip()


def progress(console: Console | None = None, bar: bool = True, note: bool = False) -> Progress | ProgressLines:
    """Shows progress on standard error: a bar where that is a terminal, else a line every ten seconds.

    Args:
        console: The console of standard error.
        bar: Whether a bar may be drawn; without it there are lines on a terminal too.
        note: Whether jobs carry a note, a field that is shown last.
    """
    console = console or Console(stderr=True)
    if not (bar and console.is_terminal):
        return ProgressLines()
    notes = [TextColumn("{task.fields[note]}")] if note else []
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *notes,
        TimeRemainingColumn(),
        console=console,
        transient=not note,
    )
