"""What runs of every kind share: one process per folder, which recipes continue a run, a log that survives a kill."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from unmask.errors import UnmaskError
from unmask.files.reading import why
from unmask.files.writing import write_atomically
from unmask.viewing.progress import progress as shared_progress


@contextlib.contextmanager
def computing(out: Path, threads: int) -> Iterator[None]:
    """Makes the folder of a run and computes with so many threads; on leaving, there are as many as before.

    Raises:
        UnmaskError: If a file cannot be written, for instance on a full disk.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UnmaskError(
            f"could not write to {out}: {why(error)}; the last saved state is intact, make room and run again to resume"
        ) from error
    finally:
        torch.set_num_threads(before)


def continues(path: Path, old: Mapping[str, Any], new: Mapping[str, Any], step: int) -> bool:
    """Whether a recipe continues the run of another with changes (`True`), or without any (`False`).

    `steps` and `decay_steps` may change until the decay begins; until then they change nothing that was computed.

    Args:
        path: Where the old recipe lies.
        old: The recipe of the run so far.
        new: The recipe asked for.
        step: How far the run is.

    Raises:
        ValueError: If it does not continue the run; the message names what differs.
    """
    changed = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    before_decay = step <= min(one["steps"] - one["decay_steps"] for one in (old, new))
    if set(changed) - {"steps", "decay_steps"} or (changed and not before_decay):
        differences = ", ".join(f"{name}: {old.get(name)!r} there, {new.get(name)!r} asked" for name in changed)
        raise ValueError(
            f"{path.parent} holds another run ({differences}), now at step {step}; resume with the recipe in {path} "
            "(steps and decay_steps may change until the decay begins), or train into another folder"
        )
    return bool(changed)


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
    """Shows how far a run is, with a note: a bar on a terminal, otherwise a line every ten seconds."""
    with shared_progress(note=True) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)
