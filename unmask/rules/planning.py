"""Ranks and admits without tensors: what `Rule.choose` does, for the orders and budgets of most runs on small batches.

A step of a small model is mostly the time it takes to start operations. `Rule.choose` starts forty of them on rows of a
few numbers; here these are lists, which are sorted and added up until a budget is spent. The numbers are the same to
the last bit: comparisons, and float64 sums from left to right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from ..draws.categorical import Marginals
from .budget import All, EntropyBound, Threshold, TopK
from .order import Confidence, Entropy, Margin
from .ties import settled

if TYPE_CHECKING:
    from ..sampling.conversation import Situation
    from .ranked import Rule

MOST = 256
"""Candidates of a batch beyond which tensors are as fast."""

_KEYS: dict[type, str] = {Entropy: "entropy", Confidence: "doubt", Margin: "closeness"}
"""The statistic that an order ranks by, lowest first."""

_Admit = Callable[[Any, Sequence[int], Sequence[float], Sequence[float]], Sequence[int]]
"""Which of the ranked candidates of a sequence a budget admits: given it, the candidates as numbers of the batch's, the
statistic that it looks at of all candidates of the batch, and its memory of the sequence."""


def _all(budget: All, ranked: Sequence[int], values: Sequence[float], memory: Sequence[float]) -> Sequence[int]:
    return ranked


def _top_k(budget: TopK, ranked: Sequence[int], values: Sequence[float], memory: Sequence[float]) -> Sequence[int]:
    return ranked[: budget.k]


def _threshold(
    budget: Threshold, ranked: Sequence[int], doubt: Sequence[float], memory: Sequence[float]
) -> Sequence[int]:
    return [*ranked[:1], *(place for place in ranked[1:] if doubt[place] <= 1 - budget.threshold)]


def _entropy_bound(
    budget: EntropyBound, ranked: Sequence[int], entropy: Sequence[float], memory: Sequence[float]
) -> Sequence[int]:
    spent = largest = 0.0  # `ΣH - max H`, as a sum of the smaller of each and the largest before it
    for count, place in enumerate(ranked):
        spent += min(entropy[place], largest)
        if not spent <= memory[0]:
            return ranked[:count]
        largest = max(entropy[place], largest)
    return ranked


_ADMIT: dict[type, tuple[str, _Admit]] = {
    All: ("doubt", _all),
    TopK: ("doubt", _top_k),
    Threshold: ("doubt", _threshold),
    EntropyBound: ("entropy", _entropy_bound),
}
"""The statistic that a budget looks at, and what it admits: budgets whose memory stays as it is."""


def planned(rule: Rule, seen: Situation, stats: Marginals) -> Bool[Tensor, "rows length"] | None:
    """Returns what `rule.choose` would choose, or `None` if that is not known here.

    Args:
        rule: The rule.
        seen: The situation, in which no candidate has to wait for others.
        stats: The statistics of the candidates.
    """
    key, admission = _KEYS.get(type(rule.order)), _ADMIT.get(type(rule.budget))
    index = seen.index
    if key is None or admission is None or index is None or not index.is_cpu or index.shape[0] > MOST:
        return None
    name, admit = admission
    keys = settled(getattr(stats, key)).tolist()
    values = getattr(stats, name).tolist()
    taken, start = [], 0
    for count, memory in zip(seen.candidate.numpy().sum(-1).tolist(), seen.numbers.tolist(), strict=True):
        # Ties go to the lower position: sorting is stable.
        ranked = sorted(range(start, start + count), key=keys.__getitem__)
        taken += admit(rule.budget, ranked, values, memory)
        start += count
    chosen = np.zeros(seen.candidate.shape, dtype=bool)
    chosen.reshape(-1)[index.numpy()[taken]] = True
    return torch.from_numpy(chosen)
