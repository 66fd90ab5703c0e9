"""Further measures of samples whose quality no single number describes, such as text."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Denoiser, device_of
from ..likelihood.nelbo import nelbo
from ..schedule import Linear
from ..tasks.task import Foreign, Task, own_lengths
from .study import Measure


@runtime_checkable
class Measured(Protocol):
    """A task with measures of its answers besides the score."""

    def measures(self, tokens: Int[Tensor, "samples length"]) -> dict[str, Float[Tensor, " samples"]]:
        """Returns measures of each sample, by name."""
        ...


def measure_for(task: Task, denoiser: Denoiser, judge: str | None = None) -> Measure | None:
    """Returns a function that measures a task's answers besides the score, or `None` if the task has no such measures.

    The measures are `nelbo`, the model's own bound on `-log p` of the whole sequence without its special tokens, in
    nats per token; those of the task (for text `entropy` and `distinct_n`, see `TextTask.measures`); and with a judge
    `judge`, the negative log-likelihood under that model (for the unit, see `load_judge`).

    Args:
        task: The task.
        denoiser: The model.
        judge: Folder of a causal language model, or another name that `load_judge` takes.

    Raises:
        ValueError: If a judge is given for a task without such measures.
        AdapterError: If the judge cannot be loaded, or does not fit the task.
    """
    if not isinstance(task, Measured):
        if judge is not None:
            raise ValueError(f"--judge goes with the task text, not with {task.name}")
        return None
    from .judge import load_judge

    score = None if judge is None else load_judge(judge, task, device_of(denoiser))

    def measure(tokens: Int[Tensor, "samples length"]) -> dict[str, Float[Tensor, " samples"]]:
        x, scored = tokens.to(device_of(denoiser)), None
        if isinstance(task, Foreign):
            x, scored = own_lengths(task, x)
        found = nelbo(denoiser, x, maskable=scored, strata=12, replicates=2, seed=0, schedule=Linear())
        figures = {"nelbo": found.per_token.double().cpu(), **task.measures(tokens)}
        if score is not None:
            figures["judge"] = torch.cat([score(part) for part in tokens.split(64)])
        return figures

    return measure
