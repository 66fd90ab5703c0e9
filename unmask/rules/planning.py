"""Ranks and admits with NumPy: what `Rule.choose` does, for the orders and budgets of most runs on small batches.

A step of a small model is mostly the time it takes to start operations, and NumPy starts one in a quarter of the time
that PyTorch takes. The numbers are the same to the last bit: minima, maxima, comparisons and sums from left to right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.categorical import Marginals
from ..sampling.host import FEW
from .budget import All, EntropyBound, Threshold, TopK
from .order import Confidence, Entropy, Margin
from .ties import settled

if TYPE_CHECKING:
    from ..sampling.conversation import Situation
    from .ranked import Rule

_KEYS: dict[type, str] = {Entropy: "entropy", Confidence: "doubt", Margin: "closeness"}
"""The statistic that an order ranks by, lowest first."""


@dataclass(frozen=True)
class _Ranked:
    """The candidates of each sequence in the order of unmasking.

    Attributes:
        place: The number of each among the candidates of the batch, -1 where a sequence has no more.
        stats: The statistics of the candidates of the batch.
        numbers: The budget's memory.
    """

    place: Int[np.ndarray, "rows width"]
    stats: Marginals
    numbers: Float[np.ndarray, "rows memory"]

    def column(self, name: str) -> Float[np.ndarray, "rows width"]:
        """A statistic in this order; where there is no candidate, it is that of any other."""
        return getattr(self.stats, name).numpy()[self.place].astype(np.float64, copy=False)


def _all(budget: All, ranked: _Ranked) -> Bool[np.ndarray, "_ width"]:
    return np.ones((1, ranked.place.shape[1]), dtype=bool)


def _top_k(budget: TopK, ranked: _Ranked) -> Bool[np.ndarray, "_ width"]:
    return np.arange(ranked.place.shape[1])[None] < budget.k


def _threshold(budget: Threshold, ranked: _Ranked) -> Bool[np.ndarray, "rows width"]:
    sure = ranked.column("doubt") <= 1 - budget.threshold
    sure[:, 0] = True
    return sure


def _entropy_bound(budget: EntropyBound, ranked: _Ranked) -> Bool[np.ndarray, "rows width"]:
    h = ranked.column("entropy")  # the sum of the smaller of each and the largest before it: see `EntropyBound`
    smaller = np.minimum(h[:, 1:], np.maximum.accumulate(h[:, :-1], axis=-1))
    fits = np.empty(h.shape, dtype=bool)
    fits[:, 0] = True
    np.less_equal(smaller.cumsum(-1), ranked.numbers[:, :1], out=fits[:, 1:])
    return fits


_ADMIT: dict[type, Callable[[Any, _Ranked], Bool[np.ndarray, "_ width"]]] = {
    All: _all,
    TopK: _top_k,
    Threshold: _threshold,
    EntropyBound: _entropy_bound,
}
"""What a budget without a memory that changes admits of a ranking, candidates or not."""


def planned(rule: Rule, seen: Situation, stats: Marginals) -> Bool[Tensor, "rows length"] | None:
    """Returns what `rule.choose` would choose, or `None` if that is not known here.

    Args:
        rule: The rule.
        seen: The situation, in which no candidate has to wait for others.
        stats: The statistics of the candidates.
    """
    key, admit = _KEYS.get(type(rule.order)), _ADMIT.get(type(rule.budget))
    candidate = seen.candidate
    if key is None or admit is None or seen.index is None or not candidate.is_cpu or candidate.numel() > FEW:
        return None
    values = settled(getattr(stats, key)).numpy()
    ranked = _Ranked(_places(candidate.numpy(), values), stats, seen.numbers.numpy())
    taken = ranked.place[admit(rule.budget, ranked) & (ranked.place >= 0)]
    chosen = np.zeros(candidate.shape, dtype=bool)
    chosen.reshape(-1)[seen.index.numpy()[taken]] = True
    return torch.from_numpy(chosen)


def _places(
    candidate: Bool[np.ndarray, "rows length"], values: Float[np.ndarray, " candidates"]
) -> Int[np.ndarray, "rows width"]:
    """The candidates of each sequence by their values, the lowest first, ties by position; then -1."""
    if len(candidate) == 1:
        return values.argsort(kind="stable")[None]
    counts = candidate.sum(-1)
    inside = np.arange(counts.max()) < counts[:, None]
    place, keys = np.full(inside.shape, -1), np.full(inside.shape, np.inf)
    place[inside], keys[inside] = np.arange(len(values)), values
    return place[np.arange(len(place))[:, None], keys.argsort(-1, kind="stable")]
