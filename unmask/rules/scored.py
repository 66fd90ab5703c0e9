"""Orders that rank by a score with fresh noise in every step: a protocol apart from orders that see a view only.

Some of them see more than marginals and are biased for it (`unmask.rules.drawn`). `Noisy` sees nothing else, and is
exact one position at a time like every order that does not look at draws.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..draws.categorical import log_prob
from ..draws.streams import Purpose
from ..sampling.conversation import Ask, Conversation, LawKind, Move, Situation
from ..sampling.view import View, spread
from .order import Entropy, Order
from .speaker import Speaker

if TYPE_CHECKING:
    from .ranked import Rule


@dataclass(frozen=True)
class Scored:
    """What such an order sees of one step.

    Attributes:
        score: One number per candidate, high is good; `-inf` elsewhere.
        noise: A uniform in `[0, 1)` per position, fresh in every step.
        masked: The share of each sequence that is masked.
    """

    score: Float[Tensor, "batch length"]
    noise: Float[Tensor, "batch length"]
    masked: Float[Tensor, " batch"]


class ScoredOrder(Speaker):
    """Highest `score + scale · g` first, with a standard Gumbel `g` per position, fresh in every step.

    So the first `k` are a draw without replacement with weights `exp(score / scale)` (Plackett-Luce), and at scale 0
    the `k` highest scores. A score is one of three things: the log-probability of the token drawn at the candidate, if
    the order `sees_draws`; `log Σ_v p_i(v)^β`, if it has a `power`; else what `score` makes of the view.
    """

    random: ClassVar[bool] = True
    marginal_free: ClassVar[bool] = False
    sees_draws: ClassVar[bool] = False

    @property
    def law(self) -> LawKind:
        """Found by following all sets that the scores may choose."""
        return LawKind.SCORES

    def power(self, masked: Float[Tensor, " batch"]) -> Float[Tensor, " batch"] | None:
        """Returns the `β >= 1` of each sequence if tokens are drawn from `p_i^β`, normalised; `None` for 1."""
        return None

    def scale(self, masked: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Returns the scale of the noise, given the share of each sequence that is masked."""
        raise NotImplementedError

    def score(self, view: View) -> Float[Tensor, "batch length"]:
        """Returns the score of each candidate; positions that are none may get any."""
        raise NotImplementedError

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        """Not a function of the view."""
        raise ValueError(f"{self} ranks with noise that a view does not hold; its turn draws it")

    def turn(self, rule: Rule, seen: Situation) -> Conversation:
        """Ranks every candidate anew, perhaps by a token drawn anew: the visit is the evaluation."""
        masked = seen.masked.sum(-1).double() / seen.valid.sum(-1)
        power, tokens = self.power(masked), None
        answer = yield Ask(seen.candidate, time=rule.time(seen), power=power)
        stats, view = answer.stats, seen.view(answer)
        if self.sees_draws:
            again = seen.fresh(Purpose.TOKEN)[seen.candidate]
            tokens = seen.draw.tokens(answer.logits, None, answer.row, again, stats)
            score = spread(log_prob(answer.logits, stats.log_norm, tokens), seen.candidate, -torch.inf)
        elif stats.log_moment is not None:
            score = spread(stats.log_moment, seen.candidate, -torch.inf)
        else:
            score = self.score(view)
        chosen, memory = rule.choose(view, self.scored_key(Scored(score, seen.fresh(Purpose.ORDER), masked)))
        return Move(chosen, memory, answer, tokens=tokens, power=power)

    def scored_key(self, scored: Scored) -> Float[Tensor, "batch length"]:
        """Ranks candidates: the lowest key comes first."""
        scale = self.scale(scored.masked).unsqueeze(-1)
        exponential = -(1 - scored.noise).log()  # noise is below 1; an exponential of exactly 0 sorts first
        return torch.where(scale > 0, scale * exponential.log(), 0.0) - scored.score.double()


@dataclass(frozen=True)
class Noisy(ScoredOrder):
    """An order by a proxy, each value of which is multiplied by fresh noise: `proxy · E^noise`, `E` exponential.

    With `noise = 1` a race of clocks: position `i` rings at the rate `1 / proxy_i`. What is determined rings at once,
    as every proxy is 0 there; what is alike comes in random order. Small noise gives the order itself, with ties broken
    at random; infinite noise would give the uniform order.

    A sampler whose order is random is a mixture of samplers, and `KL(data || Σ_r w_r q_r) <= Σ_r w_r KL(data || q_r)`:
    every bound on the dependence error holds on average over the noise, and the divergence is smaller than that. The
    noise also keeps apart what an order without it puts side by side: neighbours, which are equally certain because
    they share their context, and depend on each other for the same reason.

    Raises:
        ValueError: If `noise` is not a finite number > 0, or the order is random or looks at no marginals.
    """

    order: Order = field(default_factory=Entropy)
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.noise < float("inf"):
            raise ValueError(f"noise must be a finite number > 0, got {self.noise}")
        if self.order.random or self.order.marginal_free:
            raise ValueError(f"noise goes with entropy, confidence or margin, got {self.order}")

    def scale(self, masked: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return torch.full_like(masked, self.noise)

    def score(self, view: View) -> Float[Tensor, "batch length"]:
        return -self.order.key(view).double().clamp(min=torch.finfo(torch.float64).tiny).log()
