"""The optimisation that all training runs share: a learning rate in three phases, AdamW, and averaged weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def share_of_rate(step: int, steps: int, warmup_steps: int, decay_steps: int) -> float:
    """Returns the learning rate of a step, as a share of that of the constant phase.

    It grows linearly over the first `warmup_steps`, stays constant, and falls linearly over the last `decay_steps`, but
    not below a hundredth.

    Args:
        step: The step, from 0.
        steps: Length of the run.
        warmup_steps: Steps of warm-up.
        decay_steps: Steps of decay.
    """
    up = min(1.0, (step + 1) / max(1, warmup_steps))
    left = (steps - step) / decay_steps if decay_steps else 1.0
    return up * max(0.01, min(1.0, left))


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Makes an AdamW optimiser with betas 0.9 and 0.98; the weight decay applies to matrices only."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


@torch.no_grad()
def move_average(average: torch.Tensor, weight: torch.Tensor, decay: float, step: int) -> None:
    """Updates the exponential moving average of a weight, in place, with its value after a step.

    During the first steps the decay is smaller than `decay`, so that the average soon forgets the initial weights.

    Args:
        average: The average, which is changed.
        weight: The weight after the step.
        decay: The decay of the average in later steps.
        step: The step, from 1.
    """
    average.lerp_(weight, 1 - min(decay, step / (step + 10)))
