"""The task that a model was trained on, as its folder says."""

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
    """Builds the task a model was trained on, with the vocabulary it was trained with.

    Args:
        model: As in `load`.
        **settings: Settings of the task that replace those of the training, such as `data` or `gaps` of text.

    Raises:
        AdapterError: If there is no such model, or it does not say what it was trained on.
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
    """What a model says it was trained on.

    Attributes:
        task: Name of the task, or `None` if it does not say.
        settings: The settings of the task, the vocabulary apart.
        vocabulary: The characters of a text, in the order of their ids, if it says.
        objective: `"masked"`, or `"causal"` for a judge that reads from left to right.
    """

    task: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    vocabulary: str | None = None
    objective: str = "masked"


def trained_on(model: str | Path) -> Training:
    """Reads what a model says it was trained on; nothing is loaded.

    Args:
        model: As in `load`.

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
    """Returns the name of the embedded model of a task: the one named like it, or else the one trained on it.

    Raises:
        ValueError: If there are several, or none, or no such task.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; choose one of {', '.join(TASKS)}")
    if task in EMBEDDED:
        return task
    found = [model for model in EMBEDDED if trained_on(model).task == task]
    if len(found) != 1:
        which = f"one of {', '.join(found)}" if found else "none is embedded for it"
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
