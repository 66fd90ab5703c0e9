from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor

from unmask.denoiser import Query
from unmask.evaluation import batching
from unmask.evaluation.batching import best_batch
from unmask.rules import Entropy, One, Rule
from unmask.sampling.loop import Sampler


class Slow:
    """A network that takes as long as it is told for a batch."""

    vocab_size, mask_id = 4, 3

    def __init__(self, fixed: float, each: float) -> None:
        self.fixed, self.each, self.calls = fixed, each, 0

    def __call__(self, query: Query) -> Tensor:
        self.calls += 1
        time.sleep(self.fixed + self.each * len(query.x))
        return torch.zeros(len(query.rows), 4)


PROMPTS = torch.full((20, 5), 3)


def sampler(fixed: float, each: float) -> Sampler:
    return Sampler(Slow(fixed, each), Rule(Entropy(), One()))


def test_a_price_per_call_asks_for_the_largest_batch():
    assert best_batch(sampler(0.1, 0.0), PROMPTS) == 20


def test_no_larger_batch_is_tried_once_the_time_is_spent(monkeypatch):
    monkeypatch.setattr(batching, "_ENOUGH", 0.05)
    slow = sampler(0.1, 0.0)
    assert best_batch(slow, PROMPTS, (1, 20)) == 1
    assert slow.denoiser.calls == 3  # pyright: ignore


def test_it_is_measured_once_and_no_larger_than_the_prompts():
    some = sampler(0.02, 0.0)
    assert best_batch(some, PROMPTS, (1, 8)) == 8
    calls = some.denoiser.calls  # pyright: ignore
    assert best_batch(Sampler(some.denoiser, Rule(Entropy(), One())), PROMPTS, (1, 8)) == 8
    assert best_batch(some, PROMPTS[:1]) == best_batch(some, PROMPTS[:0]) == 1
    assert some.denoiser.calls == calls  # pyright: ignore


@pytest.mark.parametrize("sizes", [(), (0, 4)])
def test_bad_sizes_are_named(sizes):
    with pytest.raises(ValueError, match="sizes"):
        best_batch(sampler(0, 0), PROMPTS, sizes)
