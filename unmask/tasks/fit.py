"""Checks that a model fits a task, by the task it was trained on, its objective, its tokens and its length."""

from __future__ import annotations

from pathlib import Path

from ..denoiser import Denoiser
from ..errors import AdapterError, UnmaskError
from ..folders import EMBEDDED
from .of_model import trained_on
from .task import Task


def check_model(model: str | Path, denoiser: Denoiser, task: Task) -> None:
    """Refuses a model that was trained on another task, is causal, or has other tokens or another length.

    Args:
        model: Name or folder of the model, as for `unmask.load`.
        denoiser: The loaded model.
        task: The task that it is to be used for.

    Raises:
        AdapterError: If the model does not fit. The message names both, and embedded models that fit.
    """
    known = trained_on(model)
    if known.objective == "causal":
        raise AdapterError(
            f"the model {str(model)!r} is causal: it judges {known.task or 'samples'} and cannot fill in masks of the"
            f" task {task.name}{_others(task)}"
        )
    if known.task is not None and known.task != task.name:
        raise AdapterError(
            f"the model {str(model)!r} was trained on the task {known.task}, not on {task.name}: they do not belong"
            f" together{_others(task)}"
        )
    found, wanted = (denoiser.vocab_size, denoiser.mask_id), (task.vocab_size, task.mask_id)
    if found != wanted:
        raise AdapterError(
            f"the model {str(model)!r} has {found[0]} token ids with mask {found[1]}, the task {task.name} has"
            f" {wanted[0]} with mask {wanted[1]}: they do not belong together{_others(task)}"
        )
    vocabulary = getattr(task, "vocabulary", None)
    if known.vocabulary is not None and vocabulary and known.vocabulary != vocabulary:
        raise AdapterError(
            f"the model {str(model)!r} was trained on other characters than the task {task.name} has here: give the"
            " task the text, or the vocabulary, that the model was trained with"
        )
    length = getattr(denoiser, "length", None)
    if length is not None and length != task.length:
        settings = ",".join(f"{key}={value}" for key, value in known.settings.items())
        trained = f"; it was trained on the task {known.task}:{settings}" if settings else ""
        raise AdapterError(
            f"the model {str(model)!r} takes sequences of {length} tokens, those of the task {task.name} have"
            f" {task.length} with these settings{trained}"
        )


def _others(task: Task) -> str:
    """Returns advice that names the embedded models of a task, for a message; empty if there are none."""
    names = []
    for name in EMBEDDED:
        try:
            known = trained_on(name)
        except UnmaskError:
            continue
        if known.task == task.name and known.objective == "masked":
            names.append(name)
    return f"; give one of {task.name}, such as {' or '.join(names)}" if names else ""
