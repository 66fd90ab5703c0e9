r"""Two prices of a draw at a temperature: dependence inside the set, and commitment before the rest is known.

A draw at temperature τ takes `v` with probability `T p(v) ∝ p(v)^{1/τ}`. Write `‖p‖ = (Σ p^{1/τ})^τ`, which is 1 at
temperature 1 and `max p` at 0. By Hölder's inequality `T p` is the law `q` that makes the score `E_{x~p} q(x)^{1-τ}`
largest, and its score is `‖p‖`. At temperature 0 the score is the chance to be right; at 1, to first order in `1 - τ`,
it is the log-likelihood. So `ρ(q; p) = (‖p‖ - E_p q^{1-τ}) / (1-τ)` is what `q` loses against the tempered law of `p`:
at temperature 1 it is `KL(p ‖ q)`, at 0 the lost chance to be right.

**What drawing a set `U` now, each position by itself, loses.** With `R` what stays masked, and all given the context,

    E_R ‖p_{U|R}‖ - E_p Π_{i∈U} (T p_i)^{1-τ} = ( E_R ‖p_{U|R}‖ - ‖p_U‖ ) + ( ‖p_U‖ - E_p Π (T p_i)^{1-τ} ):

the score after waiting for `R`, less the score now. Both brackets are at least 0: the first because a norm is convex
and `p_U = E_R p_{U|R}`, the second by Hölder's inequality. They are the two prices.

**Dependence**, the second bracket, is `(1-τ) ρ`. With the *tempered doubt* `a_i = (1 - ‖p_i‖) / (1-τ)`, which is the
entropy at temperature 1 and `1 - max p` at 0,

    ρ <= Σ a_i - max a_i.

Proof. Let `j` have the largest doubt. `‖p_U‖ <= ‖p_j‖`, for the norm of a marginal is no smaller. The score of the
product is `E t_j Π_{i≠j} t_i` with all `t_i = (T p_i)^{1-τ} <= 1`, at least `E t_j - Σ_{i≠j} E (1 - t_i)`, and
`E t_i = ‖p_i‖`. At temperature 1 this is the EB-Sampler's bound; at 0 it is a sum of doubts, as in Fast-dLLM++.

**Commitment**, the first bracket, is what waiting would have told. It is 0 where `U` does not depend on `R`, and 0 at
temperature 1, where a draw from the exact marginal is exact by the chain rule. To first order in `1 - τ` it is
`(1-τ) I(x_U; x_R)`. For one position, with `I` its mutual information with what stays masked,

    E_R ‖p_{i|R}‖ - ‖p_i‖ <= min( 1 - ‖p_i‖, 2^τ √(I/2) ),    1 - ‖p_i‖ <= min( 1 - max p_i, (1-τ) H_i ).

The second is Pinsker's inequality: `‖p_{i|R}‖ - ‖p_i‖ <= ‖p_{i|R} - p_i‖ <= 2^τ TV`. The square root is needed: where
`R` has a hint of size ε on a fair coin, it is worth ε in the chance to be right, and 2 ε² in nats. And what stays
masked cannot tell more than it has to tell: of any set,

    E_R ‖p_{U|R}‖ - ‖p_U‖ <= 1 - max p_R <= Σ_{j∈R} (1 - max p_j).

Proof. Let `r` be the most probable of `R`, with probability `m`. The mean is at most `m ‖p_{U|r}‖ + 1 - m`, and
`‖p_U‖ >= m ‖p_{U|r}‖`, for `p_U >= m p_{U|r}` everywhere. So if nothing stays masked, nothing is a commitment.

**Over a sequence**, for a rule that is a function of the state, as `1 - Π t <= Σ (1 - t)`,

    1 - E_p q(x)^{1-τ} <= (1-τ) E_data Σ_steps Σ_{i∈U} a_i,

with equality to first order at temperature 1 (`KL = E_data Σ_steps (Σ H_i - H_U)`); at 0 it bounds the chance of any
error. What the rule can control is how much doubt it accepts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sampling.view import View
from .budget import check_gamma, no_memory, probability
from .dependence import DependenceBound, charged_admissions
from .profile import Profile


def tempered_doubt(
    entropy: Float[Tensor, "*shape"], doubt: Float[Tensor, "*shape"], temperature: float
) -> Float[Tensor, "*shape"]:
    """Returns an upper bound on `(1 - ‖p‖) / (1 - τ)` of marginals: their entropy at temperature 1, their doubt at 0.

    It is `min(H, doubt / (1 - τ))`: exact at both ends, and above between them, where the exact value needs the whole
    distribution.

    Args:
        entropy: Entropies, in nats.
        doubt: One minus the largest probability.
        temperature: The temperature of the draw, in [0, 1].
    """
    entropy = entropy.double()
    return entropy if temperature == 1 else torch.minimum(entropy, doubt.double() / (1 - temperature))


@dataclass(frozen=True)
class TemperedBound:
    """Takes what is sure, and of the rest what two prices let pass, at the temperature of the draw.

    A position is *sure* if `1 - max p <= epsilon`, and all that are sure are admitted. Of the others, in their ranking,
    one is admitted if its commitment `min(1 - max p, (1 - τ) H)` is at most epsilon, and with it

        min( Σ min(a_i, d_i), Σ a - max a ) <= gamma

    over those admitted so far, where `a` are the tempered doubts (see the module) and `d_i` is the dependence on those
    admitted before it, as a profile has it. The first of the ranking is always admitted, and what does not fit is
    skipped (without a profile, nothing after it can fit). Where the doubts `1 - max p` of all masks of a sequence that
    are not sure add up to at most `ending`, all are admitted: nothing stays masked, and so nothing is a commitment.

    So a step admits whatever `Threshold(1 - epsilon)` admits, and at temperature 1 whatever
    `DependenceBound(gamma, profile)` does, which is whatever `EntropyBound(gamma)` does. A limit to each doubt is there
    beside that to the sum because a sum of many small doubts says more about the softness of a network than about its
    errors; on puzzles, mazes and sums it takes fewer evaluations at the same quality (docs/results.md). At the end the
    largest doubt counts, too, though the theorem would let it pass: a network finds out more with every evaluation,
    which the chain rule does not know.

    A share adds `share · Σ a` to gamma. The dependence of a sequence is then at most that share of its entropy at
    temperature 1, however many evaluations it takes; what is a small loss is not the same for a sum and for a text.

    Args:
        gamma: How much dependence an evaluation may cost: in nats at temperature 1, in lost chance to be right at 0.
        epsilon: The largest `1 - max p` of a position that is sure, and the largest commitment of any other.
        temperature: The temperature of the draw, which a rule cannot see; above 1 counts as 1.
        profile: The dependence profile of the model; `None` prices all dependence at the doubts.
        share: The share of the tempered doubts admitted that dependence may cost besides.
        ending: The sum of doubts with which a sequence is ended.

    Raises:
        ValueError: If gamma or the temperature is negative or NaN, or epsilon is not in [0, 1].
    """

    gamma: float
    epsilon: float
    temperature: float = 1.0
    profile: Profile | None = None
    share: float = 0.0
    ending: float = 0.0
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if check_gamma(self.gamma).ndim:
            raise ValueError("gamma is one number")
        for name in ("epsilon", "share"):
            probability(name, getattr(self, name))
        for name in ("temperature", "ending"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be a number >= 0, got {getattr(self, name)}")

    @cached_property
    def _pairs(self) -> DependenceBound | None:
        """What says how pairs are charged."""
        return None if self.profile is None else DependenceBound(self.gamma, self.profile)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        tau = min(self.temperature, 1.0)
        doubt = tempered_doubt(ranked.entropy, ranked.doubt, tau)
        first = torch.arange(doubt.shape[1], device=doubt.device) == 0
        sure = ranked.doubt.double() <= self.epsilon
        # The commitment is at most the doubt and (1 - τ) H, and so (1 - τ) times the tempered doubt.
        fits = ranked.candidate & (sure | (doubt * (1 - tau) <= self.epsilon) | first)
        taken = self._within(doubt, fits, ranked) | (ranked.candidate & sure)
        if ranked.masked is not None:
            left = ranked.doubt.double().masked_fill(~ranked.candidate | sure, 0.0).sum(-1, keepdim=True)
            whole = (ranked.candidate | ~ranked.masked).all(-1, keepdim=True)  # nothing would stay masked
            taken = torch.where(whole & (left <= self.ending), ranked.candidate, taken)
        return taken, ranked.memory

    def _within(
        self, doubt: Float[Tensor, "batch length"], fits: Bool[Tensor, "batch length"], ranked: View
    ) -> Bool[Tensor, "batch length"]:
        """Returns which of the positions that fit are within γ together."""
        if self._pairs is not None:

            def able(charged: Tensor, bound: Tensor, whole: Tensor) -> Tensor:
                return torch.minimum(charged, bound) <= self.gamma + self.share * whole

            return charged_admissions(doubt, fits, self._pairs.pairs(ranked), able)
        doubt = doubt.masked_fill(~fits, 0.0)
        # Σa - max a is a sum of the smaller of each doubt and the largest before it: exact where subtracting a maximum
        # would round.
        smaller = torch.minimum(doubt[:, 1:], doubt.cummax(-1).values[:, :-1])
        bound = torch.cat([torch.zeros_like(doubt[:, :1]), smaller.cumsum(-1)], -1)
        within = fits & (bound <= self.gamma + self.share * doubt.cumsum(-1))
        return fits & (within.flip(-1).cumsum(-1).flip(-1) > 0)  # the longest prefix, though shorter ones may not fit
