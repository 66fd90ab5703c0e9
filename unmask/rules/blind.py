"""Budgets that look at nothing but positions and counts: what there is to beat before a model is asked anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..sampling.view import View
from .budget import leading, no_memory
from .speaker import Speaker

if TYPE_CHECKING:
    from .ranked import Rule


@dataclass(frozen=True)
class Dilated:
    """Every position whose number is a multiple of the spacing, which halves until it is 1.

    In a block of `B` tokens positions `0, B/2` come first, then the other multiples of `⌊B/4⌋`, and so on: `log₂ B`
    evaluations in which no two neighbours are drawn together but in the last. Positions count from the start of the
    sequence. The spacing is a function of what is still masked, so that tokens given in advance do no harm.

    Args:
        spacing: The first one; by default half the length of the sequence.

    Raises:
        ValueError: If the spacing is not a whole number >= 1.

    References:
        Luxembourg et al. (2025), arXiv:2506.19037, the dilated unmasking schedule (base 2).
    """

    spacing: int | None = None
    marginal_free: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.spacing is not None:
            whole("spacing", self.spacing)

    def fits(self, rule: Rule) -> None:
        """Raises `ValueError` for an order that would have no say."""
        if isinstance(rule.order, Speaker):
            raise ValueError(f"{self} takes positions by their place; {rule.order} would have no say")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        position = ranked.position
        length = position.new_full((len(position), 1), position.shape[1])
        if ranked.masked is not None and ranked.known is not None:
            length = (ranked.masked | ranked.known).sum(-1, keepdim=True)  # without padding
        spacing = length // 2 if self.spacing is None else torch.full_like(length, self.spacing)
        admitted = torch.zeros_like(ranked.candidate)
        while bool((stuck := ranked.candidate.any(-1) & ~admitted.any(-1)).any()):
            multiple = position % spacing.clamp(min=1) == 0
            admitted |= ranked.candidate & multiple & stuck.unsqueeze(-1)
            spacing = spacing // 2
        return admitted, ranked.memory


@dataclass(frozen=True)
class Groups:
    """Groups of given sizes, the first ones first: a schedule such as `optimal_sizes` finds.

    The memory is the number of masks left of the whole sequence. A sequence with fewer masks than the sizes add up to
    joins where as many are left; one with more takes them one at a time until then. With blocks a group ends where its
    block does.

    Args:
        sizes: How many positions each evaluation unmasks.

    Raises:
        ValueError: If a size is not a whole number >= 1, or there is none.
    """

    sizes: tuple[int, ...]
    marginal_free: bool = field(default=True, init=False, repr=False)
    counts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sizes = tuple(whole("the size of a group", size) for size in self.sizes)
        if not sizes:
            raise ValueError("sizes are whole numbers >= 1, at least one")
        object.__setattr__(self, "sizes", sizes)

    @staticmethod
    def parse(text: str) -> Groups:
        """Reads `3+2+1`, as it is written on the command line.

        Raises:
            ValueError: If a part is not a whole number >= 1.
        """
        parts = text.split("+")
        if not all(part.strip().isdigit() for part in parts):
            raise ValueError(f"sizes are written as 3+2+1, got {text!r}")
        return Groups(tuple(int(part) for part in parts))

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch 1"]:
        return masked.double().unsqueeze(-1)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        left = ranked.memory[:, 0]
        # How many masks are left after each group; the next stop is the largest below what is left now.
        after = _after(self.sizes).to(left)
        stop = torch.where(after < left.unsqueeze(-1), after, -1.0).amax(-1)
        count = torch.where(left > sum(self.sizes), torch.ones_like(left), left - stop)
        admitted = leading(count.long(), ranked.candidate) & ranked.candidate
        return admitted, (left - admitted.sum(-1)).unsqueeze(-1)


def _after(sizes: Iterable[int]) -> Float[Tensor, " groups"]:
    """How many masks are left after each group."""
    counts = torch.tensor(list(sizes), dtype=torch.float64)
    return counts.sum() - counts.cumsum(0)
