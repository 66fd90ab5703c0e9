"""Rules that see what was drawn: a protocol of its own, because they are biased.

The published LLaDA and MaskGIT samplers draw a token for *every* masked position, keep those whose drawn tokens are
most probable, and draw the rest anew in the next step. A position is then fixed because its draw was likely: likely
tokens are kept, unlikely ones get another chance, and the samples lose entropy, even one position at a time and with
exact conditionals. These rules exist to reproduce published results and to be compared with; the order that ranks by
the largest *marginal* probability (`Confidence`) has no such bias.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from .view import View


@dataclass(frozen=True)
class Drawn:
    """What the draws of one step looked like.

    Attributes:
        log_prob: Log-probability of the token drawn at each candidate, under its own marginal; `-inf` elsewhere.
        noise: A uniform in `[0, 1)` per position, fresh in every step.
        masked: The share of each sequence that is masked.
    """

    log_prob: Float[Tensor, "batch length"]
    noise: Float[Tensor, "batch length"]
    masked: Float[Tensor, " batch"]


@dataclass(frozen=True)
class DrawnConfidence:
    """Most probable draw first, with Gumbel noise that fades as masks disappear.

    The key is `-(log p(drawn token) + gumbel · masked share · g)` with `g` a standard Gumbel. `gumbel = 0` is LLaDA's
    low-confidence remasking; a positive one is MaskGIT's choice temperature (4.5 in the paper's code).

    Raises:
        ValueError: If `gumbel` is not a finite number >= 0.

    References:
        Nie et al. (2025), arXiv:2502.09992, algorithm 5; Chang et al. (2022), arXiv:2202.04200, section 3.2.
    """

    gumbel: float = 0.0
    random: ClassVar[bool] = True
    marginal_free: ClassVar[bool] = False
    sees_draws: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.gumbel < float("inf"):
            raise ValueError(f"gumbel must be a finite number >= 0, got {self.gumbel}")

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        raise ValueError("this order ranks by drawn tokens: it works in the sampling loop, and has no exact law")

    def drawn_key(self, view: View, drawn: Drawn) -> Float[Tensor, "batch length"]:
        """Ranks candidates after every one of them was drawn: the lowest key is fixed first."""
        key = -drawn.log_prob.double()
        if self.gumbel:
            exponential = -(1 - drawn.noise).log()  # noise is below 1; an exponential of exactly 0 sorts first
            key = key + self.gumbel * drawn.masked.unsqueeze(-1) * exponential.log()
        return key
