"""Looking ahead gives the tokens of the rule alone, in no more evaluations."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import tables
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import (
    All,
    CarriedBound,
    Confidence,
    Entropy,
    EntropyBound,
    FullDenoiser,
    LeftToRight,
    Margin,
    Noisy,
    One,
    Rule,
    Speculative,
    Steps,
    Threshold,
    TopK,
    Uniform,
    sample,
)
from unmask.oracles import PerturbedDenoiser, Sudoku4Denoiser, exact_law, random_hmm, random_table
from unmask.rules import Dilated, Groups, Lookahead, Spaced, UpstreamGate

ORDERS = st.sampled_from([Entropy(), Confidence(), Margin(), LeftToRight(), Uniform()])
BUDGETS = st.one_of(
    st.sampled_from([One(), TopK(2), Steps(3), Threshold(0.5), CarriedBound(0.8), All(), Dilated(), Groups((1, 2, 1))]),
    st.floats(0, 2).map(EntropyBound),
    st.floats(0, 2).map(lambda gamma: Spaced(EntropyBound(gamma), 2, 4)),
    st.floats(0, 2).map(lambda beta: UpstreamGate(Threshold(0.4), beta)),
)


@settings(max_examples=40)
@given(
    tables(),
    st.builds(Rule, ORDERS, BUDGETS),
    st.integers(1, 4),
    st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=4),
    st.sampled_from([{}, {"blocks": 2}, {"temperature": 0.0}, {"top_k": 2, "temperature": 0.7}]),
)
def test_token_for_token_and_never_more_evaluations(oracle, rule, depth, rows, draw):
    """Also with a model whose states contradict each other."""
    model, x = PerturbedDenoiser(oracle, 0.7), torch.tensor(rows)
    alone, ahead = sample(model, x, rule, seed=3, **draw), sample(model, x, Lookahead(rule, depth), seed=3, **draw)
    assert ahead.sequences == alone.sequences
    assert bool((ahead.nfe <= alone.nfe).all())
    assert bool((ahead.nfe <= ahead.evaluations).all())
    assert bool((ahead.evaluations <= (depth + 1) * ahead.nfe).all())


def test_it_saves_evaluations():
    oracle, x = Sudoku4Denoiser(), torch.full((100, 16), 4)
    for rule, least in ((Rule(Entropy(), EntropyBound(1.5)), 0.7), (Rule(Confidence(), Threshold(0.6)), 0.8)):
        alone, ahead = (sample(oracle, x, one, seed=1) for one in (rule, Lookahead(rule, 3)))
        assert ahead.sequences == alone.sequences
        assert float(ahead.nfe.sum()) < least * float(alone.nfe.sum())
    long = random_hmm(3, 3, 2)
    one, sets = Rule(LeftToRight(), One()), Lookahead(Rule(LeftToRight(), One()), 2)
    both = [sample(long, torch.full((20, 12), 3), rule, seed=0) for rule in (one, sets)]
    speculative = sample(long, torch.full((20, 12), 3), Rule(LeftToRight(), Speculative(2)), seed=0)
    assert both[0].sequences == both[1].sequences == speculative.sequences
    assert both[1].nfe.tolist() == speculative.nfe.tolist()


def test_a_draft_ends_before_a_state_that_cannot_be():
    """The model has no answer for a sequence with two tokens 0 side by side, which a draft may hold."""

    def logits(x):
        found = torch.zeros(*x.shape, 3, dtype=torch.float64)
        found[..., 1] = torch.arange(x.shape[1]) * 0.1
        after = (x == 0).roll(1, -1)
        after[:, 0] = False
        found[..., 0] = torch.where(after, -torch.inf, found[..., 0])
        found[((x[:, 1:] == 0) & (x[:, :-1] == 0)).any(-1)] = torch.nan
        return found

    model, x, rule = FullDenoiser(logits, 3, 2), torch.full((200, 6), 2), Rule(LeftToRight(), One())
    alone, ahead = sample(model, x, rule, seed=0), sample(model, x, Lookahead(rule, 3), seed=0)
    assert ahead.sequences == alone.sequences
    assert float(ahead.nfe.sum()) < float(alone.nfe.sum())


def test_its_law_is_that_of_the_rule_and_what_speaks_for_itself_is_refused():
    oracle, x, rule = random_table(3, 4, 0), torch.full((4,), 3), Rule(Entropy(), EntropyBound(0.5))
    ahead, alone = exact_law(oracle, Lookahead(rule), x), exact_law(oracle, rule, x)
    assert ahead.log_q.equal(alone.log_q)
    assert math.isnan(ahead.nfe_mean)
    for bad in (Rule(Noisy(), One()), Rule(Entropy(), Speculative(2))):
        with pytest.raises(ValueError, match="conversation of their own"):
            Lookahead(bad)
    with pytest.raises(ValueError, match="depth"):
        Lookahead(rule, 0)
