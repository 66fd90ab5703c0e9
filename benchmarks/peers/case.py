"""One way to run a peer's loop, and what the files of `loops` need to import it from a clone."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from .enumerated import Process
from .oracle import Answers


@dataclass(frozen=True)
class Case:
    """One way to run a peer's loop.

    Attributes:
        label: Which settings.
        rule: The rule whose law it claims, by name.
        run: Returns so many sequences, given the model.
        batched: Whether it takes more than one sequence at a time.
        shift: Whether it expects the logits of a position at the one before it.
        largest: The largest batch that it is timed with; none: the largest there is.
        mixed: Whether sequences of a batch can begin with different tokens.
        instead: What its code does if that is something else, so that the law of that can be enumerated.
        does_so: How the sequences are drawn that this is said of: `alone`, or `mixed` if it is right alone.
    """

    label: str
    rule: str
    run: Callable[[Answers, int], Tensor]
    batched: bool = True
    shift: bool = False
    largest: int | None = None
    mixed: bool = False
    instead: Process | None = None
    does_so: str = "alone"


_borrowed: set[str] = set()


def _borrow(name: str, module: ModuleType) -> None:
    """Puts a module in the place of that name."""
    _borrowed.add(name)
    sys.modules[name] = module


@contextmanager
def borrowed_names() -> Iterator[None]:
    """Gives the names of modules back that a clone has taken, when its loops have run: clones take the same ones."""
    before = dict(sys.modules)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if any(f"{name}.".startswith(f"{own}.") for own in _borrowed)]:
            del sys.modules[name]
        # With all that belongs to them: without json.decoder the json of others would fail.
        sys.modules.update({name: known for name, known in before.items() if name not in sys.modules})
        _borrowed.clear()


def check(file: Path) -> None:
    """Raises `SystemExit` if a file of a clone is not there."""
    if not file.is_file():
        raise SystemExit(f"{file} is not there: expected a clone of the peer's repository")


def load(file: Path, name: str) -> ModuleType:
    """Imports one file of a clone.

    Raises:
        SystemExit: If it is not there.
    """
    check(file)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _borrow(name, module)
    spec.loader.exec_module(module)
    return module


def import_from(folder: Path, name: str) -> ModuleType:
    """Imports a package that lies in a folder, also where another version of it is imported already."""
    _borrowed.add(name)
    for known in [known for known in sys.modules if f"{known}.".startswith(f"{name}.")]:
        del sys.modules[known]
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))


def stand_in(name: str, folder: Path | None = None, **names: Any) -> None:
    """Puts an empty module in the place of one of a clone, with some names; with a folder, its submodules are found."""
    module = ModuleType(name)
    vars(module).update(names)
    if folder is not None:
        module.__path__ = [str(folder)]
    _borrow(name, module)
