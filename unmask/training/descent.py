"""What every network of this package is trained with: a learning rate in three phases, AdamW, averaged weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def share_of_rate(step: int, steps: int, warmup_steps: int, decay_steps: int) -> float:
    """The learning rate of a step as a share of that of the constant phase.

    It grows linearly over the first `warmup_steps`, stays, and falls linearly over the last `decay_steps`, to no less
    than a hundredth.
    """
    up = min(1.0, (step + 1) / max(1, warmup_steps))
    left = (steps - step) / decay_steps if decay_steps else 1.0
    return up * max(0.01, min(1.0, left))


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas 0.9 and 0.98; only matrices decay."""
    every = list(parameters)
    groups = [
        {"params": [p for p in every if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


@torch.no_grad()
def move_average(average: torch.Tensor, weight: torch.Tensor, decay: float, step: int) -> None:
    """Moves an average of a weight, in place, towards its value after a step.

    It is an exponential average of this decay, which starts as the plain mean over the first steps.
    """
    average.lerp_(weight, 1 - min(decay, step / (step + 10)))
