"""Editing: tokens that stand are replaced where the model is sure of another one (LLaDA2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checks import whole
from ..sampling.conversation import Answer, Ask, LawKind, Move, Situation
from .budget import probability
from .revisit import Plan, Revisits, lowest_block, write
from .ties import place


@dataclass(frozen=True)
class Editing(Revisits):
    """Writes masks with `max p > threshold`, and replaces a token by the most probable one if its `p > edit`.

    In every step the tokens of the block are looked at beside its masks. Once the block is full, up to `rounds` further
    steps only edit; a step that finds nothing to replace ends them. So a block of `n` masks takes at most `n + rounds`
    evaluations.

    What it does to the law: what replaces a token is the argmax, and so the samples lose entropy at any temperature: it
    repairs towards likely sequences, not towards the law. At temperature 0 it is what its authors use it for.

    Args:
        threshold: The confidence above which a mask is written; the most confident always is.
        edit: The probability above which another token replaces the one that stands.
        rounds: Steps that only edit, at most.
        shadows: Look at tokens as if they were masked. False looks at them as they stand, in one state per sequence,
            which needs a network that was trained to correct visible tokens, such as LLaDA2.1.

    Raises:
        ValueError: If a setting is out of range.

    References:
        Bie et al. (2026), arXiv:2602.08676; checked against SGLang's code (`JointThreshold`, 16 rounds) and the two
        modes that diffusers names: 0.7 and 0.5 for quality, 0.5 and no editing for speed.
    """

    threshold: float = 0.7
    edit: float = 0.5
    rounds: int = 16
    shadows: bool = True

    def __post_init__(self) -> None:
        probability("threshold", self.threshold)
        probability("edit", self.edit)
        whole("rounds", self.rounds)

    @property
    def law(self) -> LawKind:
        """Found by following its turns, if it looks at what an oracle can tell."""
        return LawKind.VISITS if self.shadows else LawKind.NONE

    @property
    def no_law(self) -> str:
        """Why the exact law is not computed; empty if it is."""
        if self.shadows:
            return ""
        return "what a model says of visible tokens is no conditional of a law; the law is computed for shadows=True"

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        """How many rounds of editing are left, 0 while there are masks, and of which block."""
        return torch.zeros(len(masked), 2, dtype=torch.float64, device=masked.device)

    def plan(self, seen: Situation) -> Plan:
        left, block = seen.numbers.unbind(-1)
        block = torch.where(left > 0, block.long(), lowest_block(seen))
        here = seen.block == block.unsqueeze(-1)
        numbers = torch.stack([left, block.double()], -1)
        return Plan(seen, seen.pending & here, seen.editable & here & ~seen.masked, numbers)

    def question(self, plan: Plan) -> Ask:
        return plan.shadows if self.shadows else plan.visible

    def move(self, plan: Plan, answer: Answer, tokens: Int[Tensor, "rows length"]) -> Move:
        seen, masks, left = plan.seen, plan.masks, plan.numbers[:, 0]
        doubt = plan.spread(answer, answer.stats.doubt.double(), torch.inf)
        hidden = doubt.masked_fill(~masks, torch.inf)
        first = masks & (place(hidden) == 0)
        taken = masks & ((doubt < 1 - self.threshold) | first)
        best = plan.spread(answer, answer.stats.token, 0)
        # Of an impossible state no statistic is a number, and nothing is replaced.
        edits = plan.tokens & (best != seen.x) & (doubt < 1 - self.edit)
        full = ~(masks & ~taken).any(-1)
        again = torch.where(left > 0, torch.where(edits.any(-1), left - 1, 0), torch.where(full, self.rounds, 0))
        numbers = torch.stack([again.double(), plan.numbers[:, 1]], -1)
        chosen = taken | edits
        return Move(
            chosen,
            numbers,
            answer,
            rows=plan.rows(answer, chosen),
            tokens=write(plan, answer, torch.where(edits, best, tokens)),
            more=(again > 0) | plan.left(chosen),
        )
