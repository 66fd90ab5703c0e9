"""The two prices of a draw at a temperature: each bound of `unmask.rules.tempered`, on laws that are enumerated."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.test_dependence_bound import random_profile
from unmask import Confidence, Entropy, EntropyBound, One, Rule, TopK, sample
from unmask.oracles import Oracle, TableDenoiser, exact_law, random_hmm, random_table
from unmask.rules import All, DependenceBound
from unmask.rules.tempered import TemperedBound, tempered_doubt
from unmask.sampling.view import View

INF = math.inf
temperatures = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.8, 0.95])
seeds = st.integers(0, 10**6)
SLACK = 1e-9


def norm(p: Tensor, temperature: float) -> Tensor:
    """`‖p‖` over the last axis."""
    if temperature == 0:
        return p.amax(-1)
    top = p.amax(-1, keepdim=True)
    return (p / top).pow(1 / temperature).sum(-1).pow(temperature) * top.squeeze(-1)


def tempered(p: Tensor, temperature: float) -> Tensor:
    """The law of a draw; at temperature 0 of the first of the most probable tokens."""
    if temperature == 0:
        return torch.nn.functional.one_hot(p.argmax(-1), p.shape[-1]).double()
    q = (p / p.amax(-1, keepdim=True)).pow(1 / temperature)
    return q / q.sum(-1, keepdim=True)


def joint(seed: int, sharp: float, shape: tuple[int, ...] = (3, 3, 4)) -> Tensor:
    """A random law of two positions that are drawn and, last, of all that stays masked."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(shape, generator=generator, dtype=torch.float64).pow(sharp)
    return weights / weights.sum()


def information(p: Tensor) -> float:
    """Mutual information of the two axes of a table, in nats."""
    apart = p.sum(1, keepdim=True) * p.sum(0, keepdim=True)
    return float(torch.xlogy(p, p / apart.clamp(min=1e-300)).sum())


def score(p: Tensor, temperature: float) -> float:
    """What drawing two positions together, each by itself, scores."""
    one, other = tempered(p.sum(1), temperature), tempered(p.sum(0), temperature)
    return float((p * (one.unsqueeze(1) * other).pow(1 - temperature)).sum())


def exact_doubt(p: Tensor, temperature: float) -> Tensor:
    return -torch.xlogy(p, p).sum(-1) if temperature == 1 else (1 - norm(p, temperature)) / (1 - temperature)


@given(seeds, st.floats(0.3, 12), temperatures)
def test_a_tempered_draw_scores_best_and_its_score_is_the_norm(seed, sharp, temperature):
    p, other = joint(seed, sharp, (6,)), joint(seed + 1, 1.0, (6,))
    best = float((p * tempered(p, temperature).pow(1 - temperature)).sum())
    assert best == pytest.approx(float(norm(p, temperature)), abs=1e-12)
    assert float((p * other.pow(1 - temperature)).sum()) <= best + SLACK


@given(seeds, st.floats(0.3, 12), temperatures)
def test_the_two_prices_bound_what_drawing_now_loses_against_waiting(seed, sharp, temperature):
    p = joint(seed, sharp)
    rest, both = p.sum((0, 1)), p.sum(2)
    waiting = float((rest * norm((p / rest).flatten(0, 1).T, temperature)).sum())
    now, together = score(both, temperature), float(norm(both.flatten(), temperature))
    dependence, commitment = together - now, waiting - together
    assert dependence >= -SLACK
    assert commitment >= -SLACK
    marginals = torch.stack([both.sum(1), both.sum(0)])
    doubts = exact_doubt(marginals, temperature)
    assert dependence / (1 - temperature) <= float(doubts.sum() - doubts.max()) + SLACK
    known = information(p.flatten(0, 1))
    assert commitment <= min(1 - together, 2**temperature * math.sqrt(known / 2)) + SLACK
    assert 1 - together <= (1 - temperature) * float(doubts.sum()) + SLACK
    assert commitment <= 1 - float(rest.max()) + SLACK  # what stays masked tells no more than it has to tell


@given(seeds, st.floats(0.3, 12), temperatures)
def test_a_position_that_depends_on_nothing_is_no_commitment(seed, sharp, temperature):
    one, rest = joint(seed, sharp, (4,)), joint(seed + 1, sharp, (5,))
    p = one.unsqueeze(1) * rest
    waiting = float((rest * norm((p / rest).T, temperature)).sum())
    assert waiting == pytest.approx(float(norm(one, temperature)), abs=1e-12)


def test_near_temperature_one_commitment_is_information_and_dependence_the_total_correlation():
    p, near = joint(3, 2.0), 1 - 1e-5
    rest, both = p.sum((0, 1)), p.sum(2)
    waiting = float((rest * norm((p / rest).flatten(0, 1).T, near)).sum())
    together = float(norm(both.flatten(), near))
    assert (waiting - together) / (1 - near) == pytest.approx(information(p.flatten(0, 1)), rel=1e-3)
    assert (together - score(both, near)) / (1 - near) == pytest.approx(information(both), rel=1e-3)


def test_a_hint_is_worth_its_square_root():
    """The commitment of a fair coin on which there is a hint of size ε is ε: neither information nor half of it."""
    for hint in (0.1, 0.01):
        p = torch.tensor([[0.25 + hint / 2, 0.25 - hint / 2], [0.25 - hint / 2, 0.25 + hint / 2]], dtype=torch.float64)
        commitment = float((p.sum(0) * norm((p / p.sum(0)).T, 0.0)).sum()) - 0.5
        assert commitment == pytest.approx(hint)
        assert commitment > 2 * information(p)
        assert commitment <= math.sqrt(information(p) / 2)


@given(seeds, st.floats(0.3, 12), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.8, 0.95, 1.0]))
def test_the_rules_doubt_is_exact_at_both_ends_and_no_less_between(seed, sharp, temperature):
    p = joint(seed, sharp, (7,))
    found = float(tempered_doubt(-torch.xlogy(p, p).sum(), 1 - p.max(), temperature))
    true = float(exact_doubt(p, temperature))
    assert found >= true - SLACK
    if temperature in (0, 1):
        assert found == pytest.approx(true)


def accepted(oracle: Oracle, rule: Rule, length: int, temperature: float) -> float:
    """`E_data Σ_steps Σ_{i∈U} a_i`: the tempered doubt that a rule accepts, along the data's own paths."""
    points, log_p = oracle.completions(torch.full((length,), oracle.mask_id))
    # Along a path the rule chooses as it does in the loop; the draw is replaced by the data's own tokens.
    total = 0.0
    for point, weight in zip(points, log_p.exp().tolist(), strict=True):
        x = torch.full((1, length), oracle.mask_id)
        while bool((x == oracle.mask_id).any()):
            step = sample(oracle, x, rule, seed=0, max_steps=1, trace=True)
            assert step.steps is not None
            chosen = step.steps[0].chosen
            for place in chosen[0].nonzero().squeeze(-1).tolist():
                completed = x.repeat(oracle.symbols, 1)
                completed[:, place] = torch.arange(oracle.symbols)
                p = (oracle.log_marginal(completed) - oracle.log_marginal(x)).exp()
                total += weight * float(exact_doubt(p, temperature))
            x = torch.where(chosen, point, x)
    return total


ORDERS = [
    Rule(Entropy(), One()),
    Rule(Confidence(), TopK(2)),
    Rule(Entropy(), All()),
    Rule(Entropy(), EntropyBound(0.5)),
]


@pytest.mark.parametrize("rule", ORDERS, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.4, 0.8, 1.0])
def test_a_sequence_loses_no_more_than_the_doubt_that_was_accepted(rule, temperature):
    """With the prices of a rule left out the bound fails: that of the others is less than what is lost (control)."""
    weights = random_table(2, 4, 5).weights ** 2
    oracle = TableDenoiser((weights / weights.sum()).reshape(2, 2, 2, 2))
    law = exact_law(oracle, rule, torch.full((4,), 2), temperature=temperature)
    p, q = law.log_p.exp(), law.log_q.exp()
    total = accepted(oracle, rule, 4, temperature)
    if temperature == 1:
        assert law.kl == pytest.approx(total + float((p * p.log()).sum()), abs=1e-9)
        return
    lost = (1 - float((p * q.pow(1 - temperature)).sum())) / (1 - temperature)
    assert 0 < lost <= total + SLACK
    if rule.budget == TopK(1):  # one at a time there is no dependence: all that is lost is commitment
        assert lost > 0.05


def test_leaving_out_a_price_breaks_the_bound():
    """Controls: drawn one at a time, only commitment is lost, and at temperature 1 only dependence is."""
    p = torch.zeros(2, 2, 4, dtype=torch.float64)
    p[0, 0, 0], p[0, 0, 1], p[1, 1, 2], p[1, 1, 3] = 0.28, 0.27, 0.23, 0.22  # equal, and R tells which
    both, rest = p.sum(2), p.sum((0, 1))
    waiting = float((rest * norm((p / rest).flatten(0, 1).T, 0.0)).sum())
    now = score(both, 0.0)
    assert waiting - now > float(norm(both.flatten(), 0.0)) - now + 0.4  # the dependence alone is 0
    near = 1 - 1e-6
    lost = (float(norm(both.flatten(), near)) - score(both, near)) / (1 - near)
    assert lost > (1 - near) * math.log(2) + 0.5  # the commitment alone is next to nothing


CASES = [(random_hmm(3, 3, 4), 6), (random_table(3, 5, 2), 5)]


@pytest.mark.parametrize(("oracle", "length"), CASES)
def test_it_is_the_rules_that_it_joins(oracle, length):
    x = torch.full((40, length), oracle.mask_id)
    profile = random_profile(1, length)
    for one, other, temperature in (
        (TemperedBound(0.3, 0.0, 1.0), EntropyBound(0.3), 1.0),
        (TemperedBound(0.3, 0.0, 1.5, profile), DependenceBound(0.3, profile), 1.5),
        (TemperedBound(INF, 0.0, 0.0), All(), 0.0),
    ):
        order = Entropy() if temperature else Confidence()
        first = sample(oracle, x, Rule(order, one), seed=1, temperature=temperature)
        second = sample(oracle, x, Rule(order, other), seed=1, temperature=temperature)
        assert torch.equal(first.tokens, second.tokens)
        assert torch.equal(first.nfe, second.nfe)


def defined(d: list[float], a: list[float], rule: TemperedBound, left: int) -> list[int]:
    """The rule without a profile, as it is defined: on doubts in their ranking, with so many masks elsewhere."""
    sure = {i for i, one in enumerate(d) if one <= rule.epsilon}
    able = [i for i in range(len(d)) if i == 0 or i in sure or (1 - rule.temperature) * a[i] <= rule.epsilon]

    def cost(some: list[int]) -> float:
        charged = [a[i] for i in some if i not in sure]
        return math.fsum(charged) - max(charged, default=0.0)

    if rule.temperature < 1 and not left and cost(list(range(len(d)))) <= rule.gamma:
        return list(range(len(d)))
    return [i for n, i in enumerate(able) if i in sure or cost(able[: n + 1]) <= rule.gamma]


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 16), st.integers(0, 16)), min_size=1, max_size=7),
    st.integers(0, 24),
    st.integers(0, 16),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 1),
)
def test_the_budget_is_its_definition(pairs, gamma, epsilon, temperature, left):
    doubt, entropy = sorted(d / 16 for d, _ in pairs), [(d + more) / 16 for d, more in sorted(pairs)]
    width = len(doubt) + left
    far = [INF] * left
    d, h = (torch.tensor([[*values, *far]], dtype=torch.float64) for values in (doubt, entropy))
    masked, position = torch.ones(1, width, dtype=torch.bool), torch.arange(width).unsqueeze(0)
    view = View(d < INF, h, d, d, position, torch.zeros_like(d), torch.empty(1, 0), masked, ~masked)
    rule = TemperedBound(gamma / 16, epsilon / 16, temperature)
    taken, _ = rule.admit(replace(view, memory=rule.start(masked.sum(-1))))
    a = tempered_doubt(h, d, temperature)[0, : len(doubt)].tolist()
    assert taken[0].nonzero().squeeze(-1).tolist() == defined(doubt, a, rule, left)


@settings(max_examples=20)
@given(seeds, st.integers(0, 12), st.integers(0, 8))
def test_with_a_profile_it_takes_what_fits_the_doubts_and_more(seed, gamma, epsilon):
    oracle = random_table(3, 5, seed % 50)
    x = torch.full((1, 5), oracle.mask_id)
    sets = []
    for profile in (None, random_profile(seed, 5)):
        rule = Rule(Confidence(), TemperedBound(gamma / 8, epsilon / 8, 0.5, profile))
        step = sample(oracle, x, rule, seed=seed, max_steps=1, trace=True)
        assert step.steps is not None
        sets.append(step.steps[0].chosen)
    assert bool((sets[0] <= sets[1]).all())


@given(seeds, st.integers(0, 4), st.sampled_from([0.0, 0.1, 0.3, 1.0]))
@settings(max_examples=20)
def test_a_share_of_the_doubts_that_are_taken_may_be_lost(seed, gamma, share):
    """Without a profile it is the longest prefix whose bound is within γ and the share; a share of 1 is everything."""
    oracle = random_table(3, 5, seed % 50)
    x = torch.full((1, 5), oracle.mask_id)
    step = sample(
        oracle, x, Rule(Entropy(), TemperedBound(gamma / 8, 0.0, share=share)), seed=0, max_steps=1, trace=True
    )
    assert step.steps is not None
    p = torch.stack([torch.stack([oracle.weights[oracle.points[:, i] == t].sum() for t in range(3)]) for i in range(5)])
    h = (-torch.xlogy(p / oracle.total, p / oracle.total).sum(-1)).sort().values
    fits = [n for n in range(1, 6) if float(h[:n].sum() - h[n - 1]) <= gamma / 8 + share * float(h[:n].sum()) + SLACK]
    assert int(step.steps[0].chosen.sum()) == fits[-1]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"gamma": -1.0, "epsilon": 0.1}, "gamma must be"),
        ({"gamma": 0.1, "epsilon": 2.0}, r"epsilon is a probability in \[0, 1\], got 2"),
        ({"gamma": 0.1, "epsilon": 0.1, "temperature": math.nan}, "temperature must be a number >= 0"),
    ],
)
def test_bad_settings_are_refused_at_once(given_, message):
    with pytest.raises(ValueError, match=message):
        TemperedBound(**given_)
