"""The folder of a training run: a lock, the check that a recipe continues the run, and logs that survive a crash."""

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
    """Makes the folder of a run and sets PyTorch's number of threads within a `with` block.

    Args:
        out: The folder.
        threads: The number of threads; afterwards the old number is restored.

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
    """Checks that a recipe may continue a run, and returns whether it changes the run's recipe.

    `steps` and `decay_steps` may change until the decay begins, because until then they do not affect the weights.

    Args:
        path: The file of the old recipe, in the folder of the run.
        old: The recipe of the run so far.
        new: The new recipe.
        step: The number of steps taken so far.

    Raises:
        ValueError: If the new recipe cannot continue the run. The message names the differences.
    """
    changed = sorted(name for name in {**old, **new} if old.get(name) != new.get(name))
    before_decay = step <= min(one["steps"] - one["decay_steps"] for one in (old, new))
    if set(changed) - {"steps", "decay_steps"} or (changed and not before_decay):
        differences = ", ".join(f"{name}: {old.get(name)!r} there, {new.get(name)!r} here" for name in changed)
        raise ValueError(
            f"{path.parent} holds another run ({differences}), now at step {step}; resume with the recipe in {path} "
            "(steps and decay_steps may change until the decay begins), or train into another folder"
        )
    return bool(changed)


@contextlib.contextmanager
def log(path: Path, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Opens a JSONL log, and yields a function that appends a line to it.

    Lines of steps after `step`, which a resumed run takes again, are dropped first, and so is a half-written last line.

    Args:
        path: The file; made if missing.
        step: The step from which the run continues.
    """
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
    """Shows the progress of a run: a bar on a terminal, and otherwise a line every ten seconds.

    Args:
        what: What is counted, such as `"steps"`.
        total: The final count.

    Yields:
        A function that takes the count so far and a note to show beside it.
    """
    with shared_progress(note=True) as bar:
        task = bar.add_task(what, total=total, note="")
        yield lambda done, note: bar.update(task, completed=done, note=note)
