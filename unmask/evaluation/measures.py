"""Further figures of samples that no one number judges, such as text."""

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
    """A task whose answers no one number judges."""

    def measures(self, tokens: Int[Tensor, "samples length"]) -> dict[str, Float[Tensor, " samples"]]:
        """Returns figures of each sample by their names."""
        ...


def measure_for(task: Task, denoiser: Denoiser, judge: str | None = None) -> Measure | None:
    """Returns what is measured of a task's answers besides its score; nothing unless the task says what.

    `nelbo`, the model's own bound on -log p of the whole sequence, special tokens apart, in nats per token; what the
    task itself measures (of text, `entropy` and `distinct_n`, see `TextTask.measures`); with a judge, `judge`: nats per
    token under that causal model.

    Args:
        task: The task.
        denoiser: The model.
        judge: Folder of a causal language model.

    Raises:
        ValueError: If a judge is given for a task that its score judges.
        AdapterError: If there is no such judge.
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
