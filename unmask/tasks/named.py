"""Tasks by name, for the command line and configuration files."""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .task import Task


def _antibodies() -> type[Task]:
    from .antibodies import AntibodyTask

    return AntibodyTask


def _arithmetic() -> type[Task]:
    from .arithmetic import ArithmeticTask

    return ArithmeticTask


def _instructions() -> type[Task]:
    from .instructions import InstructionTask

    return InstructionTask


def _maze() -> type[Task]:
    from .mazes import MazeTask

    return MazeTask


def _music() -> type[Task]:
    from .music import MusicTask

    return MusicTask


def _reactions() -> type[Task]:
    from .reactions import ReactionTask

    return ReactionTask


def _sudoku() -> type[Task]:
    from .sudoku import SudokuTask

    return SudokuTask


def _text() -> type[Task]:
    from .text import TextTask

    return TextTask


def _working() -> type[Task]:
    from .working import WorkingTask

    return WorkingTask


@dataclass(frozen=True)
class TaskFamily:
    """A named task: a description, and its class, whose arguments are the settings.

    Attributes:
        summary: The description, in one line.
        load: A function that imports and returns the class.
    """

    summary: str
    load: Callable[[], type[Task]]

    def settings(self) -> dict[str, inspect.Parameter]:
        """Returns the arguments of the class by name, with their types and defaults."""
        return dict(inspect.signature(self.load(), eval_str=True).parameters)


TASKS: dict[str, TaskFamily] = {
    "antibodies": TaskFamily("human antibody chains: fill in masked residues", _antibodies),
    "arithmetic": TaskFamily("sums, expressions, word problems, countdown, written as text", _arithmetic),
    "instructions": TaskFamily("short instructions about numbers, and responses that end themselves", _instructions),
    "maze": TaskFamily("the shortest path from start to end", _maze),
    "music": TaskFamily("four-part chorales: harmonise a melody, fill a gap, compose", _music),
    "reactions": TaskFamily("chemical reactions in SMILES: fill in masked tokens, or one side", _reactions),
    "sudoku": TaskFamily("9×9 puzzles with one solution", _sudoku),
    "text": TaskFamily("text by characters or subwords: fill gaps, or write from nothing", _text),
    "working": TaskFamily("problems in several steps, answered with their working or by the result alone", _working),
}


def named_task(name: str, **settings: Any) -> Task:
    """Builds a task from its name and settings; settings that are `None` count as not given.

    Args:
        name: One of `TASKS`.
        **settings: The settings that the task takes (see `TaskFamily.settings`); numbers may be given as text.

    Raises:
        ValueError: If the name is unknown, or a setting does not apply, has the wrong type or is out of range.
        DataError: If the task's data cannot be read.
    """
    family = TASKS.get(name)
    if family is None:
        raise ValueError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    takes = family.settings()
    given = {key: value for key, value in settings.items() if value is not None}
    extra = sorted(set(given) - set(takes))
    if extra:
        raise ValueError(f"{', '.join(extra)} does not apply to the task {name}; it takes {', '.join(sorted(takes))}")
    used = {key: _parse(key, value, takes[key].annotation) for key, value in given.items()}
    return family.load()(**used)


def saved_settings(task: Task, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings to store with a trained model, with which `named_task` builds a task that fits the model.

    They include the vocabulary of a text task, because another text would have other characters.

    Args:
        task: The task.
        settings: The settings that it was built with.
    """
    vocabulary = getattr(task, "vocabulary", None)
    return {**settings, "vocabulary": vocabulary} if vocabulary else dict(settings)


def _parse(name: str, value: Any, annotation: Any) -> Any:
    if typing.get_origin(annotation) is typing.Literal:
        options = typing.get_args(annotation)
        if value not in options:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(map(str, options))}")
        return value
    kinds = typing.get_args(annotation) or (annotation,)
    kind = next((kind for kind in (int, float) if kind in kinds), None)
    if kind is None:
        if not isinstance(value, (str, Path)):
            raise ValueError(f"{name} must be text, got {value!r}")
        return str(value)
    number = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            number = kind(value)
    if isinstance(number, bool) or not isinstance(number, (int, kind)):
        raise ValueError(f"{name} must be {'a whole number' if kind is int else 'a number'}, got {value!r}")
    return kind(number)
