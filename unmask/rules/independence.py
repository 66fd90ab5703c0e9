"""Admitting what a test finds independent: extra evaluations in every step, instead of a measurement beforehand."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sampling.view import View
from .budget import leading, no_memory


@dataclass(frozen=True)
class IndependenceTest:
    """All candidates that drafts of the others leave where they are, to `epsilon` nats; always the first (PUNT).

    With `n` candidates ranked, a step makes up to `⌈log₂ n⌉` further evaluations, all of which count (see
    `unmask.independence`). As a budget by itself, where nothing can be tested, it takes the first candidate.

    Which positions are taken depends on tokens that were drawn, so not even `epsilon = 0` is exact in general.

    Args:
        epsilon: The largest `KL(p_i given the drafts ‖ p_i)`, in nats, that counts as no influence.

    Raises:
        ValueError: If `epsilon` is not a finite number >= 0.

    References:
        Azangulov et al. (2025), arXiv:2510.21961: parallel unmasking with non-influence tests.
    """

    epsilon: float
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number of nats >= 0, got {self.epsilon}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        first = torch.ones_like(ranked.position[:, 0])
        return leading(first, ranked.candidate) & ranked.candidate, ranked.memory
