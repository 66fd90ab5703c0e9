"""Admitting positions by how much they depend on each other, instead of by how uncertain they are.

Drawing a set of positions independently loses its total correlation: in any order, the sum over its positions of the
mutual information `I(x_i; those before | context)`. The entropy bound replaces every term but one by an entropy, and so
refuses to draw two uncertain tokens together, however far apart they are. Here the price of a term is the smaller of
the entropy and the dependence on the positions admitted before, as a `Profile` of the model gives it on average.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sampling.view import View
from .budget import check_gamma, same_numbers
from .profile import Line, Profile

AGGREGATES = ("sum", "largest", "nearest")
"""How pairwise dependences add up to the dependence on a set."""


@dataclass(frozen=True, eq=False)
class DependenceBound:
    """Goes through the ranking, admits each position that fits the budget and skips the others.

    The price of position `i` is `min(H_i, d_i)`, in nats, where `d_i` is its dependence on the positions admitted
    before it, read from the profile at the current masked share. A position is admitted if, with it,

        min( Σ price, ΣH - max H ) <= gamma

    over the admitted set. The second term bounds its total correlation; so does the first, if the prices are right. The
    first position is always admitted. So everything that `EntropyBound(gamma)` admits is admitted. In entropy order,
    nothing else is admitted if the profile is empty (`Profile.empty`) or the commitment is 0.

    Prices are averages over contexts and pairs: an estimate, not a guarantee. They miss dependence that only shows
    among more than two positions (three tokens under a parity constraint are pairwise independent).

    Args:
        gamma: Nats that each sequence may spend per evaluation: one number for all sequences, or one per sequence.
        profile: The dependence profile of the model that is sampled.
        aggregate: `d_i` from the pairs of `i` with the admitted positions: their `"sum"`, the sum of the two
            `"largest"`, or of the `"nearest"` on each side. On a Markov chain the nearest admitted neighbours screen
            off all others, and their sum is a bound; the other two are never less. Only the sum charges every pair,
            and only `"nearest"` lets an admitted token that is certain screen off the others.
        scaled: Read the profile as shares of the smaller entropy of a pair, and multiply by that; otherwise as nats.
        quantile: Charge this quantile of the distribution of shares instead of its mean.
        commitment: The largest `1 - max p` of a position that is admitted by its price, one number or one per sequence.
            The default of 1 excludes nothing, which suits temperature 1. At lower temperatures an uncertain position
            takes a likely token without waiting for the context that would determine it; there 0.1 is a good
            compromise, and 0 gives the entropy bound (in entropy order).

    Raises:
        ValueError: If gamma, commitment or the quantile is out of range, the aggregate is unknown, or it is `"nearest"`
            and the positions do not lie on a line.
    """

    gamma: float | Float[Tensor, " batch"]
    profile: Profile
    aggregate: str = "sum"
    scaled: bool = True
    quantile: float | None = None
    commitment: float | Float[Tensor, " batch"] = 1.0
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if check_gamma(self.gamma).ndim > 1:
            raise ValueError("gamma is one number, or one per sequence")
        commitment = torch.as_tensor(self.commitment, dtype=torch.float64)
        if commitment.ndim > 1 or not bool(((commitment >= 0) & (commitment <= 1)).all()):
            raise ValueError(f"commitment is a probability in [0, 1], or one per sequence, got {self.commitment}")
        if self.aggregate not in AGGREGATES:
            raise ValueError(f"unknown aggregate {self.aggregate!r}; choose one of {', '.join(AGGREGATES)}")
        if self.aggregate == "nearest" and not isinstance(self.profile.geometry, Line):
            raise ValueError("the nearest on each side exist on a line only; this profile is by relations")
        _ = self.prices  # bad settings are errors now

    @cached_property
    def prices(self) -> Float[Tensor, "fractions cells"]:
        """What each cell of the profile charges, a row per bin of the masked share."""
        prices = self.profile.prices(scaled=self.scaled, quantile=self.quantile)
        if self.scaled:
            prices = prices.clamp(max=1.0)  # I(x_i; x_j) <= min(H_i, H_j), for conditionals of one joint
        return prices.transpose(0, 1).reshape(self.profile.fractions, -1)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
        columns = []
        for name in ("gamma", "commitment"):
            values = torch.as_tensor(getattr(self, name), dtype=torch.float64, device=masked.device)
            if values.ndim == 1 and len(values) != len(masked):
                raise ValueError(f"{name} has {len(values)} values for a batch of {len(masked)} sequences")
            columns.append(values.expand(len(masked)))
        return torch.stack(columns, -1)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        gamma, commitment = ranked.memory[:, :1], ranked.memory[:, 1:]
        sure = ranked.doubt.double() <= commitment

        def fits(charged: Tensor, bound: Tensor, whole: Tensor) -> Tensor:
            return ((charged <= gamma) & sure) | (bound <= gamma)

        admitted = charged_admissions(ranked.entropy.double(), ranked.candidate, self.pairs(ranked), fits)
        return admitted, ranked.memory

    def pairs(self, view: View) -> Pairs:
        """Returns what this budget charges: the dependence of every position of a view on a set that grows."""
        return Pairs(self, view)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DependenceBound):
            return False
        numbers = zip((self.gamma, self.commitment), (other.gamma, other.commitment), strict=True)
        return all(same_numbers(*pair) for pair in numbers) and self._read == other._read

    def __hash__(self) -> int:
        return hash((self.gamma, self.commitment, self._read))

    @property
    def _read(self) -> tuple[Profile, str, bool, float | None]:
        """How dependence is read off the profile."""
        return self.profile, self.aggregate, self.scaled, self.quantile

    def __repr__(self) -> str:
        def shown(value: float | Tensor) -> object:
            return value if isinstance(value, (int, float)) else torch.as_tensor(value).tolist()

        settings = f"gamma={shown(self.gamma)}, aggregate={self.aggregate!r}, commitment={shown(self.commitment)}"
        return f"DependenceBound({settings})"


def charged_admissions(
    uncertainty: Float[Tensor, "batch length"],
    candidate: Bool[Tensor, "batch length"],
    pairs: Pairs,
    fits: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Bool[Tensor, "batch length"]:
    """Goes through candidates in their ranking and admits each that fits with those admitted before it.

    Args:
        uncertainty: The most that a candidate can lose: its entropy, or a doubt. It limits its price.
        candidate: Which there are; the first of them is always admitted.
        pairs: The dependence of every candidate on those admitted.
        fits: Says of each candidate whether it may be admitted, from three sums over those admitted and itself, each
            `[batch, length]`: of their prices `min(uncertainty, dependence)`; of all uncertainties but the largest;
            and of all uncertainties.
    """
    # Between two admissions no price changes, so the next to be admitted is the first in the ranking that fits: as many
    # turns as positions are admitted, instead of one per position.
    rank = torch.arange(uncertainty.shape[1], device=uncertainty.device)
    live, last = candidate.any(-1, keepdim=True), candidate.to(torch.uint8).argmax(-1, keepdim=True)
    admitted = live & (rank == last)
    top = whole = uncertainty.gather(1, last)
    spent = summed = torch.zeros_like(top)
    while bool(live.any()):
        charged = spent + torch.minimum(uncertainty, pairs.admit(last))
        # The entropy bound grows by the smaller of the new entropy and the largest before (see `entropy_bound`).
        bound, all_of_it = summed + torch.minimum(uncertainty, top), whole + uncertainty
        able = fits(charged, bound, all_of_it) & candidate & (rank > last) & live
        live = able.any(-1, keepdim=True)
        last = torch.where(live, able.to(torch.uint8).argmax(-1, keepdim=True), last)
        spent, summed, whole = (
            torch.where(live, new.gather(1, last), old)
            for new, old in ((charged, spent), (bound, summed), (all_of_it, whole))
        )
        top = torch.where(live, torch.maximum(top, uncertainty.gather(1, last)), top)
        admitted |= live & (rank == last)
    return admitted


@runtime_checkable
class Priced(Protocol):
    """A budget that charges positions for their dependence on those unmasked with them."""

    def pairs(self, view: View) -> Pairs:
        """Returns the dependence of every position of a view on a set that grows, in nats."""
        ...


class Pairs:
    """The dependence of every position on a growing set, one position admitted at a time.

    Args:
        rule: The budget, which says what pairs are charged and how they add up.
        view: A view of the masked positions, in any order; `admit` refers to its columns.

    Raises:
        ValueError: If the view does not say what is known, or the sequences do not fit the profile.
    """

    def __init__(self, rule: DependenceBound, view: View) -> None:
        if view.masked is None or view.known is None:
            raise ValueError("a price of dependence needs a view that says what is masked and what is known")
        profile = rule.profile
        self.rule, self.geometry, self.position = rule, profile.geometry, view.position
        self.geometry.check(view.position.shape[1])
        self.entropy = view.entropy.double()
        self.level = profile.level(view.entropy)
        masked = view.masked.sum(-1)
        self.prices = rule.prices.to(masked.device)[profile.fraction(masked, masked + view.known.sum(-1))]
        known = torch.zeros_like(view.known).scatter(1, view.position, view.known)
        self.before = known.cumsum(-1).gather(1, view.position)
        self.cells = (profile.geometry.screens, len(profile.levels) + 1)
        zero = torch.zeros_like(self.entropy)
        # Two numbers add up to the dependence on the set: the sum and nothing, the two largest, or one for each side.
        self.one, self.two = zero, zero
        width = view.position.shape[1]
        self.left, self.right = torch.full_like(view.position, -1), torch.full_like(view.position, width)

    def admit(self, column: Int[Tensor, "batch 1"]) -> Float[Tensor, "batch length"]:
        """Takes one more position of each row into the set; returns the dependence on it, in nats."""
        place = self.position.gather(1, column)
        pair = self._pair(column, place)
        match self.rule.aggregate:
            case "sum":
                self.one = self.one + pair
            case "largest":
                self.two = torch.maximum(self.two, torch.minimum(self.one, pair))
                self.one = torch.maximum(self.one, pair)
            case _:
                nearer = (place < self.position) & (place > self.left)
                self.one, self.left = torch.where(nearer, pair, self.one), torch.where(nearer, place, self.left)
                nearer = (place > self.position) & (place < self.right)
                self.two, self.right = torch.where(nearer, pair, self.two), torch.where(nearer, place, self.right)
        return self.one + self.two

    def _pair(self, column: Tensor, place: Tensor) -> Float[Tensor, "batch length"]:
        """What every position is charged for depending on one of them."""
        screens, levels = self.cells
        cell = self.geometry.pairs(self.position, place) * screens
        if screens > 1:
            cell = cell + (self.before != self.before.gather(1, column))
        cell = cell * levels + torch.minimum(self.level, self.level.gather(1, column))
        pair = self.prices.gather(1, cell)
        if not self.rule.scaled:
            return pair
        return pair * torch.minimum(self.entropy, self.entropy.gather(1, column))
