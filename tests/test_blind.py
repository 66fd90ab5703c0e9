"""Schedules that look at nothing: which positions, and how many, whatever the model says."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import LeftToRight, Rule, Uniform, sample
from unmask.oracles import exact_law, random_markov
from unmask.rules import Dilated, Groups

CHAIN = random_markov(3, 0)


def groups(budget, length: int, given_at: tuple[int, ...] = (), blocks: int | None = None) -> list[list[int]]:
    """The positions unmasked in each step, in left-to-right order."""
    x = torch.full((length,), 3)
    x[list(given_at)] = 0
    result = sample(CHAIN, [x], Rule(LeftToRight(), budget), seed=0, trace=True, blocks=blocks)
    events = result.trace(0)
    return [[e.position for e in step] for _, step in itertools.groupby(events, key=lambda e: e.step)]


def test_dilated_halves_the_spacing_from_half_the_length():
    assert groups(Dilated(), 8) == [[0, 4], [2, 6], [1, 3, 5, 7]]
    assert groups(Dilated(2), 8) == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert groups(Dilated(), 9) == [[0, 4, 8], [2, 6], [1, 3, 5, 7]]
    assert groups(Dilated(), 8, given_at=(0, 4, 5)) == [[2, 6], [1, 3, 7]]
    assert groups(Dilated(), 1) == [[0]]
    assert groups(Dilated(100), 5) == [[0], [3], [1, 2, 4]]
    together = sample(CHAIN, [[3] * 8, [3] * 3], Rule(LeftToRight(), Dilated()), seed=0, trace=True)
    assert together.nfe.tolist() == [3, 1]  # each by its own length, padding not counted


@given(st.integers(1, 40), st.sampled_from([None, 1, 3, 16]))
def test_dilated_takes_at_most_log_two_evaluations(length, spacing):
    steps = groups(Dilated(spacing), length)
    assert sorted(itertools.chain(*steps)) == list(range(length))
    assert len(steps) <= max(1, (spacing or max(1, length // 2)).bit_length())
    for step in steps[:-1]:
        assert all(b - a > 1 for a, b in itertools.pairwise(step))


def test_groups_take_the_sizes_in_turn():
    assert [len(step) for step in groups(Groups((1, 2, 5)), 8)] == [1, 2, 5]
    assert [len(step) for step in groups(Groups((1, 2, 5)), 8, given_at=(3,))] == [2, 5]
    assert [len(step) for step in groups(Groups((1, 2, 5)), 8, given_at=(0, 1, 2, 3))] == [4]
    assert [len(step) for step in groups(Groups((1, 2)), 6)] == [1, 1, 1, 1, 2]
    assert [len(step) for step in groups(Groups((3, 3)), 6, blocks=2)] == [2, 1, 1, 2]
    law = exact_law(CHAIN, Rule(Uniform(), Groups((2, 1, 2))), torch.full((5,), 3))
    assert law.nfe_mean == 3
    assert Groups.parse("2+ 1 +2") == Groups((2, 1, 2))


@pytest.mark.parametrize("bad", [0, -1, 1.5, "2"])
def test_numbers_are_whole_and_positive(bad):
    with pytest.raises(ValueError, match="whole number >= 1"):
        Dilated(bad)
    with pytest.raises(ValueError, match="whole number >= 1"):
        Groups((2, bad))


def test_sizes_are_given_and_written_with_plus():
    with pytest.raises(ValueError, match="at least one"):
        Groups(())
    for text in ("", "3,2", "3+", "a"):
        with pytest.raises(ValueError, match="written as"):
            Groups.parse(text)
