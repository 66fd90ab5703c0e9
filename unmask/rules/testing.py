"""Admitting what a test finds independent: extra evaluations in every step, instead of a measurement beforehand.

The candidates are ranked, and every one gets a draft token from its marginal. In the first test those of the better
half are filled in, and of the others those whose marginal moves by more than epsilon are rejected. The next test does
the same within both halves at once, the one after it within the four quarters, and so on: `⌈log₂ n⌉` evaluations for
`n` candidates, one after the other, after which any two that are left were on different sides of some test. They take
their draft tokens. The first of the ranking is never tested itself, so that every step unmasks at least one position.

As all groups of a test share an evaluation, a candidate also sees the drafts of groups ranked after its own, and it
may be rejected for what a draft that is itself rejected later would have done to it. Draft tokens are drawn anew in
every step: a uniform that has decided who stays must not draw a token again.

References:
    Azangulov, Pandeva, Prasad, Zazo and Karmalkar (2025), arXiv:2510.21961.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.kept import Kept, moved
from ..draws.streams import Purpose
from ..sampling.conversation import Answer, Ask, Conversation, LawKind, Move, Situation
from ..sampling.view import View, spread
from .budget import leading, no_memory
from .history import compared_with, measured
from .speaker import Speaker
from .ties import place

if TYPE_CHECKING:
    from .ranked import Rule


@dataclass(frozen=True)
class IndependenceTest(Speaker):
    """All candidates that drafts of the others leave where they are, to `epsilon` nats; always the first (PUNT).

    With `n` candidates ranked, a step makes up to `⌈log₂ n⌉` further evaluations, all of which count. As a budget by
    itself, where nothing can be tested, it takes the first candidate.

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
    asks_once: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(f"epsilon must be a finite number of nats >= 0, got {self.epsilon}")

    @property
    def law(self) -> LawKind:
        """Found by following all drafts."""
        return LawKind.DRAFTS

    def fits(self, rule: Rule) -> None:
        """Raises `ValueError` if another part wants a conversation of its own."""
        if isinstance(rule.order, Speaker) or rule.predictor is not None:
            other = rule.predictor or rule.order
            raise ValueError(f"{self} drafts from the marginals in an order of its own, not with {other}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        """It remembers nothing."""
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        """The first candidate."""
        first = torch.ones_like(ranked.position[:, 0])
        return leading(first, ranked.candidate) & ranked.candidate, ranked.memory

    def turn(self, rule: Rule, seen: Situation) -> Conversation:
        """Asks about the candidates, drafts all of them, and asks again for every test.

        Raises:
            ValueError: If the denoiser wants the time: a test is at none.
        """
        if seen.wants_time:
            raise ValueError(f"{self} evaluates drafts, which have no time; give a denoiser that ignores the time")
        answer = yield Ask(seen.candidate, measure=not seen.x.is_cpu)  # on a CPU it is made ready to be compared with
        stats, kept, _ = compared_with(seen, answer, None, torch.full_like(answer.index, -1))
        answer = measured(answer, stats)
        again = seen.fresh(Purpose.TOKEN)[seen.candidate]
        tokens = seen.draw.tokens(answer.logits, None, answer.row, again, stats)
        return (yield from self.test(rule, seen, answer, tokens, kept))

    def test(
        self,
        rule: Rule,
        seen: Situation,
        answer: Answer,
        tokens: Int[Tensor, " candidates"],
        kept: Kept | None = None,
    ) -> Conversation:
        """Tests the drafts of all candidates; the move keeps the drafts that are left.

        Args:
            rule: The rule, whose order ranks the candidates.
            seen: The sequences, and their candidates.
            answer: The answer about the candidates.
            tokens: Their drafts.
            kept: The logits of the answer, ready to be compared with; default: as they are.
        """
        key = rule.order.key(seen.view(answer)).masked_fill(~seen.candidate, torch.inf)
        kept = Kept(answer.logits, answer.stats.log_norm) if kept is None else kept
        chosen = yield from self.prune(seen, kept, place(key), spread(tokens, seen.candidate, seen.mask_id))
        return Move(chosen, seen.memory, answer, tokens=tokens)

    def prune(
        self,
        seen: Situation,
        kept: Kept,
        rank: Int[Tensor, "rows length"],
        drafts: Int[Tensor, "rows length"],
    ) -> Generator[Ask, Answer, Bool[Tensor, "rows length"]]:
        """Makes the tests; returns the candidates that are left.

        Args:
            seen: The sequences, and their candidates.
            kept: The logits of the candidates.
            rank: The place of each candidate in the ranking; what is none comes after them.
            drafts: The token drafted at each candidate.
        """
        where, left = seen.candidate, seen.candidate
        number = spread(torch.arange(len(kept.logits), device=where.device), where, -1)
        # Halves, quarters, ... of the ranking of each sequence, rounded up to a power of two; 0 is past the last.
        size = torch.tensor([_half(n) for n in where.sum(-1).tolist()], device=where.device).unsqueeze(-1)
        while bool((size > 0).any()):
            second = (rank // size.clamp(min=1) % 2 == 1) & (size > 0)
            filled, test = left & ~second, left & second
            row = test.any(-1).nonzero().squeeze(-1)
            if len(row):
                x = torch.where(filled[row], drafts[row], seen.x[row])
                answer = yield Ask(test[row], x=x, row=row, measure=False)
                index = number[row][test[row]]
                influence = torch.zeros(len(index), dtype=torch.float64, device=where.device)
                for one, part in seen.draw.parts(answer.row, "forbidden"):
                    influence[part] = moved(answer.logits[part], kept, index[part], one.forbidden)
                # A draft that cannot be, of which no divergence is a number, rejects as well.
                rejected = torch.zeros_like(left[row]).masked_scatter_(test[row], ~(influence <= self.epsilon))
                left = left.index_copy(0, row, left[row] & ~rejected)
            size = size // 2
        return left


def _half(count: int) -> int:
    """Half of the least power of two that is at least the count."""
    return (1 << max(0, count - 1).bit_length()) // 2
