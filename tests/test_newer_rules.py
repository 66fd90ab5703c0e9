"""Rules on marginals of 2025 and 2026, each against a few lines that say what it is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import Confidence, Entropy, EntropyBound, Factor, LeftToRight, Noisy, Rule, Steps, Threshold, TopK, sample
from unmask.oracles import MarkovDenoiser, exact_law, pearson, random_hmm, random_table
from unmask.rules import All, CarriedBound, Credit, Frechet, Groups, Hierarchy, Spaced, Stable, UpstreamGate
from unmask.rules.credit import Credits
from unmask.rules.named import named_rule
from unmask.sampling.view import View

INF = math.inf
eighths = st.integers(0, 16).map(lambda n: n / 16)  # sums are exact
rows = st.lists(st.tuples(eighths, st.booleans()), min_size=1, max_size=9).filter(lambda row: any(m for _, m in row))


def view(values: list[float], masked: list[bool]) -> View:
    """One sequence, whose entropies and doubts are the values."""
    h = torch.tensor([[v if m else INF for v, m in zip(values, masked, strict=True)]], dtype=torch.float64)
    candidate = torch.tensor([masked])
    position = torch.arange(len(values)).expand_as(h)
    return View(candidate, h, h, h, position, torch.zeros_like(h), torch.empty(1, 0), candidate, ~candidate)


def taken(rule: Rule, values: list[float], masked: list[bool]) -> list[int]:
    v = view(values, masked)
    chosen, _ = rule.select(View(**{**vars(v), "memory": rule.budget.start(v.candidate.sum(-1))}))
    return chosen[0].nonzero().squeeze(-1).tolist()


def ranked(values: list[float], masked: list[bool]) -> list[int]:
    return sorted((i for i, m in enumerate(masked) if m), key=lambda i: (values[i], i))


@given(rows, eighths, eighths, st.integers(1, 4))
def test_the_upstream_gate_scans_from_the_left(row, threshold, beta, window):
    """The paper's scan: one candidate after the other, what was passed does not count."""
    values, masked = map(list, zip(*row, strict=True))
    order = ranked(values, masked)
    base = {i for i in order if values[i] <= 1 - threshold} | {order[0]}
    passed: list[int] = []
    for i in (i for i, m in enumerate(masked) if m):
        if i in base and math.fsum(values[j] for j in range(i) if masked[j] and j not in passed) <= beta:
            passed.append(i)
    if not passed:
        near = [i for i, m in enumerate(masked) if m][:window]
        passed = [min(near, key=lambda i: (values[i], i))]
    assert taken(Rule(Confidence(), UpstreamGate(Threshold(threshold), beta, window)), values, masked) == passed


@given(rows, st.integers(1, 6), st.one_of(st.none(), st.integers(1, 9)))
def test_the_spacing_filter_keeps_the_best_that_are_far_apart(row, spacing, block):
    values, masked = map(list, zip(*row, strict=True))
    masks = sum(masked)
    gap = max(2, masks * spacing // (masks if block is None else block))
    kept: list[int] = []
    for i in ranked(values, masked):
        if all(abs(i - j) >= gap for j in kept):
            kept.append(i)
    assert taken(Rule(Entropy(), Spaced(All(), spacing, block)), values, masked) == sorted(kept)


@given(rows, eighths)
def test_frechet_takes_the_largest_prefix_whose_bound_exceeds_its_rival(row, delta):
    values, masked = map(list, zip(*row, strict=True))
    order = ranked(values, masked)
    best = 1
    for n in range(1, len(order) + 1):
        confidence = [1 - values[i] for i in order[:n]]
        if math.fsum(confidence) - (n - 1) - (1 - confidence[-1]) > delta:
            best = max(best, n)
    assert taken(Rule(Confidence(), Frechet(delta)), values, masked) == sorted(order[:best])


def test_frechet_is_factor_where_confidences_are_equal_and_admits_no_fewer_elsewhere():
    for delta in (0.0, 0.25, 0.5):
        frechet, factor = Rule(Confidence(), Frechet(delta)), Rule(Confidence(), Factor(1 - delta))
        assert taken(frechet, [0.0625] * 9, [True] * 9) == taken(factor, [0.0625] * 9, [True] * 9)
        uneven = [0.0, 0.0, 0.01, 0.02, 0.1, 0.2]
        assert set(taken(frechet, uneven, [True] * 6)) >= set(taken(factor, uneven, [True] * 6))
    assert len(taken(Rule(Confidence(), Frechet(0.0)), [0, 0, 0, 0.4], [True] * 4)) == 4
    assert len(taken(Rule(Confidence(), Factor(1.0)), [0, 0, 0, 0.4], [True] * 4)) == 3


@given(rows, eighths, eighths)
def test_the_hierarchy_takes_the_best_of_each_run(row, one, other):
    values, masked = map(list, zip(*row, strict=True))
    low, high = sorted((one, other))
    runs: list[list[int]] = []
    for i, m in enumerate(masked):
        if m:
            if i and masked[i - 1]:
                runs[-1].append(i)
            else:
                runs.append([i])
    found = {min(run, key=lambda i: (values[i], i)) for run in runs}
    found = {i for i in found if values[i] < 1 - low}
    found |= {i for i, m in enumerate(masked) if m and values[i] < 1 - high} | {ranked(values, masked)[0]}
    assert taken(Rule(Confidence(), Hierarchy(low, high)), values, masked) == sorted(found)


def test_bad_settings_and_budgets_that_count_are_refused():
    for bad in (Steps(2), CarriedBound(1.0), Groups((1, 2)), Stable(), Credit(0.5)):
        for wrap in (UpstreamGate, Spaced):
            with pytest.raises(ValueError, match="holds back"):
                wrap(bad)
    for build, match in (
        (lambda: UpstreamGate(All(), -1.0), "beta"),
        (lambda: UpstreamGate(All(), 1.0, 0), "window"),
        (lambda: Spaced(All(), 0), "spacing"),
        (lambda: Spaced(All(), 2, 0), "block"),
        (lambda: Frechet(1.5), "delta"),
        (lambda: Hierarchy(0.9, 0.4), "low must not be above high"),
        (lambda: Credit(0.5, beta=1.0), "beta"),
        (lambda: Credit(0.5, alpha=-1.0), "alpha"),
        (lambda: Rule(Noisy(), Credit(0.5)), "logits of its own"),
        (lambda: named_rule("upstream-gate:budget=wino"), "no budget to wrap"),
        (lambda: named_rule("spaced:budget=steps:steps=3"), "holds back"),
    ):
        with pytest.raises(ValueError, match=match):
            build()


def test_a_wrapped_budget_is_named_with_its_settings():
    rule = named_rule("upstream-gate:beta=2,budget=noisy-bound:gamma=0.3+noise=2").rule
    assert isinstance(rule, Rule)
    assert rule.order == Noisy(noise=2.0)
    assert isinstance(rule.budget, UpstreamGate)
    assert repr(rule.budget.budget) == "EntropyBound(gamma=0.3)"
    own = torch.tensor([0.0, INF], dtype=torch.float64)
    result = sample(random_hmm(3, 3, 0), torch.full((2, 6), 3), Rule(Entropy(), Spaced(EntropyBound(own), 2)), seed=0)
    assert result.nfe.tolist()[0] > result.nfe.tolist()[1]


@pytest.mark.parametrize(
    "rule",
    [
        Rule(Entropy(), UpstreamGate(EntropyBound(1.0), 0.8, 2)),
        Rule(LeftToRight(), UpstreamGate(TopK(3), 0.0, 1)),
        Rule(Noisy(), UpstreamGate(EntropyBound(INF), 1.0)),
        Rule(Entropy(), Spaced(All(), 2, None)),
        Rule(Noisy(), Spaced(EntropyBound(1.5), 1, 4)),
        Rule(Confidence(), Frechet(0.05)),
        Rule(Confidence(), Hierarchy(0.3, 0.6)),
        Rule(Confidence(), Credit(0.55)),
        Rule(Entropy(), Credit(0.7, alpha=2.0, gamma=1.0, beta=0.5)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("blocks", [None, 3])
def test_the_loop_draws_from_their_exact_law(rule, blocks):
    """Pearson, 20,000 sequences on 243 outcomes: a correct sampler fails one seed in 10⁶, a law 0.05 away in total
    variation is caught with probability > 0.99."""
    oracle, x = random_table(3, 5, 6), torch.full((5,), 3)
    law = exact_law(oracle, rule, x, blocks=blocks)
    run = sample(oracle, x.expand(20_000, -1), rule, seed=4, blocks=blocks)
    assert law.pvalue(run.tokens) > 1e-6
    assert abs(float(run.nfe.double().mean()) - law.nfe_mean) < 5 * float(run.nfe.double().std()) / 20_000**0.5 + 1e-9
    assert math.isnan(law.bound) or law.kl <= law.bound + 1e-9 or isinstance(rule.budget, Credit)


def test_held_back_neighbours_cost_less_than_what_the_budget_takes():
    """On a chain neighbours depend on each other most: the filter only takes away, and so the error falls."""
    chain, x = MarkovDenoiser.lazy(3, 0.9), torch.full((6,), 3)
    free, spaced = (exact_law(chain, Rule(Entropy(), budget), x) for budget in (All(), Spaced(All(), 2, 6)))
    assert spaced.kl < 0.7 * free.kl
    assert spaced.nfe_mean == 2  # every second position, then the others
    one = exact_law(chain, Rule(LeftToRight(), UpstreamGate(All(), 0.0)), x)
    assert one.nfe_mean == 1  # all are unmasked together, so nothing stays open
    gated = exact_law(chain, Rule(LeftToRight(), UpstreamGate(Threshold(0.95), 0.0)), x)
    assert gated.kl < 1e-9


def test_credit_adds_up_fades_and_biases_the_draw():
    credits, where = Credits(torch.empty(1, 0)), torch.tensor([[True, True]])
    for token in ([0, 2], [1, 2], [0, 2]):
        credits = credits.earn(where, torch.tensor(token), torch.tensor([0.5, 1.0]), 0.5)
    assert credits.token is not None
    assert credits.credit is not None
    assert credits.token.tolist() == [[[0, 1], [2, -1]]]
    assert credits.credit.tolist() == [[[0.5 + 0.125, 0.25], [1.75, 0.0]]]
    # Independent coins, one at a time: the truth is 0.8, and a credit of C makes it 0.8 (1 + C)^alpha / (… + 0.2).
    oracle, x = random_table(2, 1, 0), torch.full((1,), 2)
    p = float(oracle.weights.max() / oracle.total)
    law = exact_law(oracle, Rule(Confidence(), Credit(1.0, alpha=1.0, gamma=1.0)), x)
    assert float(law.log_q.exp().max()) == pytest.approx(p * (1 + p) / (p * (1 + p) + 1 - p))
    plain = exact_law(random_table(3, 4, 1), Rule(Confidence(), Credit(0.6, alpha=0.0)), torch.full((4,), 3))
    same = exact_law(random_table(3, 4, 1), Rule(Confidence(), Threshold(0.6)), torch.full((4,), 3))
    assert plain.log_q == pytest.approx(same.log_q)
    biased = exact_law(random_table(3, 4, 1), Rule(Confidence(), Credit(1.0)), torch.full((4,), 3))
    assert biased.nfe_mean == 4  # one at a time, with exact conditionals, and yet:
    assert biased.kl > 0.01


def test_pearson_here_catches_what_is_wrong():
    oracle, x = random_table(3, 5, 6), torch.full((5,), 3)
    law = exact_law(oracle, Rule(Entropy(), Spaced(All(), 2, None)), x)
    wrong = sample(oracle, x.expand(20_000, -1), Rule(Entropy(), All()), seed=4).tokens
    assert law.pvalue(wrong) < 1e-12
    assert pearson(torch.tensor([50, 50]), torch.tensor([0.5, 0.5])) == 1.0
