"""Audits: what they estimate against exact laws, and that they see a parity constraint which no pair shows."""

from __future__ import annotations

import math

import pytest
import torch

from unmask import DependenceBound, Entropy, EntropyBound, Rule, derive, sample
from unmask.dependence.audit import audited_sample
from unmask.dependence.calibrate import oracle_profile
from unmask.oracles import MarkovDenoiser, PerturbedDenoiser, exact_law, parity_table, random_hmm

CHAIN = MarkovDenoiser.lazy(2, 0.75)


def masks(count: int, length: int) -> torch.Tensor:
    return torch.full((count, length), 2)


@pytest.mark.parametrize("gamma", [0.01, 0.2])
def test_it_estimates_what_a_run_lost_without_bias(gamma):
    """4 standard errors from the exact divergence: p < 1e-4."""
    rule = Rule(Entropy(), DependenceBound(gamma, oracle_profile(CHAIN, 9)))
    exact = exact_law(CHAIN, rule, masks(1, 9)[0]).kl
    for share in (1.0, 0.3):
        _, audit = audited_sample(CHAIN, masks(3000, 9), rule, tests=share, seed=1)
        error = float(audit.lost.std()) / 3000**0.5
        assert error < 0.3 * exact
        assert abs(float(audit.lost.mean()) - exact) < 4 * error


def test_movement_is_mutual_information_on_both_sides():
    """Two tokens, one at a time: what the second moves is predicted by the profile, and known."""
    rule = Rule(Entropy(), DependenceBound(0.0, oracle_profile(CHAIN, 2, contexts=4000)))
    _, audit = audited_sample(CHAIN, masks(2000, 2), rule, seed=0)
    exact = math.log(2) + 0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    assert audit.compared.tolist() == [1] * 2000
    assert float(audit.realised.mean()) == pytest.approx(exact, abs=1e-9)  # the same for both symbols
    assert float(audit.predicted.mean()) == pytest.approx(exact, rel=0.01)
    ratio, error = audit.movement()
    assert ratio == pytest.approx(1, rel=0.01)
    assert error < 1e-9
    assert not bool(audit.tests.any())
    assert math.isnan(audit.excess()[0])


def test_parity_is_lost_and_an_extra_evaluation_tells():
    oracle, x = parity_table(2), masks(400, 6)
    blind, some = (DependenceBound(gamma, oracle_profile(oracle, 6)) for gamma in (0.1, 0.01))
    law = exact_law(oracle, Rule(Entropy(), blind), x[0])
    assert law.nfe_mean == 1
    assert law.kl == pytest.approx(2 * math.log(2))
    assert exact_law(oracle, Rule(Entropy(), EntropyBound(0.1)), x[0]).kl < 1e-9
    _, audit = audited_sample(oracle, x, Rule(Entropy(), blind), tests=0.5, seed=0)
    excess, error = audit.excess()
    assert excess > 6 * error
    assert math.isnan(audit.movement()[0])  # nothing was left to move
    # Where one of three stays behind, the ordinary evaluation sees it move: pairs did not let expect that.
    _, audit = audited_sample(oracle, x, Rule(Entropy(), some), seed=0)
    assert audit.movement()[0] > 10


def test_any_two_of_a_group_of_three_are_independent():
    oracle = parity_table(1, 3)
    for known in ([2, 2, 2], [0, 2, 2]):
        x = torch.tensor([known])
        for place in (x[0] == 2).nonzero().flatten().tolist():
            law = oracle.log_marginal(torch.where(torch.arange(3) == place, 0, x))
            assert float((law - oracle.log_marginal(x)).exp()) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="groups of two bits"):
        parity_table(1, 1)


def test_it_changes_no_sample_and_depends_on_no_batch():
    oracle = PerturbedDenoiser(random_hmm(3, 3, 0), 0.3)
    rule = Rule(Entropy(), DependenceBound(0.2, oracle_profile(random_hmm(3, 3, 0), 8)))
    rows = [[3] * 8, [3, 3, 1, 3, 3], [0, 1], [3, 3, 3, 0, 3, 3, 3]]
    streams = [derive(7, row) for row in range(4)]
    result, audit = audited_sample(oracle, rows, rule, tests=0.7, streams=streams, trace=True)
    plain = sample(oracle, rows, rule, streams=streams)
    assert torch.equal(result.tokens, plain.tokens)
    assert torch.equal(result.nfe, plain.nfe)
    assert int(audit.tests.sum()) > 0
    for row in range(4):
        _, alone = audited_sample(oracle, [rows[row]], rule, tests=0.7, streams=[streams[row]])
        for name, values in vars(alone).items():
            assert float(values[0]) == pytest.approx(float(getattr(audit, name)[row]), abs=1e-12)


def test_what_cannot_be_audited_is_refused():
    rule = Rule(Entropy(), DependenceBound(0.2, oracle_profile(CHAIN, 3)))
    with pytest.raises(ValueError, match="budget that charges for dependence"):
        audited_sample(CHAIN, masks(1, 3), Rule(Entropy(), EntropyBound(0.1)), seed=0)
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            audited_sample(CHAIN, masks(1, 3), rule, tests=share, seed=0)
    timed = MarkovDenoiser.lazy(2, 0.75)
    timed.wants_time = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="ignores time"):
        audited_sample(timed, masks(1, 3), rule, seed=0)
    nothing, _ = audited_sample(CHAIN, torch.tensor([[0, 1, 0]]), rule, seed=0)
    assert nothing.nfe.tolist() == [0]
