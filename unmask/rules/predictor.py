"""What to draw from. A predictor changes the marginals that tokens are drawn from, given the previous evaluation.

Positions unmasked together share one evaluation, although each but the first is hit when fewer masks are left. The
marginals of masked diffusion change smoothly with the number of masks, on average, which invites extrapolation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..schedule import Linear, Schedule
from .history import Past, Remembered, compare
from .speaker import Speaker

if TYPE_CHECKING:
    from ..sampling.conversation import Conversation, Situation
    from .ranked import Rule


class Predictor(Speaker):
    """Replaces the marginals of the chosen positions, given the previous evaluation. Subclasses say with what."""

    history: ClassVar[int] = 1

    def turn(self, rule: Rule, seen: Situation) -> Conversation:
        """Takes one turn, which keeps the evaluation for the next one."""
        return compare(rule, seen)

    def remember(self, numbers: Float[Tensor, "batch memory"]) -> Remembered:
        """Returns the initial memory: the budget's numbers, and room for the last evaluation."""
        return Remembered(numbers)

    def predict(
        self,
        log_p: Float[Tensor, "positions vocab"],
        chosen: Bool[Tensor, "rows length"],
        noise: Float[Tensor, "rows length"],
        masked: Int[Tensor, " rows"],
        time: Float[Tensor, " rows"] | None,
        past: Past | None,
    ) -> Float[Tensor, "positions vocab"]:
        """Returns log-probabilities to draw the chosen positions from.

        Args:
            log_p: Their log-probabilities in this evaluation, row-major over `chosen`.
            chosen: The positions to unmask, in the uniform order: lowest `noise` first.
            noise: The order noise, `α` at each position's hitting time.
            masked: How many positions of each row are masked.
            time: The diffusion time of each row, if the denoiser wants time.
            past: The evaluation before; `None` in the first step.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Extrapolate(Predictor):
    """Linear extrapolation from the last two evaluations: the high-order first-hitting sampler's predictor.

    With `b` masks now and `a > b` at the evaluation before, a position hit when `c <= b` masks are left is drawn from
    `p̂ = p_b + w (p_b - p_a)`, `w = (b - c)/(a - b)`, clipped below at `floor · p_b` and renormalised; for a denoiser
    conditioned on time, `w = (τ_b - τ_c)/(τ_a - τ_b)`. Without a floor a token that the data hold could get probability
    0, and the divergence from the data would be infinite. The first evaluation is used as it is.

    This is an approximation, used only on request; `docs/high-order.md` has its exact error.

    Args:
        schedule: The schedule of the hitting times, for a denoiser conditioned on time.
        floor: The smallest share of `p_b` that is kept.

    Raises:
        ValueError: If `floor` is not in `[0, 1]`.

    References:
        Zheng et al. (2025), arXiv:2409.02908, section 3: high-order variants of the first-hitting sampler.
    """

    schedule: Schedule = field(default_factory=Linear)
    floor: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor is a share in [0, 1], got {self.floor}")

    def predict(
        self, log_p: Tensor, chosen: Tensor, noise: Tensor, masked: Tensor, time: Tensor | None, past: Past | None
    ) -> Float[Tensor, "positions vocab"]:
        if past is None:
            return log_p
        if time is None or past.time is None:
            rank = noise.masked_fill(~chosen, torch.inf).argsort(dim=-1, stable=True).argsort(-1)  # of the hit: b - c
            weight = rank / (past.masked - masked).clamp(min=1).unsqueeze(-1)
        else:
            span = (past.time - time).unsqueeze(-1)
            weight = (time.unsqueeze(-1) - self.schedule.inverse(noise)) / span.clamp(min=1e-12)
            weight = weight.clamp(min=0).masked_fill(span <= 0, 0.0)
        index = past.index(chosen)
        known = (index >= 0).nonzero().squeeze(-1)
        p, then = log_p[known].exp(), past.kept.log_p(index[known]).exp_()
        moved = p + weight[chosen][known].unsqueeze(-1) * (p - then)
        # What is impossible now stays so, tokens that are forbidden among it, whose logits may have been anything.
        moved = torch.where(p > 0, torch.maximum(moved, self.floor * p), 0.0)
        predicted = log_p.clone()
        predicted[known] = (moved / moved.sum(-1, keepdim=True)).log()
        return predicted
