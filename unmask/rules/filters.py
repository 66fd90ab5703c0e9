"""Budgets around a budget: they take what it admits and hold some of it back for a later evaluation.

Each keeps at least one position, so that every step unmasks something, and only ever unmasks fewer than the budget
inside. What a step draws together shrinks, and with it the dependence error of the step; the law is a function of the
state as before, and exact one position at a time. Budgets that count what they have admitted (`Steps`, `CarriedBound`,
`Groups`) would count what was held back, and are refused.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..sampling.view import View
from .budget import Budget
from .speaker import Speaker

if TYPE_CHECKING:
    from .ranked import Rule


class Filter:
    """What all filters share: the budget inside, and the checks that go with it."""

    budget: Budget

    def _check(self) -> None:
        inner = self.budget
        if isinstance(inner, Speaker) or getattr(inner, "counts", False) or getattr(inner, "needs_random_order", False):
            raise ValueError(
                f"{type(self).__name__} holds back some of what a budget admits, and {inner} counts what it has"
                " admitted, goes by a clock or holds a conversation of its own; EntropyBound, DependenceBound,"
                " Threshold, Factor, Frechet, Hierarchy, TopK and All can be held back"
            )

    def fits(self, rule: Rule) -> None:
        """Raises `ValueError` if the budget inside does not go with the rule."""
        if (fits := getattr(self.budget, "fits", None)) is not None:
            fits(rule)


@dataclass(frozen=True)
class UpstreamGate(Filter):
    """Of what a budget admits, keeps positions with little uncertainty to their left (Reliable Parallel Decoding).

    From left to right, with `E_i = Σ H_j` over the masks `j < i` that are not unmasked in this step, an admitted
    position passes if `E_i <= beta`. What is unmasked together with it does not count. If none passes, the best ranked
    of the first `window` masks is unmasked. So a whole canvas is written roughly from left to right without blocks: a
    confident end waits until what leads to it is known.

    `E_i` never falls from left to right, so the gate is a cut: everything admitted before it passes, nothing after it.
    The masks that count are those of the open block.

    Args:
        budget: What is admitted. The published rule admits by a threshold of 0.9 (besides positions that are stable
            across the network's layers, which are not seen here).
        beta: Nats that may stay open to the left of a position; infinity lets all pass.
        window: How many masks from the left to choose from if none passes.

    Raises:
        ValueError: If beta is negative or NaN, the window not a whole number >= 1, or the budget does not go with it.

    References:
        He, Liu, Xiong and Zhang (2026), arXiv:2609.36452, section 3.2, equations 6 and 7; read from the paper, whose β
        is 4 nats and W is 32. A budget always admits its first, so where nothing reaches the threshold the best ranked
        position of all is admitted and may pass; the paper admits nothing there.
    """

    budget: Budget
    beta: float = 4.0
    window: int = 32
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.beta >= 0:
            raise ValueError(f"beta must be a number of nats >= 0 (inf lets all pass), got {self.beta}")
        whole("window", self.window)
        self._check()

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return self.budget.start(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        admitted, memory = self.budget.admit(ranked)
        place = ranked.position.argsort(dim=-1)  # the columns from left to right
        stays = torch.where(ranked.candidate & ~admitted, ranked.entropy.double(), 0.0).gather(1, place)
        before = torch.zeros_like(stays).scatter(1, place, stays.cumsum(-1) - stays)
        passed, usable = admitted & (before <= self.beta), ranked.candidate
        if ranked.last is not None:  # what goes last does not count as progress while there are others
            others = usable & ~ranked.last
            usable = torch.where(others.any(-1, keepdim=True), others, usable)
        left = usable.gather(1, place)
        near = torch.zeros_like(left).scatter(1, place, left & (left.cumsum(-1) <= self.window))
        stuck = ~(passed & usable).any(-1, keepdim=True)
        return passed | (stuck & near & (near.cumsum(-1) == 1)), memory


@dataclass(frozen=True)
class Spaced(Filter):
    """Of what a budget admits, keeps the best first, then each position far enough from those kept (DUS).

    Far enough is `max(2, ⌊masks left · spacing / block⌋)`: at first about `spacing`, and 2 at the end, so that no two
    neighbours are ever drawn together. Neighbours depend on each other most.

    Args:
        budget: What is admitted.
        spacing: The distance kept while a block is all masks, `g₀`.
        block: The length of a block, `B`; `None` is the number of masks a sequence begins with, for a canvas without
            blocks.

    Raises:
        ValueError: If spacing or block is not a whole number >= 1, or the budget does not go with it.

    References:
        Luxembourg, Permuter and Nachmani (2026), arXiv:2506.19037, version 4, section 4.4, the spacing filter; the gap
        and the greedy choice were read from the authors' code (`apply_spacing_filter`, g₀ 8 and B 32).
    """

    budget: Budget
    spacing: int = 8
    block: int | None = 32
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        whole("spacing", self.spacing)
        if self.block is not None:
            whole("block", self.block)
        self._check()

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        """Returns the initial memory of the budget, and the length of a block."""
        inner = self.budget.start(masked)
        size = masked.double() if self.block is None else torch.full_like(masked, self.block, dtype=torch.float64)
        return torch.cat([inner, size.unsqueeze(-1)], -1)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        inner, size = ranked.memory[:, :-1], ranked.memory[:, -1:]
        admitted, inner = self.budget.admit(replace(ranked, memory=inner))
        masks = ranked.candidate.sum(-1, keepdim=True)
        gap = (masks * self.spacing / size.clamp(min=1)).floor().clamp(min=2)
        kept, open_ = torch.zeros_like(admitted), admitted
        while bool((live := open_.any(-1, keepdim=True)).any()):
            first = live & open_ & (open_.cumsum(-1) == 1)
            kept = kept | first
            place = torch.where(first, ranked.position, 0).sum(-1, keepdim=True)
            open_ = open_ & ((ranked.position - place).abs() >= torch.where(live, gap, math.inf))
        return kept, torch.cat([inner, size], -1)
