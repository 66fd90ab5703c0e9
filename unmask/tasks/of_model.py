"""Finds the task that a model was trained on, from the model's folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AdapterError
from ..folders import EMBEDDED, model_folder
from ..models.networks import coconet
from ..models.networks.checkpoint import of_transformers, read_checkpoint
from .named import TASKS, named_task
from .task import Task


def task_of(model: str | Path, **settings: Any) -> Task:
    """Builds the task that a model was trained on, with the vocabulary it was trained with.

    Args:
        model: The model, as in `unmask.load`.
        **settings: Settings of the task that replace those of the training, such as `data` or `gaps` of text.

    Raises:
        AdapterError: If there is no such model, or it does not say which task it was trained on.
        ValueError: If a setting does not apply to the task, or is out of range.
        DataError: If the task's data cannot be read or does not fit the vocabulary.
    """
    with model_folder(model) as folder:
        task = _said_task(folder)
    if not isinstance(task, dict) or "name" not in task or not isinstance(task.get("settings"), dict):
        raise AdapterError(f"{folder / 'config.json'} does not say which task the model was trained on")
    return named_task(task["name"], **{**task["settings"], **settings})


@dataclass(frozen=True)
class Training:
    """The training of a model, as its folder describes it.

    Attributes:
        task: Name of the task; `None` if the folder does not say it.
        settings: The settings of the task, without the vocabulary.
        vocabulary: The characters of a text task, in the order of their ids; `None` if the folder does not say them.
        objective: `"masked"`, or `"causal"` for an autoregressive judge.
    """

    task: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    vocabulary: str | None = None
    objective: str = "masked"


def trained_on(model: str | Path) -> Training:
    """Reads from a model's folder what it was trained on, without loading the model.

    Args:
        model: The model, as in `unmask.load`.

    Raises:
        AdapterError: If there is no such model, or its `config.json` cannot be read.
    """
    with model_folder(model) as folder:
        said = _said_task(folder)
        ours = not coconet.is_coconet(folder) and not of_transformers(folder)
        objective = read_checkpoint(folder).objective if ours else "masked"
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return Training(objective=objective)
    settings = dict(said["settings"]) if isinstance(said.get("settings"), dict) else {}
    vocabulary = settings.pop("vocabulary", None)
    return Training(said["name"], settings, vocabulary if isinstance(vocabulary, str) else None, objective)


def embedded_for(task: str) -> str:
    """Returns the name of the embedded model of a task: the one with the task's name, or else the one trained on it.

    Raises:
        ValueError: If there is no such task, or not exactly one such model.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    if task in EMBEDDED:
        return task
    found = [model for model in EMBEDDED if trained_on(model).task == task]
    if len(found) != 1:
        which = f"one of {', '.join(found)}" if found else "no embedded model was trained on it"
        raise ValueError(f"the task {task} needs a model: {which}; give --model")
    return found[0]


def _said_task(folder: Path) -> Any:
    if coconet.is_coconet(folder):
        return {"name": "music", "settings": {}}
    if of_transformers(folder):
        from ..models.pretrained.masked_lm import about_of

        return (about_of(folder) or {}).get("task")
    checkpoint = read_checkpoint(folder)
    return {"name": "sudoku", "settings": {}} if checkpoint.network == "sudoku" else checkpoint.task
