"""How many sequences to work on at once, by measurement."""

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
"""Of the best rate, what a smaller batch needs to be preferred: it takes less memory and leaves fewer slots empty."""

_found: WeakKeyDictionary[Denoiser, dict[tuple[int, int], int]] = WeakKeyDictionary()


def best_batch(sampler: Sampler, x: Int[Tensor, "prompts length"], sizes: Sequence[int] = SIZES) -> int:
    """Measures which batch size serves most sequences a second, once per network, length and number of prompts.

    What is timed is the first step of the first prompts, the better of two. Batches above the number of prompts are not
    tried, nor larger ones once two seconds are spent. No answer depends on the outcome: a sequence gets what it would
    get alone.

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
    key = x.shape[1], sizes[-1]
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
    sampler.step(state)  # waits for the device: a step ends with knowing what it chose
    return time.perf_counter() - began
