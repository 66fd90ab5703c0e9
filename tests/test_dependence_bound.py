"""The dependence bound: its walk against five lines, the entropy bound as its limit, and what it gains on chains."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import (
    Confidence,
    Entropy,
    EntropyBound,
    LeftToRight,
    Margin,
    One,
    Rule,
    Sampler,
    Uniform,
    derive,
    sample,
)
from unmask.dependence.calibrate import measure_profile
from unmask.oracles import MarkovDenoiser, Oracle, PerturbedDenoiser, exact_law, random_hmm, random_table
from unmask.rules.dependence import AGGREGATES, DependenceBound
from unmask.rules.profile import Line, Profile, Relations
from unmask.sampling.view import View

INF = math.inf


@cache
def measured(oracle: Oracle, length: int, count: int = 200) -> Profile:
    x = torch.full((count, length), oracle.mask_id)
    data = sample(oracle, x, Rule(LeftToRight(), One()), seed=0).tokens
    return measure_profile(oracle, data, Profile.empty(Line.of(length)), seed=0)


def random_profile(seed: int, length: int, relations: bool = False) -> Profile:
    """Shares of all sizes, in cells that all have data."""
    side = torch.arange(length) % 3
    geometry = Relations((side.unsqueeze(-1) != side).long(), ("a", "b")) if relations else Line((1, 2, 4))
    empty = Profile.empty(geometry, fractions=3, levels=(0.2, 0.6))
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(empty.pairs.shape, generator=generator, dtype=torch.float64) ** 2
    one = torch.ones_like(share)
    return replace(empty, pairs=one, contexts=one * 1e9, total=share, smaller=one)


def walk(bound: DependenceBound, view: View, row: int, gamma: float, commitment: float) -> list[int]:
    """The rule as it is defined, for one row of a view that is already in order."""
    profile, share = bound.profile, bound.profile.prices(scaled=bound.scaled).clamp(max=1)
    assert view.known is not None
    assert view.masked is not None
    h, place = view.entropy[row].tolist(), view.position[row].tolist()
    known = {p for p, k in zip(place, view.known[row].tolist(), strict=True) if k}
    masks = int(view.masked[row].sum())
    fraction = math.ceil(masks * profile.fractions / (masks + len(known))) - 1

    def pair(i: int, j: int) -> float:
        number = int(profile.geometry.pairs(torch.tensor(place[i]), torch.tensor(place[j])))
        low, high = sorted((place[i], place[j]))
        screened = int(any(low < p < high for p in known)) if profile.geometry.screens == 2 else 0
        level = sum(min(h[i], h[j]) > edge for edge in profile.levels)
        return float(share[number, fraction, screened, level]) * min(h[i], h[j])

    def dependence(i: int, on: list[int]) -> float:
        if bound.aggregate == "sum":
            return math.fsum(pair(i, j) for j in on)
        if bound.aggregate == "largest":
            return math.fsum(sorted((pair(i, j) for j in on), reverse=True)[:2])
        left = [j for j in on if place[j] < place[i]]
        right = [j for j in on if place[j] > place[i]]
        sides = [max(left, key=place.__getitem__)] if left else []
        sides += [min(right, key=place.__getitem__)] if right else []
        return math.fsum(pair(i, j) for j in sides)

    chosen, spent = [], 0.0
    for i in range(len(h)):
        if not bool(view.candidate[row, i]):
            continue
        price = min(h[i], dependence(i, chosen)) if chosen else 0.0
        both = [h[j] for j in (*chosen, i)]
        cheap = spent + price <= gamma and float(view.doubt[row, i]) <= commitment
        if not chosen or cheap or math.fsum(both) - max(both) <= gamma:
            chosen.append(i)
            spent += price
    return chosen


@settings(max_examples=300)
@given(
    st.integers(0, 10**6),
    st.sampled_from(AGGREGATES),
    st.booleans(),
    st.floats(0.001, 2),
    st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
def test_the_walk_is_the_definition(seed, aggregate, relations, gamma, commitment):
    generator = torch.Generator().manual_seed(seed)
    rows, length = 3, 8
    profile = random_profile(seed, length, relations and aggregate != "nearest")
    masked = torch.rand(rows, length, generator=generator) < 0.7
    known = ~masked & (torch.rand(rows, length, generator=generator) < 0.9)
    candidate = masked & (torch.rand(rows, length, generator=generator) < 0.9)
    entropy = torch.rand(rows, length, generator=generator, dtype=torch.float64).masked_fill(~candidate, INF)
    noise = torch.rand(rows, length, generator=generator, dtype=torch.float64)
    bound = DependenceBound(
        torch.linspace(gamma, 2 * gamma, rows, dtype=torch.float64), profile, aggregate, commitment=commitment
    )
    view = replace(View.blank(candidate, noise, bound.start(masked.sum(-1)), masked, known), entropy=entropy)
    view = replace(view, doubt=torch.rand(rows, length, generator=generator, dtype=torch.float64))
    order = noise.masked_fill(~candidate, INF).argsort(-1)
    ranked = view.ranked(order)
    admitted, memory = bound.admit(ranked)
    assert torch.equal(memory, view.memory)
    for row in range(rows):
        expected = walk(bound, ranked, row, float(view.memory[row, 0]), commitment)
        assert admitted[row].nonzero().squeeze(-1).tolist() == expected


@given(st.integers(0, 10**6), st.one_of(st.floats(0, 3), st.just(INF)))
def test_without_a_measurement_it_is_the_entropy_bound_in_entropy_order(seed, gamma):
    generator = torch.Generator().manual_seed(seed)
    h = torch.rand(5, 9, generator=generator, dtype=torch.float64) * torch.randint(0, 3, (5, 9), generator=generator)
    masked = torch.rand(5, 9, generator=generator) < 0.8
    h = h.masked_fill(~masked, INF)
    empty = Profile.empty(Line.of(9))
    for bound in (
        DependenceBound(gamma, empty),
        DependenceBound(gamma, empty, "nearest", scaled=False),
        DependenceBound(gamma, empty, "largest", scaled=False),
        DependenceBound(gamma, empty, quantile=0.9),
        DependenceBound(gamma, random_profile(seed, 9), commitment=-0.0),
    ):
        chosen = []
        for budget in (bound, EntropyBound(gamma)):
            view = View.blank(masked, torch.zeros_like(h), budget.start(masked.sum(-1)), masked, ~masked)
            # Doubts above 0 where entropies are: then a commitment of 0 lets nothing pass that the entropies do not.
            view = replace(view, entropy=h, doubt=(h > 0).double())
            chosen.append(Rule(Entropy(), budget).select(view)[0])
        assert torch.equal(*chosen)


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from([Entropy(), Confidence(), Margin(), Uniform(), LeftToRight()]))
def test_it_admits_whatever_the_entropy_bound_does_and_costs_no_more_in_a_step(seed, order):
    oracle = random_table(3, 5, seed % 50)
    profile, x = random_profile(seed, 5), torch.full((20, 5), 3)
    gamma = (seed % 7) / 7
    wide = Sampler(oracle, Rule(order, DependenceBound(gamma, profile)))
    narrow = Sampler(oracle, Rule(order, EntropyBound(gamma)))
    state = wide.start(x, seed=seed)
    while not bool(state.finished.all()):
        _, less = narrow.step(replace(state, memory=narrow.rule.start(state.pending.sum(-1))))
        state, info = wide.step(state)
        assert not bool((less.chosen & ~info.chosen).any())


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("order", [Entropy(), Margin()])
def test_its_law_is_that_of_the_loop(order, aggregate):
    """20,000 sequences against the exact law, p > 1e-6, as in test_loop_law."""
    oracle, x = MarkovDenoiser.lazy(3, 0.7), torch.tensor([3, 3, 1, 3, 3])
    rule = Rule(order, DependenceBound(0.15, measured(oracle, 5), aggregate))
    law = exact_law(oracle, rule, x)
    drawn = sample(oracle, x.expand(20_000, -1), rule, seed=3)
    assert law.pvalue(drawn.tokens) > 1e-6
    error = float(drawn.nfe.double().std()) / 20_000**0.5
    assert abs(float(drawn.nfe.double().mean()) - law.nfe_mean) <= 5 * error + 1e-9
    assert law.kl == pytest.approx(law.dependence, abs=1e-9)


def test_at_gamma_zero_a_chain_is_cut_where_it_is_known_and_nothing_is_lost():
    """Known tokens screen a chain: with every second one given, the rest is independent and drawn at once."""
    oracle = MarkovDenoiser.lazy(3, 0.7)
    x = torch.tensor([3, 0, 3, 1, 3, 1, 3])
    law = exact_law(oracle, Rule(Entropy(), DependenceBound(1e-9, measured(oracle, 7, 400))), x)
    assert law.nfe_mean == 1
    assert law.kl < 1e-9
    assert exact_law(oracle, Rule(Entropy(), EntropyBound(1e-9)), x).nfe_mean > 3


@pytest.mark.parametrize("stay", [0.6, 0.75])
def test_on_chains_it_needs_half_the_evaluations_of_the_entropy_bound(stay):
    """The acceptance bound of two, on nine tokens, from 1,000 evaluations of calibration."""
    oracle, x = MarkovDenoiser.lazy(2, stay), torch.full((9,), 2)
    profile = measured(oracle, 9)
    assert profile.evaluations < 1001

    def fewest(rules: list[Rule]) -> float:
        laws = [exact_law(oracle, rule, x) for rule in rules]
        return min(law.nfe_mean for law in laws if law.kl <= 0.01)

    gammas = (1e-3, 3e-3, 1e-2, 3e-2)
    ours = fewest([Rule(Entropy(), DependenceBound(gamma, profile)) for gamma in gammas])
    theirs = fewest([Rule(Entropy(), EntropyBound(gamma)) for gamma in (*gammas, 0.1, 0.3)])
    assert theirs >= 2 * ours


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), min_size=1, max_size=7),
    st.integers(0, 2**63),
    st.sampled_from([None, 2, 4]),
    st.sampled_from(AGGREGATES),
)
def test_a_sequence_alone_equals_the_same_sequence_in_any_batch_bit_for_bit(rows, stream, blocks, aggregate):
    oracle = PerturbedDenoiser(random_hmm(3, 3, 0), 0.3)
    profile = random_profile(3, 9)
    streams = [derive(stream, row) for row in range(len(rows))]
    gammas = torch.linspace(0, 1, len(rows), dtype=torch.float64)
    limits = torch.linspace(0, 1, len(rows), dtype=torch.float64).flip(0)
    mixed = Rule(Entropy(), DependenceBound(gammas, profile, aggregate, commitment=limits))
    together = sample(oracle, rows, mixed, streams=streams, blocks=blocks, trace=True)
    for row, tokens in enumerate(rows):
        own = DependenceBound(float(gammas[row]), profile, aggregate, commitment=float(limits[row]))
        alone = sample(oracle, [tokens], Rule(Entropy(), own), streams=[streams[row]], blocks=blocks, trace=True)
        assert alone.sequences[0] == together.sequences[row]
        assert alone.bounds[0] == together.bounds[row]
        assert alone.trace(0) == together.trace(row)


def test_bad_settings_are_refused_at_once():
    empty = Profile.empty(Line.of(4))
    halves = Profile.empty(Relations(torch.zeros(4, 4, dtype=torch.int64), ("any",)))
    for arguments, message in [
        ({"gamma": -1.0}, "gamma must be"),
        ({"gamma": torch.zeros(2, 2)}, "one per sequence"),
        ({"commitment": 1.1}, "commitment is a probability"),
        ({"commitment": math.nan}, "commitment is a probability"),
        ({"aggregate": "mean"}, "unknown aggregate 'mean'"),
        ({"aggregate": "nearest", "profile": halves}, "by relations"),
        ({"quantile": 1.5}, "quantiles"),
    ]:
        with pytest.raises(ValueError, match=message):
            DependenceBound(**{"gamma": 0.1, "profile": empty, **arguments})
    for name in ("gamma", "commitment"):
        bound = DependenceBound(**{"gamma": 0.1, "profile": empty, name: torch.zeros(3)})
        with pytest.raises(ValueError, match=f"{name} has 3 values for a batch of 2"):
            bound.start(torch.tensor([4, 4]))
    candidate = torch.ones(1, 3, dtype=torch.bool)
    bare = View.blank(candidate, torch.zeros(1, 3, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="what is masked"):
        DependenceBound(0.1, empty).admit(bare)
    oracle = random_table(3, 5, 0)
    with pytest.raises(ValueError, match="sequences of 4 tokens, got 5"):
        sample(oracle, torch.full((1, 5), 3), Rule(Entropy(), DependenceBound(0.1, halves)), seed=0)
    assert repr(DependenceBound(0.1, empty)) == "DependenceBound(gamma=0.1, aggregate='sum', commitment=1.0)"
