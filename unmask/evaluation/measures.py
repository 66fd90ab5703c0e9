"""Further figures of text samples: never one number."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Denoiser, device_of
from ..likelihood.nelbo import nelbo
from ..schedule import Linear
from ..tasks.task import Task
from .study import Measure

GRAM = 4
"""The n of distinct-n."""


def measure_for(task: Task, denoiser: Denoiser, judge: str | None = None) -> Measure | None:
    """Returns what is measured of a task's answers besides its score; nothing but for text.

    Text: `nelbo`, the model's own bound on -log p of the whole sequence, in nats per token; `entropy`, of the tokens
    within each sample, in nats; `distinct_n`, the share of different 4-grams; with a judge, `judge`: nats per token
    under that causal model.

    Args:
        task: The task.
        denoiser: The model.
        judge: Folder of a causal language model.

    Raises:
        ValueError: If a judge is given for anything but text.
        AdapterError: If there is no such judge.
    """
    if task.name != "text":
        if judge is not None:
            raise ValueError(f"--judge goes with the task text, not with {task.name}")
        return None
    from ..tasks.text import distinct_n, unigram_entropy
    from .judge import load_judge

    score = None if judge is None else load_judge(judge, task, device_of(denoiser))

    def measure(tokens: Int[Tensor, "samples length"]) -> dict[str, Float[Tensor, " samples"]]:
        x = tokens.to(device_of(denoiser))
        found = nelbo(denoiser, x, strata=12, replicates=2, seed=0, schedule=Linear())
        figures = {
            "nelbo": found.per_token.double().cpu(),
            "entropy": unigram_entropy(tokens),
            "distinct_n": distinct_n(tokens, GRAM),
        }
        if score is not None:
            figures["judge"] = torch.cat([score(part) for part in tokens.split(64)])
        return figures

    return measure
