"""Masking schedules: the probability `α(t)` that a token is still unmasked at time `t`.

Time runs from 1 (everything masked, `α = 0`) to 0 (nothing masked, `α = 1`). The schedule says how fast tokens are
unmasked. The law of a time-agnostic masked diffusion model does not depend on it; the steps of a time grid do.

References:
    Zheng et al. (2025), arXiv:2409.02908; Sahoo et al. (2024), arXiv:2406.07524; Shi et al. (2024), arXiv:2406.04329.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Schedule(Protocol):
    """A decreasing function from `α(0) = 1` to `α(1) = 0`, with its inverse and derivative, elementwise."""

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The probability that a token is unmasked at time `t` in `[0, 1]`."""
        ...

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The time at which a share `alpha` in `[0, 1]` is unmasked."""
        ...

    def derivative(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """`dα/dt`, never positive."""
        ...


@dataclass(frozen=True)
class Polynomial:
    """`α = 1 - t^w`. `w = 1` is the linear schedule, also called log-linear.

    Raises:
        ValueError: If `w` is not a finite number > 0.
    """

    w: float

    def __post_init__(self) -> None:
        if not 0 < self.w < math.inf:
            raise ValueError(f"w must be a finite number > 0, got {self.w}")

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 1 - t**self.w

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return (1 - alpha) ** (1 / self.w)

    def derivative(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return -self.w * t ** (self.w - 1)


def Linear() -> Polynomial:
    """`α = 1 - t`."""
    return Polynomial(1.0)


@dataclass(frozen=True)
class Cosine:
    """`α = 1 - cos(π(1 - t)/2)` (MaskGIT's masking function)."""

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 1 - torch.cos(math.pi / 2 * (1 - t))

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return 1 - torch.arccos((1 - alpha).clamp(0, 1)) * 2 / math.pi

    def derivative(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))


@dataclass(frozen=True)
class Geometric:
    """`exp(-β_min^{1-t} β_max^t)`, rescaled affinely to the end values 1 and 0.

    Without the rescaling some tokens would still be masked at `t = 0`.

    Raises:
        ValueError: Unless `0 < beta_min < beta_max`, both finite.
    """

    beta_min: float = 1e-5
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.beta_min < self.beta_max < math.inf:
            raise ValueError(f"need 0 < beta_min < beta_max, got {self.beta_min} and {self.beta_max}")

    def _rate(self, t: Tensor) -> Tensor:
        return self.beta_min * (self.beta_max / self.beta_min) ** t

    @property
    def _ends(self) -> tuple[float, float]:
        return math.exp(-self.beta_min), math.exp(-self.beta_max)

    def alpha(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        first, last = self._ends
        return ((-self._rate(t)).exp() - last) / (first - last)

    def inverse(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        first, last = self._ends
        rate = -torch.log(alpha * (first - last) + last)
        return (torch.log(rate / self.beta_min) / math.log(self.beta_max / self.beta_min)).clamp(0, 1)

    def derivative(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        first, last = self._ends
        rate = self._rate(t)
        return -rate * math.log(self.beta_max / self.beta_min) * (-rate).exp() / (first - last)


SCHEDULES = {
    "linear": Linear(),
    "cosine": Cosine(),
    "geometric": Geometric(),
    "polynomial": Polynomial(2.0),
}
"""Schedules by name, for the command line."""
