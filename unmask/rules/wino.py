"""WINO: writes boldly, and masks again what the rest of the text does not support."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..sampling.conversation import Answer, Move, Situation
from .budget import probability
from .revisit import Plan, Revisits, lowest_block, write
from .ties import place

FIRST = 30
"""What a block counts as accepted before its first step."""


@dataclass(frozen=True)
class Wino(Revisits):
    """Writes masks with `max p > threshold`, and masks tokens again whose probability given the rest is `< back`.

    Of the masks of a block at most `min(max(⌊0.7 m⌋, 5), 20)` are written in a step, and at least the most confident.
    Tokens that stand are looked at in the same evaluation as if they were masked (see `unmask.rules.revisit`), before
    those of this step are there. They are masked again only if the step writes more than one, and fewer than the step
    before wrote: the least probable. A block that is full is finished.

    So it ends: with `a_t` written and `r_t <= a_{t-1} - 1` masked again in step `t`, at least `a_t + t - 1` stand after
    it, and a block of `n` masks takes at most `n` evaluations.

    What it does to the law: each draw is made from the marginal, but what is drawn again was chosen for being unlikely,
    so likely tokens are favoured. At temperature 1 that shows even with exact conditionals.

    Args:
        threshold: The confidence above which a mask is written.
        back: The probability below which a token is masked again.

    Raises:
        ValueError: If one is no probability.

    References:
        Hong et al. (2025), arXiv:2507.18578; checked against the authors' code (`decoding_wino`, 0.6 and 0.9, with the
        limits above). There the confidence is that of the drawn token; here `max p`, the same at temperature 0.
    """

    threshold: float = 0.6
    back: float = 0.9

    def __post_init__(self) -> None:
        probability("threshold", self.threshold)
        probability("back", self.back)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        """How many the last step wrote, and in which block."""
        return torch.tensor([[FIRST, -1.0]], dtype=torch.float64, device=masked.device).repeat(len(masked), 1)

    def plan(self, seen: Situation) -> Plan:
        block = lowest_block(seen)
        accepted = torch.where(seen.numbers[:, 1] == block, seen.numbers[:, 0], float(FIRST))
        here = seen.block == block.unsqueeze(-1)
        numbers = torch.stack([accepted, block.double()], -1)
        return Plan(seen, seen.pending & here, seen.editable & here & ~seen.masked, numbers)

    def move(self, plan: Plan, answer: Answer, tokens: Int[Tensor, "rows length"]) -> Move:
        masks = plan.masks
        doubt = plan.spread(answer, answer.stats.doubt.double(), torch.inf).masked_fill(~masks, torch.inf)
        rank = place(doubt)
        most = (masks.sum(-1, keepdim=True) * 7 // 10).clamp(5, 20)
        chosen = masks & (((doubt < 1 - self.threshold) & (rank < most)) | (rank == 0))
        accepted = chosen.sum(-1, keepdim=True)
        likely = plan.likelihood(answer, plan.seen.x).exp().masked_fill(~plan.tokens, torch.inf)
        limit = torch.where(accepted > 1, plan.numbers[:, :1] - 1, 0)
        erase = plan.tokens & (likely < self.back) & (place(likely) < limit)
        numbers = torch.cat([accepted.double(), plan.numbers[:, 1:]], -1)
        rows = plan.rows(answer, chosen)
        return Move(chosen, numbers, answer, rows=rows, tokens=write(plan, answer, tokens), erase=erase)
