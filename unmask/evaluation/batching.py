"""Chooses a batch size by measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from jaxtyping import Int
from torch import Tensor

from ..denoiser import Denoiser
from ..sampling.loop import Sampler

SIZES = (1, 4, 16, 64)
_ENOUGH = 2.0
"""Seconds after which no larger batch is tried."""
_NEAR = 0.97
"""A smaller batch is preferred from this share of the best rate on: it takes less memory and has fewer empty slots."""

_found: WeakKeyDictionary[Denoiser, dict[tuple[str, int, int], int]] = WeakKeyDictionary()


def best_batch(sampler: Sampler, x: Int[Tensor, "prompts length"], sizes: Sequence[int] = SIZES) -> int:
    """Measures which batch size gives most sequences per second, once per network, rule, length and number of prompts.

    The first step of the first prompts is timed twice, and the better time counts. Batches larger than the number of
    prompts are not tried, and after two seconds no larger batch is tried. The answers do not depend on the batch size.

    Args:
        sampler: Denoiser and rule.
        x: Prompts of one length.
        sizes: Batch sizes to choose from.

    Raises:
        ValueError: If there is no size, or one is below 1.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be batch sizes >= 1, at least one, got {list(sizes)}")
    sizes = sorted({min(size, max(1, len(x))) for size in sizes})
    if len(sizes) == 1:
        return sizes[0]
    known = _found.setdefault(sampler.denoiser, {})
    # The rule is part of the key because it may evaluate several states of a sequence, or more than once. Its repr does
    # not show the values of a dependence profile, but these do not change the cost.
    key = repr(sampler.rule), x.shape[1], sizes[-1]
    if key not in known:
        known[key] = _measured(sampler, x, sizes)
    return known[key]


def _measured(sampler: Sampler, x: Tensor, sizes: Sequence[int]) -> int:
    began, rates = time.perf_counter(), {}
    _seconds(sampler, x[:1])
    for size in sizes:
        rates[size] = size / min(_seconds(sampler, x[:size]) for _ in range(2))
        if time.perf_counter() - began > _ENOUGH:
            break
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= _NEAR * best)


def _seconds(sampler: Sampler, x: Tensor) -> float:
    state = sampler.start(x, seed=0)
    began = time.perf_counter()
    sampler.step(state)  # waits for the device, because the end of a step reads which positions it chose
    return time.perf_counter() - began
