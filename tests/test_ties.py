"""Positions that symmetry makes equal rank by their place, whatever the last bits of their numbers say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.oracles import MarkovDenoiser, PerturbedDenoiser, exact_law
from unmask.rules.named import FAMILIES, named_rule
from unmask.rules.ties import place, settled

SYMMETRIC = MarkovDenoiser.lazy(3, 0.7)
"""A chain whose symbols, and whose two directions, are alike: most positions tie with another one."""


def example(name: str):
    setting = FAMILIES[name].setting
    return named_rule(name, **({setting: FAMILIES[name].settings[setting].example} if setting else {})).rule


def law(name: str, denoiser: MarkovDenoiser | PerturbedDenoiser) -> torch.Tensor:
    found = exact_law(denoiser, example(name), torch.full((4,), 3))
    return torch.cat([found.log_q.exp(), torch.tensor([found.off_support], dtype=torch.float64)])


def ranks(name: str) -> bool:
    """Whether a rule ranks by what it sees."""
    return name != "dependence-bound" and not getattr(example(name), "blind", False)


@pytest.mark.parametrize("name", list(filter(ranks, FAMILIES)))
def test_rounding_does_not_change_the_law_of_a_rule(name):
    exact = law(name, SYMMETRIC)
    for seed in range(3):
        rounded = law(name, PerturbedDenoiser(SYMMETRIC, 1e-15, seed=seed))
        assert 0.5 * float((rounded - exact).abs().sum()) < 1e-12


def test_a_larger_difference_than_rounding_does():
    """The control: what is not rounding decides between positions that would tie."""
    exact, other = law("topk", SYMMETRIC), law("topk", PerturbedDenoiser(SYMMETRIC, 1e-6))
    assert 0.5 * float((exact - other).abs().sum()) > 0.1


@given(st.floats(-1e300, 1e300), st.integers(-3, 3))
def test_numbers_some_last_bits_apart_nearly_always_tie_and_none_moves_far(value, ulps):
    other = torch.tensor(value, dtype=torch.float64)
    for _ in range(abs(ulps)):
        other = torch.nextafter(other, torch.tensor(float(ulps) * torch.inf, dtype=torch.float64))
    pair = torch.stack([torch.tensor(value, dtype=torch.float64), other])
    one, two = settled(pair).tolist()
    if abs(value) > 1e-290:
        assert abs(one - value) <= 2.0**-35 * abs(value)
    assert one == two or abs(one - two) <= 2.0**-34 * max(abs(one), abs(two)) or abs(value) < 1e-290


def test_infinities_stay_and_float32_is_left_alone():
    ends = torch.tensor([-torch.inf, torch.inf, 0.0], dtype=torch.float64)
    assert torch.equal(settled(ends), ends)
    single = torch.tensor([0.1, 0.1 + 1e-8, 1 / 3])
    assert settled(single) is single


def test_places_go_from_the_lowest_on_and_ties_by_position():
    third = 1 / 3
    values = torch.tensor([[third + 6e-17, third, 0.1, torch.inf]], dtype=torch.float64)
    assert place(values).tolist() == [[1, 2, 0, 3]]
