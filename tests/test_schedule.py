"""The information curve, and the group sizes that lose the least: against brute force and exact laws."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import run

from unmask import LeftToRight, One, Rule, Uniform, sample
from unmask.likelihood.curve import InformationCurve, measure_curve, optimal_sizes, oracle_curve
from unmask.oracles import MarkovDenoiser, exact_law, random_hmm, random_table
from unmask.rules import Groups

ORACLES = {
    "chain": (MarkovDenoiser.lazy(2, 0.8), 6),
    "hmm": (random_hmm(3, 2, 0, 0.4), 5),
    "table": (random_table(3, 5, 1), 5),
}


def compositions(total: int, parts: int) -> list[tuple[int, ...]]:
    cuts = itertools.combinations(range(1, total), parts - 1)
    return [tuple(b - a for a, b in itertools.pairwise((0, *cut, total))) for cut in cuts]


@pytest.mark.parametrize("name", ORACLES)
def test_the_loss_is_the_exact_dependence_error_of_every_sequence_of_sizes(name):
    oracle, length = ORACLES[name]
    curve, x = oracle_curve(oracle, length), torch.full((length,), oracle.mask_id)
    for evaluations in range(1, length + 1):
        exact = {
            sizes: exact_law(oracle, Rule(Uniform(), Groups(sizes)), x).dependence
            for sizes in compositions(length, evaluations)
        }
        for sizes, dependence in exact.items():
            assert curve.loss(sizes) == pytest.approx(dependence, abs=1e-9)
        best = optimal_sizes(curve, evaluations)
        assert len(best) == evaluations
        assert exact[best] == pytest.approx(min(exact.values()), abs=1e-9)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 8), st.data())
def test_the_programme_finds_the_best_of_all_compositions(seed, masks, data):
    generator = torch.Generator().manual_seed(seed)
    nats = torch.rand(masks, generator=generator, dtype=torch.float64).cumsum(0)
    curve = InformationCurve(nats, torch.zeros(masks, dtype=torch.int64))
    evaluations = data.draw(st.integers(1, masks))
    best = min(curve.loss(sizes) for sizes in compositions(masks, evaluations))
    assert curve.loss(optimal_sizes(curve, evaluations)) == pytest.approx(best, abs=1e-12)


def test_a_measured_curve_is_the_exact_one_up_to_its_noise():
    """Each value within four standard errors of a surprise that varies by less than 0.6 nats between evaluations."""
    oracle, length = ORACLES["chain"]
    x = sample(oracle, torch.full((3000, length), 2), Rule(LeftToRight(), One()), seed=0).tokens
    curve, exact = measure_curve(oracle, x, strata=6, seed=1), oracle_curve(oracle, length)
    assert curve.evaluations.tolist() == [3000] * 6
    assert float((curve.nats - exact.nats).abs().max()) < 4 * 0.6 / 3000**0.5
    assert bool((curve.nats.diff() >= 0).all())
    assert torch.equal(curve.nats, measure_curve(oracle, x, strata=6, seed=1, batch_size=17).nats)


def test_counts_without_an_evaluation_lie_between_their_neighbours():
    oracle, length = MarkovDenoiser.lazy(2, 0.9), 40
    x = sample(oracle, torch.full((3, length), 2), Rule(LeftToRight(), One()), seed=0).tokens
    maskable = torch.ones_like(x, dtype=torch.bool)
    maskable[0, :20] = False
    curve = measure_curve(oracle, x, maskable=maskable, strata=3, seed=0)
    assert len(curve.nats) == 40
    assert int(curve.evaluations.sum()) == 9
    assert bool(curve.nats.isfinite().all())
    assert bool((curve.nats.diff() >= 0).all())


def test_bad_numbers_are_refused():
    curve = InformationCurve(torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64), torch.zeros(3, dtype=torch.int64))
    for bad in (0, 4, 1.0, True):
        with pytest.raises(ValueError, match="from 1 to the 3 tokens"):
            optimal_sizes(curve, bad)  # pyright: ignore[reportArgumentType]
    for sizes in ((1, 1), (4, -1), (2.0, 1)):
        with pytest.raises(ValueError, match="add up to 3"):
            curve.loss(sizes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="too many sets"):
        oracle_curve(MarkovDenoiser.lazy(2, 0.7), 14)


def test_the_command_prints_a_rule_that_loses_what_it_says():
    arguments = ("--oracle", "markov", "--stay", "0.8", "--symbols", "2", "--length", "6")
    report = json.loads(run("schedule", *arguments, "--evaluations", "3", "--json"))
    assert report["loss"] <= report["loss_equal"]
    assert sum(report["sizes"]) == report["tokens"] == 6
    law = json.loads(run("law", *arguments, "--rule", report["rule"], "--json"))
    assert law["nfe_mean"] == 3
    assert law["kl"] <= report["loss"] + 1e-9
    assert report["rule"] in run("schedule", *arguments, "--evaluations", "3")
    small = ("schedule", "arithmetic", "--samples", "4", "--strata", "3", "--evaluations", "2", "--json")
    report = json.loads(run(*small))
    assert report["measured"] == 12
    assert len(report["sizes"]) == 2
    with pytest.raises(ValueError, match="name a model, or"):
        run("schedule", "--evaluations", "2")
    with pytest.raises(ValueError, match="from 1 to the 6 tokens"):
        run("schedule", *arguments, "--evaluations", "7")
