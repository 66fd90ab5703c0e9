"""Logit bias and allowed tokens: they act before planning and drawing, on their own sequence only."""

from __future__ import annotations

import math

import pytest
import torch

from unmask import Entropy, EntropyBound, One, Rule, Uniform, sample
from unmask.oracles import TableDenoiser, random_hmm, random_table
from unmask.sampling.processors import Allowed, Chain, Choices, LogitBias

EB = Rule(Entropy(), EntropyBound(0.4))


def test_a_bias_changes_the_law_as_it_says():
    """20,000 draws of one token: five standard errors, fails one correct run in 10⁶."""
    table = TableDenoiser(torch.tensor([0.5, 0.3, 0.2]))
    x = torch.full((20_000, 1), 3)
    found = sample(table, x, EB, seed=0, processor=LogitBias({1: math.log(2.0), 2: -math.inf})).tokens
    share = float((found == 1).double().mean())
    expected = 0.6 / 1.1
    assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / 20_000)
    assert not bool((found == 2).any())


def test_forbidding_by_bias_or_by_name_is_the_same():
    table, x = random_table(3, 4, 2), torch.full((50, 4), 3)
    by_bias = sample(table, x, EB, seed=1, processor=LogitBias({0: -math.inf}))
    by_name = sample(table, x, EB, seed=1, forbidden=[0])
    assert by_bias.tokens.tolist() == by_name.tokens.tolist()
    assert by_bias.nfe.tolist() == by_name.nfe.tolist()


def test_planning_sees_what_is_allowed():
    # A position that may take one token only is determined: the entropy bound takes it with another one at once.
    table, x = random_table(3, 2, 5), torch.full((1, 2), 3)
    free = sample(table, x, Rule(Entropy(), EntropyBound(0.0)), seed=0)
    slot = sample(table, x, Rule(Entropy(), EntropyBound(0.0)), seed=0, processor=Allowed({1: [2]}))
    assert free.nfe.tolist() == [2]
    assert slot.nfe.tolist() == [1]
    assert slot.tokens[0, 1] == 2


def test_labels_have_their_probabilities_in_the_trace():
    table = random_table(4, 3, 6)
    x = torch.full((1, 3), 4)
    result = sample(table, x, Rule(Uniform(), One()), seed=3, processor=Allowed({1: [0, 3]}), trace=True, candidates=2)
    (slot,) = [event for event in result.trace(0) if event.position == 1]
    assert {token for token, _ in slot.candidates} == {0, 3}
    assert sum(mass for _, mass in slot.candidates) == pytest.approx(1)
    assert slot.token in (0, 3)


def test_a_processor_is_of_its_own_sequence():
    hmm, x = random_hmm(3, 3, 1), torch.full((3, 6), 3)
    both = Chain((Allowed({0: [1]}), LogitBias({2: 1.5})))
    together = sample(hmm, x, EB, seed=4, processor=[None, both, LogitBias({0: -2.0})])
    for row, one in enumerate((None, both, LogitBias({0: -2.0}))):
        alone = sample(hmm, x, EB, seed=4, processor=one)
        assert together.sequences[row] == alone.sequences[row]
        assert together.nfe[row] == alone.nfe[row]


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="a bias is a number or -inf"):
        LogitBias({1: math.nan})
    with pytest.raises(ValueError, match="a token id must be a whole number >= 0"):
        LogitBias({-1: 0.5})
    with pytest.raises(ValueError, match="position 2 may take no token"):
        Allowed({2: []})
    with pytest.raises(ValueError, match="token 9 is outside the vocabulary"):
        sample(random_table(3, 2, 0), [[3, 3]], EB, seed=0, processor=Allowed({0: [9]}))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        sample(random_table(3, 2, 0), [[3, 3]], EB, seed=0, processor=LogitBias({9: 1.0}))
    with pytest.raises(ValueError, match="1 settings for a batch of 2"):
        sample(random_table(3, 2, 0), [[3, 3], [3, 3]], EB, seed=0, processor=[None])


def test_choices_keep_to_what_is_written():
    one = Choices(2, ((5, 6, 7), (5, 8, 1), (4, 1)))
    logits = torch.zeros(4, 10)
    x = torch.tensor([[0, 0, 9, 9, 9, 9], [0, 0, 5, 9, 9, 9], [0, 0, 9, 9, 7, 9], [0, 0, 4, 1, 9, 9]])
    found = one(logits, torch.tensor([2, 3, 3, 4]), x)
    assert [row.isfinite().nonzero().squeeze(-1).tolist() for row in found] == [
        [4, 5],
        [6, 8],
        [1, 6],  # the shortest says nothing of what is behind it
        list(range(10)),
    ]
    assert not logits.any()
    assert one(logits[:2], torch.tensor([1, 5]), x[:2]).eq(0).all()  # before the choices, and behind them
    with pytest.raises(ValueError, match="each must have a token"):
        Choices(0, ((),))


def test_choices_written_one_at_a_time_are_one_of_them():
    model, choices = random_hmm(4, 4, 0), ((0, 1, 2), (0, 2, 2), (3, 3, 3), (3, 1, 0))
    found = sample(model, [[2, 4, 4, 4]] * 60, Rule(Entropy(), One()), seed=0, processor=Choices(1, choices))
    assert {tuple(row[1:]) for row in found.tokens.tolist()} == set(choices)
