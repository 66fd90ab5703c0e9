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
`R` has a hint of size ε on a fair coin, it is worth ε in the chance to be right, and 2 ε² in nats.

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
from .budget import check_gamma
from .dependence import DependenceBound, Pairs
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


@dataclass(frozen=True, eq=False)
class TemperedBound:
    """Goes through the ranking and admits each position whose two prices fit, at the temperature of the draw.

    With the tempered doubts `a` (see the module) and the dependence `d_i` on the positions admitted before, as a
    profile has it, a position is admitted if with it

        min( Σ min(a_i, d_i), Σ a - max a ) <= gamma    and    min(doubt_i, (1 - τ) H_i) <= epsilon.

    The first is the dependence of the set in one evaluation, the second the commitment of the position by itself. The
    first position is always admitted, and what does not fit is skipped. At temperature 1 nothing is a commitment, and
    the rule is `DependenceBound(gamma, profile)`, or `EntropyBound(gamma)` in entropy order without a profile. At
    temperature 0 with `gamma` infinite it is `Threshold(1 - epsilon)`.

    Args:
        gamma: How much dependence an evaluation may cost: in nats at temperature 1, in lost chance to be right at 0.
        epsilon: The largest commitment of a position, as a probability.
        temperature: The temperature of the draw, which a rule cannot see; above 1 counts as 1.
        profile: The dependence profile of the model; `None` prices all dependence at the doubts.

    Raises:
        ValueError: If gamma or the temperature is negative or NaN, or epsilon is not in [0, 1].
    """

    gamma: float
    epsilon: float
    temperature: float = 1.0
    profile: Profile | None = None
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if check_gamma(self.gamma).ndim:
            raise ValueError("gamma is one number")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon is a probability in [0, 1], got {self.epsilon}")
        if not self.temperature >= 0:
            raise ValueError(f"temperature must be a number >= 0, got {self.temperature}")

    @cached_property
    def _pairs(self) -> DependenceBound | None:
        """What says how pairs are charged."""
        return None if self.profile is None else DependenceBound(self.gamma, self.profile)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return torch.empty(len(masked), 0, dtype=torch.float64, device=masked.device)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        tau = min(self.temperature, 1.0)
        doubt = tempered_doubt(ranked.entropy, ranked.doubt, tau)
        first = torch.arange(doubt.shape[1], device=doubt.device) == 0
        # The commitment is at most the doubt and (1 - τ) H, and so (1 - τ) times the tempered doubt.
        fits = ranked.candidate & ((doubt * (1 - tau) <= self.epsilon) | first)
        if self._pairs is None:
            return fits & (_bound(doubt.masked_fill(~fits, 0.0)) <= self.gamma), ranked.memory
        return _priced(doubt, fits, self.gamma, Pairs(self._pairs, ranked)), ranked.memory


def _bound(doubt: Float[Tensor, "batch length"]) -> Float[Tensor, "batch length"]:
    """Returns sum minus maximum of the doubts of every prefix."""
    # A sum of the smaller of each doubt and the largest before it: exact where subtracting a maximum would round.
    smaller = torch.minimum(doubt[:, 1:], doubt.cummax(-1).values[:, :-1])
    return torch.cat([torch.zeros_like(doubt[:, :1]), smaller.cumsum(-1)], -1)


def _priced(
    doubt: Float[Tensor, "batch length"], fits: Bool[Tensor, "batch length"], gamma: float, pairs: Pairs
) -> Bool[Tensor, "batch length"]:
    """Goes through the positions that fit and takes each whose dependence on those taken before keeps within γ."""
    rank = torch.arange(doubt.shape[1], device=doubt.device)
    last, live = torch.zeros_like(fits[:, :1], dtype=torch.int64), fits[:, :1]
    taken = fits & (rank == 0)
    spent, summed, top = torch.zeros_like(doubt[:, :1]), torch.zeros_like(doubt[:, :1]), doubt[:, :1]
    while bool(live.any()):
        price = torch.minimum(doubt, pairs.admit(last))
        bound = summed + torch.minimum(doubt, top)
        able = ((spent + price <= gamma) | (bound <= gamma)) & fits & (rank > last) & live
        live = able.any(-1, keepdim=True)
        last = torch.where(live, able.to(torch.uint8).argmax(-1, keepdim=True), last)
        spent = torch.where(live, spent + price.gather(1, last), spent)
        summed = torch.where(live, bound.gather(1, last), summed)
        top = torch.where(live, torch.maximum(top, doubt.gather(1, last)), top)
        taken |= live & (rank == last)
    return taken
