"""Rules that compare with the evaluation before: KLASS, and the high-order first-hitting sampler."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import high_order
from benchmarks.pages import between
from unmask import (
    Confidence,
    Entropy,
    Extrapolate,
    One,
    Rule,
    Sampler,
    Stable,
    Steps,
    Uniform,
    derive,
    extrapolated_first_hitting,
    parallel_first_hitting,
    sample,
)
from unmask.denoiser import Query
from unmask.draws import kept
from unmask.draws.kept import compared
from unmask.errors import LogitsError
from unmask.oracles import MarkovDenoiser, PerturbedDenoiser, exact_law, random_hmm, random_markov, random_table
from unmask.rules.history import Past
from unmask.sampling.draw import Settings
from unmask.schedule import Linear

CHAIN = MarkovDenoiser.lazy(2, 0.75)
RULES = [
    Rule(Confidence(), Stable(0.6, 0.05, 1)),
    Rule(Confidence(), Stable(0.6, 0.05, 2)),
    Rule(Entropy(), Stable(0.3, 10.0, 3)),
    extrapolated_first_hitting(2),
    extrapolated_first_hitting(3, floor=0.0),
]
ids = [f"{rule.budget}" for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_the_loop_draws_from_the_exact_law(rule):
    chain, x = random_markov(3, 1), torch.tensor([3, 3, 1, 3, 3, 3])
    variants: list[dict[str, Any]] = [{}, {"temperature": 0.7}, {"blocks": 3}]
    for settings in variants:
        law = exact_law(chain, rule, x, **settings)
        run = sample(chain, x.repeat(8000, 1), rule, seed=5, **settings)
        assert law.pvalue(run.tokens) > 1e-4
        if law.off_support < 1e-12:
            assert float(run.nfe.double().mean()) == pytest.approx(law.nfe_mean, abs=0.05)


def test_the_loop_law_test_would_catch_a_predictor_that_is_left_out():
    x = torch.full((5,), CHAIN.mask_id)
    law = exact_law(CHAIN, extrapolated_first_hitting(2), x)
    assert law.pvalue(sample(CHAIN, x.repeat(8000, 1), parallel_first_hitting(2), seed=0).tokens) < 1e-6


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_batch_mates_given_tokens_and_lengths_change_nothing(rule):
    oracle = PerturbedDenoiser(random_hmm(3, 3, 0), 0.5, 0)
    rows = [[3, 3, 3, 1, 3], [3, 3], [0, 3, 3, 3, 3, 3, 3], [2, 1]]
    streams = [derive(3, row) for row in range(4)]
    together = sample(oracle, rows, rule, streams=streams, trace=True)
    assert bool(together.finished.all())
    assert together.sequences[0][3] == 1
    assert together.sequences[3] == [2, 1]
    for row, tokens in enumerate(rows):
        alone = sample(oracle, [tokens], rule, streams=[streams[row]], trace=True)
        assert alone.sequences[0] == together.sequences[row]
        assert alone.trace(0) == together.trace(row)


def test_klass_that_finds_nothing_stable_is_one_at_a_time_and_exact():
    oracle = random_table(3, 4, 2)
    x = torch.full((4,), oracle.mask_id)
    law = exact_law(oracle, Rule(Confidence(), Stable(0.0, 0.0)), x)
    assert law.kl < 1e-9
    assert law.nfe_mean == pytest.approx(4)


@pytest.mark.parametrize("history", [1, 2, 3])
def test_klass_waits_for_its_history_and_then_takes_all_that_is_confident(history):
    x = torch.full((6,), CHAIN.mask_id)
    law = exact_law(CHAIN, Rule(Confidence(), Stable(0.0, math.inf, history)), x)
    assert law.nfe_mean == pytest.approx(history + 1)


def test_klass_settings_out_of_range_are_refused():
    wrong: list[dict[str, Any]] = [
        {"threshold": 1.5},
        {"threshold": math.nan},
        {"kl": -1.0},
        {"kl": math.nan},
        {"history": 0},
    ]
    for bad in wrong:
        with pytest.raises(ValueError, match=next(iter(bad))):
            Stable(**bad)


def past_of(before: Past | None, where: Tensor, p: Tensor, masked: Tensor, time: Tensor | None, history: int) -> Past:
    """The memory after an evaluation that gave these probabilities."""
    index = torch.full((len(p),), -1) if before is None else before.index(where)
    _, kept, drift = compared(p.log(), None if before is None else before.kept, index)
    return Past.after(before, where, kept, drift, masked, time, history)


def test_drift_is_the_divergence_from_the_evaluation_before():
    where = torch.tensor([[True, True, True], [False, True, True]])
    p = torch.tensor([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0], [0.3, 0.7], [0.2, 0.8]], dtype=torch.float64)
    masked = torch.tensor([3, 2])
    first = past_of(None, where, p, masked, None, 2)
    assert first.drifts.isinf().all()
    alone = first.select(torch.tensor([1]))
    assert alone.kept.logits.exp().tolist() == p[3:].tolist()
    later = torch.tensor([[False, True, True], [True, False, True]])
    q = torch.tensor([[0.8, 0.2], [1.0, 0.0], [0.5, 0.5], [0.4, 0.6]], dtype=torch.float64)
    second = past_of(first, later, q, torch.tensor([2, 2]), None, 2)
    expected = 0.8 * math.log(0.8 / 0.9) + 0.2 * math.log(0.2 / 0.1)
    assert second.drifts[0, 1, 1] == pytest.approx(expected)
    assert second.drifts[0, 2, 1] == 0.0  # certain both times: no NaN from 0 · (-inf)
    assert second.drifts[1, 0].isinf().all()  # it was no candidate before
    assert second.drifts[..., 0].isinf().all()
    swapped = past_of(first, where, p.flip(1), masked, None, 1)
    assert swapped.drifts[0, 2, 0].isinf()  # what was impossible became certain


class Wide:
    """A denoiser of float32 logits for many tokens, which depend on all that is written; the last is the mask."""

    vocab_size, mask_id = 300, 299

    def __init__(self) -> None:
        self.table = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) * 3

    def __call__(self, query: Query) -> Tensor:
        length = query.x.shape[1]
        state, position = query.rows // length, query.rows % length
        written = (query.x != self.mask_id).sum(-1)[state]
        return self.table[position] + 0.2 * self.table[(position + written) % 40]


@pytest.mark.parametrize("rule", RULES, ids=ids)
@pytest.mark.parametrize("forbidden", [((7,),) * 3, ((7,), (8, 250), (7,))], ids=["alike", "each its own"])
def test_kernels_plan_what_the_plain_path_plans(rule, forbidden, monkeypatch):
    """Sequences begin and end at different steps, in blocks, with tokens that are forbidden to each."""
    pytest.importorskip("numba")
    model = Wide()
    settings = [Settings.of(300, 299, forbidden=some) for some in forbidden]
    sampler, x = Sampler(model, rule), [[299] * 12, [299, 1, 299], [299] * 7]

    def run() -> list[list[int]]:
        state = sampler.start(x, seed=1, blocks=4, settings=settings)
        return sampler.run(state, trace=True).sequences

    ours = run()
    monkeypatch.setattr(kept, "comparing_kernel", lambda logits: None)
    assert run() == ours


def test_logits_that_are_no_distribution_are_named_where_a_rule_measures_them_itself():
    model = Wide()
    model.table[5, 3] = math.nan
    with pytest.raises(LogitsError, match=r"sequence 1, position 5\) contain NaN"):
        sample(model, [[299] * 3, [299] * 8], RULES[0], seed=0)


def test_the_predictor_extrapolates_in_counts_or_in_time():
    where = torch.tensor([[True, True, True, True]])
    before = torch.tensor([[0.5, 0.5]] * 4, dtype=torch.float64)
    now = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    chosen = torch.tensor([[False, True, True, True]])
    noise = torch.tensor([[0.0, 0.7, 0.2, 0.5]], dtype=torch.float64)  # hit in the order 2, 3, 1
    past = past_of(None, where, before, torch.tensor([6]), None, 1)
    found = Extrapolate(floor=0.1).predict(now.log(), chosen, noise, torch.tensor([4]), None, past).exp()
    assert found[1].tolist() == pytest.approx([0.9, 0.1])  # the first hit: nothing to extrapolate
    assert found[2].tolist() == pytest.approx([0.35, 0.65])  # half a span further: 0.4 - 0.1/2
    assert found[0].tolist() == pytest.approx([0.7, 0.3])  # a whole span further
    assert torch.equal(Extrapolate().predict(now.log(), chosen, noise, torch.tensor([4]), None, None), now.log())
    timed = past_of(None, where, before, torch.tensor([6]), torch.tensor([1.0]).double(), 1)
    tau = torch.tensor([0.8], dtype=torch.float64)  # linear: the position with α = 0.2 is hit at 0.8, now
    found = Extrapolate(Linear()).predict(now.log(), chosen, noise, torch.tensor([4]), tau, timed).exp()
    assert found[1].tolist() == pytest.approx([0.9, 0.1])
    assert found[2].tolist() == pytest.approx([0.25, 0.75])  # (0.8 - 0.5)/(1 - 0.8) = 1.5 spans
    clipped = Extrapolate(floor=0.5).predict(now.log(), chosen, noise, torch.tensor([4]), tau, timed).exp()
    assert clipped[0].tolist() == pytest.approx([0.85 / 1.05, 0.2 / 1.05])  # 0.6 + 2.5 · 0.1, and 0.4/2 for 0.15


@pytest.mark.parametrize("evaluations", [2, 3])
def test_extrapolation_helps_only_by_mixing_orders(evaluations):
    """Given the order, the marginals are right and any change is an error; averaged over orders it is closer."""
    x = torch.full((5,), CHAIN.mask_id)
    plain = exact_law(CHAIN, parallel_first_hitting(evaluations), x)
    high = exact_law(CHAIN, extrapolated_first_hitting(evaluations), x)
    assert plain.model_error == pytest.approx(0.0, abs=1e-9)
    assert high.model_error > 0.01
    assert high.kl < 0.8 * plain.kl
    assert math.isnan(high.bound)


def test_a_predictor_belongs_to_the_uniform_order():
    with pytest.raises(ValueError, match="uniform order"):
        Rule(Entropy(), Steps(2), predictor=Extrapolate())
    with pytest.raises(ValueError, match="floor"):
        Extrapolate(floor=1.5)
    assert not Rule(Uniform(), One(), predictor=Extrapolate()).blind
    one = exact_law(CHAIN, Rule(Uniform(), One(), predictor=Extrapolate()), torch.full((5,), CHAIN.mask_id))
    assert one.kl < 1e-9  # every position is the first of its group


def test_the_page_shows_the_saved_figures():
    page = high_order.PAGE.read_text(encoding="utf-8")
    assert between(page, "high-order") == high_order.table(json.loads(high_order.RESULTS.read_text()))
