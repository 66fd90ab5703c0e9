"""P2: in every step everything is up for discussion again, and what is least likely is masked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checks import whole
from ..sampling.conversation import Answer, Move, Situation
from .revisit import Plan, Revisits, running, write
from .ties import settled


@dataclass(frozen=True)
class PathPlanning(Revisits):
    """In step `i` of `steps`, of the `n` positions of a block the `⌊n (1 - i/steps)⌋` least likely are masked (P2).

    A token is drawn at every mask. Drawn tokens are scored by their log-probability, tokens that stand by `eta` times
    theirs, as the model sees the position if it were masked (self-planning). The lowest scores are masked or stay
    masked, the others are written or stay. So tokens that no longer fit are taken back: at `eta = 0` never, at 1 like
    drafts, above 1 sooner.

    **It is biased**: positions are kept because their draw was likely, like LLaDA's quota, even one at a time and with
    exact conditionals. Every step is one evaluation, also of as many states as tokens stand, and there are as many as
    `steps`: it ends because they are counted. With blocks each has a clock of its own.

    Args:
        steps: How many evaluations.
        eta: How readily tokens that stand are taken back.

    Raises:
        ValueError: If `steps` is not a whole number >= 1, or `eta` not a finite number >= 0.

    References:
        Peng et al. (2025), arXiv:2502.03540; schedule, scores and `eta` were checked against the authors' code
        (`p2_sampling`). It scores a token that stands by a second draw there from the model's logits at the visible
        token; here by the token itself, masked. Ties go to the lower position.
    """

    steps: int
    eta: float = 1.0

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be a finite number >= 0, got {self.eta}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        """How many steps of its block's clock are done, and which block that is."""
        return torch.zeros(len(masked), 2, dtype=torch.float64, device=masked.device)

    def plan(self, seen: Situation) -> Plan:
        done, block, here = running(seen, seen.numbers, self.steps)
        numbers = torch.stack([done + 1, block.double()], -1)
        return Plan(seen, seen.pending & here, seen.editable & here & ~seen.masked, numbers)

    def move(self, plan: Plan, answer: Answer, tokens: Int[Tensor, "rows length"]) -> Move:
        seen, done = plan.seen, plan.numbers[:, 0]
        score = plan.likelihood(answer, torch.where(plan.masks, tokens, seen.x))
        # Not 0 · -inf: at eta = 0 a token that stands is never taken back.
        score = torch.where(plan.tokens, score * self.eta if self.eta else 0.0, score)
        looked = plan.masks | plan.tokens
        count = looked.sum(-1)
        kept = count - (count * (1 - done / self.steps) + 1e-9).floor().long()
        order = settled(score.masked_fill(~looked, -torch.inf)).argsort(dim=-1, descending=True, stable=True)
        order = order.gather(1, (~looked).int().gather(1, order).argsort(dim=-1, stable=True))
        rank = order.argsort(dim=-1)  # of each position, the most likely first
        keep = looked & (rank < kept.unsqueeze(-1))
        chosen = plan.masks & keep
        return Move(
            chosen,
            plan.numbers,
            answer,
            rows=plan.rows(answer, chosen),
            tokens=write(plan, answer, tokens),
            erase=plan.tokens & ~keep,
            more=(done < self.steps) | plan.left(chosen),
        )
