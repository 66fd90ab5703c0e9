"""Independence tests: their exact law against the loop, what they cost, and what they find that pairs do not show."""

from __future__ import annotations

import pytest
import torch

from unmask import Confidence, Entropy, MaskedFraction, Noisy, One, Rule, Uniform, derive, sample
from unmask.oracles import MarkovDenoiser, PerturbedDenoiser, exact_law, parity_table, random_hmm
from unmask.rules import IndependenceTest
from unmask.schedule import Linear

CHAIN, HMM = MarkovDenoiser.lazy(2, 0.75), random_hmm(3, 3, 0, 0.4)


@pytest.mark.parametrize("epsilon", [0.01, 0.1])
@pytest.mark.parametrize("order", [Entropy(), Confidence()])
def test_its_law_is_that_of_the_loop(order, epsilon):
    """20,000 sequences against the exact law, p > 1e-6, as in test_loop_law."""
    for oracle, x in ((HMM, torch.tensor([3, 3, 1, 3, 3])), (CHAIN, torch.full((5,), 2))):
        rule = Rule(order, IndependenceTest(epsilon))
        law = exact_law(oracle, rule, x)
        drawn = sample(oracle, x.expand(20_000, -1), rule, seed=3)
        assert law.pvalue(drawn.tokens) > 1e-6
        error = float(drawn.nfe.double().std()) / 20_000**0.5
        assert abs(float(drawn.nfe.double().mean()) - law.nfe_mean) <= 5 * error + 1e-9
        assert torch.equal(drawn.nfe, drawn.evaluations)
        assert drawn.forward_passes >= int(drawn.nfe.max())


def test_blocks_and_temperature_have_a_law_too():
    rule, x = Rule(Confidence(), IndependenceTest(0.05)), torch.full((5,), 3)
    settings = {"blocks": 3, "temperature": 0.7}
    law = exact_law(HMM, rule, x, **settings)
    assert law.pvalue(sample(HMM, x.expand(20_000, -1), rule, seed=4, **settings).tokens) > 1e-6


def test_independent_tokens_cost_a_logarithm_and_dependent_ones_are_told_apart():
    coins, x = MarkovDenoiser.lazy(2, 0.5), torch.full((9,), 2)
    result = sample(coins, x.unsqueeze(0), Rule(Confidence(), IndependenceTest(1e-9)), seed=0, trace=True)
    assert result.nfe.tolist() == [1 + 4]  # nine candidates are sixteen, halved four times
    assert result.steps is not None
    assert result.steps[0].forward_passes == 5
    assert result.bound.tolist() == pytest.approx([8 * 0.6931471805599453])
    law = exact_law(CHAIN, Rule(Confidence(), IndependenceTest(1e-9)), x[:6])
    assert law.kl < 1e-9
    assert law.nfe_mean > 6  # the tests cost more than they save here


def test_it_sees_parity():
    rule = Rule(Confidence(), IndependenceTest(0.1))
    law = exact_law(parity_table(2), rule, torch.full((6,), 2))
    assert law.kl < 1e-9
    assert law.off_support == 0
    assert law.nfe_mean == pytest.approx(6)


@pytest.mark.parametrize("blocks", [None, 3])
def test_a_sequence_alone_equals_the_same_sequence_in_any_batch(blocks):
    oracle = PerturbedDenoiser(HMM, 0.3)
    rows = [[3] * 8, [3, 3, 1, 3, 3], [0, 1], [3], [3, 3, 3, 0, 3, 3, 3]]
    streams = [derive(5, row) for row in range(len(rows))]
    rule = Rule(Entropy(), IndependenceTest(0.05))
    together = sample(oracle, rows, rule, streams=streams, blocks=blocks, trace=True)
    for row, tokens in enumerate(rows):
        alone = sample(oracle, [tokens], rule, streams=[streams[row]], blocks=blocks, trace=True)
        assert alone.sequences[0] == together.sequences[row]
        assert alone.trace_json(0) == together.trace_json(row)


def test_bad_settings_are_refused():
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon must be"):
            IndependenceTest(bad)
    with pytest.raises(ValueError, match="an order of its own"):
        Rule(Noisy(), IndependenceTest(0.1))
    with pytest.raises(ValueError, match="orders that are not random"):
        exact_law(CHAIN, Rule(Uniform(), IndependenceTest(0.1)), torch.full((3,), 2))
    assert Rule(Uniform(), One()).asks_once
    assert not Rule(Entropy(), IndependenceTest(0.1)).asks_once
    timed = MarkovDenoiser.lazy(2, 0.75)
    timed.wants_time = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="ignores the time"):
        sample(timed, [[2, 2]], Rule(Entropy(), IndependenceTest(0.1), MaskedFraction(Linear())), seed=0)
