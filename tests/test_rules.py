from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import sample
from unmask.errors import RuleError
from unmask.oracles import random_markov
from unmask.rules import (
    All,
    CarriedBound,
    Cell,
    Confidence,
    Determined,
    Entropy,
    EntropyBound,
    Factor,
    LeftToRight,
    Margin,
    One,
    Rule,
    ScoredOrder,
    Steps,
    Threshold,
    TimeGrid,
    TopK,
    Uniform,
    View,
    entropy_bound,
)
from unmask.rules.named import FAMILIES, named_rule
from unmask.sampling.view import spread

INF = math.inf


def view(entropy: list[list[float]], *, doubt=None, closeness=None, drift=None, noise=None, memory=None) -> View:
    h = torch.tensor(entropy, dtype=torch.float64)

    def other(values: list[list[float]] | None) -> torch.Tensor:
        return h if values is None else torch.tensor(values, dtype=torch.float64)

    return View(
        masked=h.isfinite(),
        known=~h.isfinite(),
        position=torch.arange(h.shape[1]).expand_as(h),
        candidate=h.isfinite(),
        entropy=h,
        doubt=other(doubt),
        closeness=other(closeness),
        drift=torch.full_like(h, torch.inf) if drift is None else other(drift),
        noise=torch.zeros_like(h) if noise is None else other(noise),
        memory=torch.empty(len(h), 0, dtype=torch.float64) if memory is None else memory,
    )


def select(rule: Rule, v: View) -> list[list[int]]:
    started = View(**{**vars(v), "memory": rule.budget.start(v.candidate.sum(-1))})
    chosen, _ = rule.select(started)
    return [row.nonzero().squeeze(-1).tolist() for row in chosen]


def longest_prefix(entropies: list[float], gamma: float) -> int:
    """The paper's rule in five lines, with exact sums."""
    best = 0
    for size in range(1, len(entropies) + 1):
        if math.fsum(entropies[:size]) - max(entropies[:size]) <= gamma:
            best = size
    return best


nats = st.integers(0, 40).map(lambda n: n / 8)  # multiples of 1/8: sums are exact, so the comparison is too


@given(st.lists(st.lists(nats, max_size=8), min_size=1, max_size=4), st.one_of(nats, st.just(INF)))
def test_entropy_bound_is_the_longest_prefix(rows, gamma):
    width = max(1, *(len(row) for row in rows))
    h = torch.tensor([row + [INF] * (width - len(row)) for row in rows], dtype=torch.float64)
    assert entropy_bound(h, gamma).tolist() == [longest_prefix(row, gamma) for row in rows]
    own = torch.linspace(0, 2, len(rows), dtype=torch.float64)
    expected = [longest_prefix(row, g) for row, g in zip(rows, own.tolist(), strict=True)]
    assert entropy_bound(h, own).tolist() == expected


@given(st.lists(st.floats(0, 5), min_size=1, max_size=12), st.floats(0, 3), st.floats(0, 3))
def test_the_count_is_monotone_in_gamma_and_at_least_one(row, a, b):
    h = torch.tensor([row], dtype=torch.float64)
    low, high = int(entropy_bound(h, min(a, b))), int(entropy_bound(h, max(a, b)))
    assert 1 <= low <= high <= int(entropy_bound(h, INF)) == len(row)


def test_gamma_zero_takes_what_is_determined_and_one_more_and_sees_tiny_entropies():
    assert int(entropy_bound(torch.tensor([[0.0, 0.0, 0.3, 0.4]]), 0.0)) == 3
    assert int(entropy_bound(torch.tensor([[2.0, 0.0, 0.0, 0.4]]), 0.0)) == 3
    # 1e-17 beside 2: a running sum minus a running maximum would round it away.
    assert int(entropy_bound(torch.tensor([[2.0, 1e-17]], dtype=torch.float64), 0.0)) == 1


@pytest.mark.parametrize("gamma", [-1e-9, -INF, math.nan])
def test_a_negative_or_nan_gamma_is_refused_at_once(gamma):
    with pytest.raises(ValueError, match="gamma must be a number of nats >= 0"):
        EntropyBound(gamma)
    with pytest.raises(ValueError, match="gamma"):
        EntropyBound(torch.tensor([0.1, gamma]))
    with pytest.raises(ValueError, match="gamma"):
        entropy_bound(torch.zeros(1, 2), gamma)


def test_gamma_needs_one_value_per_sequence():
    with pytest.raises(ValueError, match="3 values for a batch of 2"):
        EntropyBound(torch.zeros(3)).start(torch.tensor([4, 4]))
    with pytest.raises(TypeError):
        EntropyBound()  # pyright: ignore[reportCallIssue]


def test_orders_rank_by_their_proxy_and_break_ties_by_position():
    v = view(
        [[0.3, 0.2, INF, 0.2, 0.9]],
        doubt=[[0.1, 0.4, INF, 0.3, 0.1]],
        closeness=[[0.5, 0.2, INF, 0.1, 0.9]],
        noise=[[0.9, 0.3, 0.0, 0.5, 0.2]],
    )
    expected = {Entropy(): [1, 3], Confidence(): [0, 4], Margin(): [1, 3], Uniform(): [1, 4], LeftToRight(): [0, 1]}
    for order, first in expected.items():
        assert select(Rule(order, TopK(2)), v) == [first]
    assert select(Rule(Determined(0.25), TopK(3)), v) == [[0, 1, 3]]
    assert select(Rule(Determined(0.25), One()), v) == [[1]]  # those at 0.2 tie, and 0.3 comes after
    assert select(Rule(Determined(0.5), One()), v) == [[0]]
    for floor in (-0.1, INF, math.nan):
        with pytest.raises(ValueError, match="floor must be a finite number"):
            Determined(floor)
    assert select(Rule(Entropy(), One()), v) == [[1]]
    assert select(Rule(Confidence(), One()), v) == [[0]]


def test_budgets_count_what_they_say():
    v = view([[0.1, 0.2, 0.3, 0.4], [0.1, INF, INF, INF]], doubt=[[0.05, 0.5, 0.08, 0.9], [0.9, INF, INF, INF]])
    assert select(Rule(Entropy(), TopK(3)), v) == [[0, 1, 2], [0]]
    assert select(Rule(Entropy(), All()), v) == [[0, 1, 2, 3], [0]]
    assert select(Rule(Confidence(), Threshold(0.9)), v) == [[0, 2], [0]]  # at least one, where none is sure
    assert select(Rule(Entropy(), Threshold(0.9)), v) == [[0, 2], [0]]  # whatever the order
    assert select(Rule(Uniform(), Threshold(0.9)), v) == [[0, 2], [0]]
    assert select(Rule(Entropy(), EntropyBound(0.1)), v) == [[0, 1], [0]]
    assert select(Rule(Entropy(), EntropyBound(torch.tensor([0.31, 0.0]))), v) == [[0, 1, 2], [0]]


def test_factor_takes_the_largest_n_of_the_paper():
    v = view([[0.1, 0.2, 0.3, 0.4]], doubt=[[0.05, 0.1, 0.2, 0.6]])
    for factor, n in ((0.05, 1), (0.31, 2), (0.8, 2), (0.81, 3), (3.1, 4)):
        largest = max([1] + [k for k, d in enumerate([0.05, 0.1, 0.2, 0.6], 1) if (k + 1) * d < factor])
        assert largest == n
        assert len(select(Rule(Confidence(), Factor(factor)), v)[0]) == n
    for bad in (0.0, -1.0, math.nan, INF):
        with pytest.raises(ValueError, match="factor"):
            Factor(bad)


@given(
    st.lists(st.lists(nats, min_size=1, max_size=6), min_size=1, max_size=4), nats, st.sampled_from([None, 0.25, 1.0])
)
def test_a_carried_bound_never_spends_more_than_it_has_and_takes_what_fits(rows, epsilon, cap):
    """Against five lines with exact sums; the rows are successive steps of one sequence."""
    budget, left, masks = CarriedBound(epsilon, cap), epsilon, sum(map(len, rows))
    memory = budget.start(torch.tensor([masks]))
    for row in rows:
        admitted, memory = budget.admit(view([row], memory=memory))
        cost = [math.fsum(row[:k]) - max(row[:k]) for k in range(1, len(row) + 1)]
        allowed = [left * k / masks if cap is None else min(left, cap * epsilon) for k in range(1, len(row) + 1)]
        k = max(k for k in range(1, len(row) + 1) if k == 1 or cost[k - 1] <= allowed[k - 1])
        assert admitted[0].tolist() == [True] * k + [False] * (len(row) - k)
        left, masks = left - cost[k - 1], masks - k
        assert memory[0].tolist() == [left, masks]
        assert left >= 0


def test_bad_totals_are_refused():
    for bad in (-0.1, math.nan):
        with pytest.raises(ValueError, match="epsilon must be a number of nats >= 0"):
            CarriedBound(bad)
    for cap in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="cap is a share"):
            CarriedBound(1.0, cap)


@given(st.integers(1, 40), st.integers(1, 40))
def test_steps_spread_the_masks_evenly(masks, steps):
    budget, left, counts = Steps(steps), masks, []
    memory = budget.start(torch.tensor([masks]))
    while left:
        h = [[0.1] * left + [INF] * (masks - left)]
        admitted, memory = budget.admit(view(h, memory=memory))
        counts.append(int(admitted.sum()))
        left -= counts[-1]
    assert len(counts) == min(masks, steps)
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, None])
def test_counts_are_whole_and_positive(bad):
    with pytest.raises(ValueError, match="whole number >= 1"):
        TopK(bad)
    with pytest.raises(ValueError, match="whole number >= 1"):
        Steps(bad)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_threshold_is_a_probability(bad):
    with pytest.raises(ValueError, match="probability"):
        Threshold(bad)


def test_a_rule_without_progress_is_an_error_and_not_an_endless_loop():
    class Nothing(All):
        def admit(self, ranked):
            return ranked.candidate & False, ranked.memory

    class Everything(All):
        def admit(self, ranked):
            return ranked.candidate | True, ranked.memory

    for budget in (Nothing(), Everything()):
        with pytest.raises(RuleError, match="at least one candidate"):
            Rule(Entropy(), budget).select(view([[0.1, INF]]))


def test_a_threshold_of_one_takes_only_what_is_determined():
    v = view([[0.1, 0.1, 0.0, 0.1]], doubt=[[1e-18, 1e-18, 0.0, 0.5]])
    assert select(Rule(LeftToRight(), Threshold(1.0)), v) == [[0, 2]]


def test_a_rule_is_made_of_objects_that_go_together():
    with pytest.raises(TypeError, match=r"Entropy\(\.\.\.\) instead of Entropy"):
        Rule(Entropy, One())  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="uniform order"):
        Rule(Entropy(), Cell(TimeGrid(3)))


def test_ranked_views_keep_positions():
    v = view([[0.3, 0.1, 0.2]])
    assert v.ranked(torch.tensor([[1, 2, 0]])).position.tolist() == [[1, 2, 0]]
    bare = replace(v, masked=None, known=None)
    assert bare.ranked(torch.tensor([[1, 2, 0]])).masked is None
    known = torch.tensor([[True, False, False]])
    moved = replace(v, known=known, masked=~known).ranked(torch.tensor([[1, 2, 0]]))
    assert moved.known is not None
    assert moved.known.tolist() == [[False, False, True]]


def test_a_view_makes_the_columns_that_are_looked_at_once():
    made = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.arange(3.0).unsqueeze(0)

    one = View.of(make)
    moved = one.ranked(torch.tensor([[2, 0, 1]]))
    assert made == []
    assert moved.entropy.tolist() == moved.entropy.tolist() == [[2.0, 0.0, 1.0]]
    assert made == ["entropy"]
    with pytest.raises(AttributeError, match="no column 'surprise'; it has candidate, entropy"):
        one.surprise  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
    assert replace(one, entropy=torch.zeros(1, 3)).doubt.tolist() == [[0.0, 1.0, 2.0]]


def test_a_rule_sees_what_is_known_and_what_is_masked_outside_the_open_block():
    seen = []

    class Watching(Entropy):
        def key(self, view: View) -> torch.Tensor:
            seen.append(view)
            return view.entropy

    sample(random_markov(3, 0), [[0, 3, 3, 3, 3], [3, 3]], Rule(Watching(), One()), seed=0, blocks=2, max_steps=1)
    (v,) = seen
    assert v.candidate.tolist() == [[False, True, True, False, False], [True, True, False, False, False]]
    assert v.masked.tolist() == [[False, True, True, True, True], [True, True, False, False, False]]
    assert v.known.tolist() == [[True, False, False, False, False], [False] * 5]  # padding is neither


def test_spread_puts_values_back():
    where = torch.tensor([[True, False], [False, True]])
    assert spread(torch.tensor([1.0, 2.0]), where).tolist() == [[1.0, INF], [INF, 2.0]]


SETTINGS = {
    "epsilon": 0.3,
    "gamma": 0.1,
    "k": 2,
    "threshold": 0.9,
    "steps": 4,
    "factor": 0.5,
    "profile": "text",
    "sizes": "2+1",
    "delta": 0.25,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_named_rule_can_be_built_and_prints_itself(name):
    needed = [key for key, setting in FAMILIES[name].settings.items() if setting.default is None]
    named = named_rule(name, **{key: SETTINGS[key] for key in needed})
    assert named_rule(str(named)).settings == named.settings
    assert str(named).startswith(name)
    if not isinstance(named.rule, Rule):
        return
    if isinstance(named.rule.order, ScoredOrder):
        with pytest.raises(ValueError, match="its turn draws it"):
            select(named.rule, view([[0.1]]))
        return
    chosen = select(named.rule, view([[0.1, 0.2, INF, 0.3]]))
    assert chosen[0]


def test_rule_names_and_settings_that_do_not_fit_are_errors():
    for text, message in [
        ("greedy", "unknown rule 'greedy'"),
        ("topk", "needs a value for k"),
        ("topk:k=two", "whole number"),
        ("topk:k", "key=value"),
        ("entropy-bound:gamma=-1", "gamma must be"),
        ("entropy-bound:gamma=nan", "gamma must be"),
        ("entropy-bound:gamma=0.1,proxy=luck", "unknown proxy"),
        ("top1-entropy:k=3", "k does not apply to the rule top1-entropy; it takes no settings"),
        ("topk:k=3,gamma=1", "gamma does not apply to the rule topk; it takes k, proxy"),
        ("threshold:threshold=2", "probability"),
        ("steps:steps=0", "whole number >= 1"),
        ("dependence-bound:gamma=0.1", "needs a value for profile"),
        ("dependence-bound:gamma=0.1,profile=/nowhere", "no model at '/nowhere'"),
        ("dependence-bound:gamma=0.1,profile=text,commitment=2", "commitment is a probability"),
        ("dependence-bound:gamma=0.1,profile=text,aggregate=mean", "unknown aggregate"),
        ("groups:sizes=2-1", "written as 3"),
        ("groups:sizes=2+0", "whole number >= 1"),
        ("dilated:spacing=-1", "whole number >= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            named_rule(text)
