"""What a rule may look at: the marginals of the candidate positions, before and after ranking.

Rules see marginals, never drawn tokens: a position chosen because its *draw* looked confident biases the samples, even
one at a time. Rules that need more (draws, past predictions, extra evaluations) are separate, named protocols.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..draws.categorical import Marginals


@dataclass(frozen=True)
class View:
    """The state of a batch as its rule sees it. Statistics are `+inf` where a position is not a candidate.

    Views made of others fill in a column when it is looked at first: a rule looks at few of them.

    Attributes:
        candidate: Positions that may be unmasked now.
        entropy: Marginal entropies, in nats.
        doubt: One minus the largest probability.
        closeness: One minus the margin between the two largest probabilities.
        position: The position of each column in the sequence; ranking permutes it with the rest.
        noise: One uniform random number in `[0, 1)` per position, fixed for the whole sequence by its stream.
        memory: The rule's own numbers, one row per sequence (see `Budget.start`).
        masked: Positions without a token, in the open block or not; `None` before there is a sequence to look at.
        known: Positions with a token. Padding is neither masked nor known.
        last: Candidates that are unmasked only together with all others or after them; `None` if there are none.
        drift: The largest of the last `Rule.history` divergences `KL(evaluation || the one before)` at a position, in
            nats; `+inf` where there were fewer evaluations. `None` for rules that do not compare evaluations.
    """

    candidate: Bool[Tensor, "batch length"]
    entropy: Float[Tensor, "batch length"]
    doubt: Float[Tensor, "batch length"]
    closeness: Float[Tensor, "batch length"]
    position: Int[Tensor, "batch length"]
    noise: Float[Tensor, "batch length"]
    memory: Float[Tensor, "batch memory"]
    masked: Bool[Tensor, "batch length"] | None = field(default_factory=lambda: None)
    known: Bool[Tensor, "batch length"] | None = field(default_factory=lambda: None)
    last: Bool[Tensor, "batch length"] | None = field(default_factory=lambda: None)
    drift: Float[Tensor, "batch length"] | None = field(default_factory=lambda: None)

    if not TYPE_CHECKING:  # what is no column stays an error for the type checker

        def __getattr__(self, name: str) -> Tensor | None:
            make = vars(self).get("_make")
            if make is None or name not in _COLUMNS:
                raise AttributeError(f"a view has no column {name!r}; it has {', '.join(_COLUMNS)}")
            value = make(name)
            object.__setattr__(self, name, value)
            return value

    @staticmethod
    def of(make: Callable[[str], Tensor | None]) -> View:
        """Returns a view whose columns are made, given their names, when they are looked at first."""
        view = object.__new__(View)
        object.__setattr__(view, "_make", make)
        return view

    @staticmethod
    def blank(
        candidate: Bool[Tensor, "batch length"],
        noise: Float[Tensor, "batch length"],
        memory: Float[Tensor, "batch memory"],
        masked: Bool[Tensor, "batch length"] | None = None,
        known: Bool[Tensor, "batch length"] | None = None,
    ) -> View:
        """Returns a view before any evaluation, which is enough for a rule that does not look at marginals."""
        given = {"candidate": candidate, "noise": noise, "memory": memory, "masked": masked, "known": known}

        def make(name: str) -> Tensor | None:
            if name == "position":
                return torch.arange(candidate.shape[1], device=candidate.device).expand_as(candidate)
            return torch.zeros_like(noise) if name in _STATISTICS else given.get(name)

        return View.of(make)

    def measured(self, stats: Marginals, late: Bool[Tensor, " rows"] | None = None) -> View:
        """Returns the same view with the statistics of its candidates, one row each.

        A candidate is `late` if its most probable token has to wait for the others. Only the first late candidate stays
        a candidate. It is unmasked after the others or together with all of them, so a text is written before it ends.
        """
        if late is None:
            return View.of(
                lambda name: (
                    spread(getattr(stats, name), self.candidate) if name in _STATISTICS else getattr(self, name)
                )
            )
        waits = spread(late, self.candidate, False)
        first = waits & (waits.cumsum(-1) == 1)
        candidate = (self.candidate > waits) | first
        changed = {"candidate": candidate, "last": first}

        def make(name: str) -> Tensor | None:
            if name in _STATISTICS:
                return spread(getattr(stats, name), self.candidate).masked_fill_(~candidate, torch.inf)
            return changed[name] if name in changed else getattr(self, name)

        return View.of(make)

    def ranked(self, order: Int[Tensor, "batch length"]) -> View:
        """Returns the same view with positions permuted: column `k` holds position `order[:, k]`."""

        def make(name: str) -> Tensor | None:
            values = getattr(self, name)
            return values if values is None or name == "memory" else values.gather(1, order)

        return View.of(make)


_COLUMNS = tuple(column.name for column in fields(View))
_STATISTICS = ("entropy", "doubt", "closeness")

_FEW = 256
"""Positions drawn together that are added up one by one as fast as by starting operations on tensors."""


def dependence_bound(
    chosen: Bool[Tensor, "batch length"], entropy: Float[Tensor, " chosen"]
) -> Float[Tensor, " batch"]:
    """Returns `ΣH - max H` over the positions chosen in each row, in nats: a bound on their dependence error.

    Args:
        chosen: Positions drawn together.
        entropy: The entropy of each of these positions, in nats, row-major.
    """
    if entropy.is_cpu and max(entropy.shape[0], chosen.shape[0]) <= _FEW:
        values, bounds = iter(entropy.tolist()), []
        for count in chosen.numpy().sum(-1).tolist():
            own, total = list(islice(values, count)), 0.0
            if own:
                own.remove(max(own))
            for nats in own:
                total += nats
            bounds.append(total)
        return torch.tensor(bounds, dtype=torch.float64)
    h = torch.zeros(chosen.shape, dtype=torch.float64, device=chosen.device).masked_scatter_(chosen, entropy.double())
    h = h.scatter(1, h.argmax(-1, keepdim=True), 0.0)
    return h.cumsum(-1)[:, -1]  # sequential, so that padding changes no bit


def spread(
    values: Shaped[Tensor, " rows"], where: Bool[Tensor, "batch length"], fill: float | int = torch.inf
) -> Shaped[Tensor, "batch length"]:
    """Puts one value per candidate (row-major) back in its place, with `fill` elsewhere."""
    return torch.full(where.shape, fill, dtype=values.dtype, device=values.device).masked_scatter_(where, values)
