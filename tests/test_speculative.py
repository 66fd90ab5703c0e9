"""Verified drafts: token for token one at a time, for any denoiser; and what happens without the order check."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from benchmarks.speculative import measure, table
from unmask import (
    Confidence,
    Determined,
    Entropy,
    FullDenoiser,
    LeftToRight,
    Margin,
    One,
    Rule,
    Sampler,
    Speculative,
    Uniform,
    derive,
    first_hitting,
    sample,
)
from unmask.cli.app import app
from unmask.denoiser import Query
from unmask.draws.categorical import draw as draw_tokens
from unmask.draws.categorical import forbid, marginals
from unmask.errors import LogitsError
from unmask.oracles import (
    MarkovDenoiser,
    PerturbedDenoiser,
    Sudoku4Denoiser,
    TableDenoiser,
    exact_law,
    random_hmm,
    random_table,
)
from unmask.rules import DrawnConfidence

ROOT = Path(__file__).parent.parent
ORDERS = [Entropy(), Determined(0.5), Confidence(), Margin(), LeftToRight(), Uniform()]


class Coarse:
    """Logits rounded to whole nats: ties everywhere, between tokens and between positions."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.vocab_size, self.mask_id = denoiser, denoiser.vocab_size, denoiser.mask_id

    def __call__(self, query: Query) -> torch.Tensor:
        return self.denoiser(query).round()


class Asked:
    """Records what was asked."""

    def __init__(self, denoiser) -> None:
        self.denoiser, self.vocab_size, self.mask_id, self.queries = denoiser, denoiser.vocab_size, denoiser.mask_id, []

    def __call__(self, query: Query) -> torch.Tensor:
        self.queries.append(query)
        return self.denoiser(query)


@st.composite
def denoisers(draw):
    """Consistent, nearly so, and logits that are a hash of the state: no two states have to do with each other."""
    scale = draw(st.sampled_from([0.0, 0.5, 3.0, 8.0]))
    model = PerturbedDenoiser(random_hmm(3, 3, draw(st.integers(0, 3))), scale, draw(st.integers(0, 99)))
    return Coarse(model) if draw(st.booleans()) else model


def by_position(result, row: int) -> list[tuple[int, int, float, float]]:
    return sorted((e.position, e.token, e.probability, e.entropy) for e in result.trace(row))


@settings(max_examples=80)
@given(
    denoisers(),
    st.sampled_from(ORDERS),
    st.integers(1, 9),
    st.lists(st.lists(st.sampled_from([3, 3, 3, 0, 1, 2]), min_size=1, max_size=8), min_size=1, max_size=5),
    st.integers(0, 2**63),
    st.integers(0, 4),
    st.sampled_from([{}, {"top_k": 2}, {"top_p": 0.7}, {"forbidden": [1]}, {"top_k": 2, "forbidden": [0]}]),
)
def test_every_token_is_the_one_drawn_one_at_a_time(model, order, ahead, rows, seed, block, draws):
    taus = torch.tensor([(1.0, 0.0, 0.6)[row % 3] for row in range(len(rows))], dtype=torch.float64)
    run = {"seed": seed, "temperature": taus, "blocks": block or None, "trace": True, **draws}
    one = sample(model, rows, Rule(order, One()), **run)
    asked = Asked(model)
    ours = sample(asked, rows, Rule(order, Speculative(ahead)), **run)
    assert torch.equal(ours.tokens, one.tokens)
    assert bool((ours.nfe <= one.nfe).all())
    assert bool((ours.nfe <= ours.evaluations).all())
    assert bool((ours.evaluations <= (ahead + 1) * ours.nfe).all())
    assert torch.equal(one.nfe, one.evaluations)
    assert ours.forward_passes == len(asked.queries) == int(ours.nfe.max())
    assert sum(len(query.x) for query in asked.queries) == int(ours.evaluations.sum())
    for query in asked.queries:
        assert bool(query.where.any(-1).all()), "a state without masks was evaluated"
    for row in range(len(rows)):
        # Drawn in the same states: from marginals of the same bits, in the same order.
        assert by_position(ours, row) == by_position(one, row)
        step = {event.position: event.step for event in ours.trace(row)}
        steps = [step[event.position] for event in one.trace(row)]
        assert steps == sorted(steps)
        assert ours.bounds[row] == (0.0,) * int(ours.nfe[row])


KEYS = {Confidence: "doubt", Margin: "closeness"}


def ranking(model, order, x: torch.Tensor, state) -> list[tuple[int, int]]:
    """Positions in order, each with the token it would take in this state."""
    query = Query.of(x, model.mask_id)
    logits = model(query)
    where = query.where[0].nonzero()[:, 0]
    stats, noise = marginals(logits, (model.mask_id,)), state.order_noise[0, where]
    key = where if isinstance(order, LeftToRight) else noise
    if not order.marginal_free:
        key = getattr(stats, KEYS.get(type(order), "entropy")).clamp(min=getattr(order, "floor", 0.0))
    tokens = draw_tokens(forbid(logits, (model.mask_id,)), state.token_noise[0, where])
    found = zip(key.tolist(), where.tolist(), tokens.tolist(), strict=True)
    return [(position, token) for _, position, token in sorted(found)]


@settings(max_examples=40)
@given(denoisers(), st.sampled_from(ORDERS), st.integers(1, 6), st.integers(1, 7), st.integers(0, 99))
def test_the_batched_step_equals_a_plain_loop(model, order, ahead, length, seed):
    x = torch.full((1, length), 3)
    ours = sample(model, x, Rule(order, Speculative(ahead)), seed=seed)
    state = Sampler(model, Rule(order, One())).start(x, seed=seed)
    nfe = evaluations = 0
    draft, found = [], []
    while bool((x == 3).any()):
        nfe += 1
        evaluations += min(1 + len(draft), int((x == 3).sum()))
        for guess in [*draft, None]:
            found = ranking(model, order, x, state)
            x = x.clone()
            x[0, found[0][0]] = found[0][1]
            if found[0] != guess or len(found) == 1:
                break
        draft = found[1 : 1 + ahead]
    assert torch.equal(ours.tokens, x)
    assert (int(ours.nfe[0]), int(ours.evaluations[0])) == (nfe, evaluations)


def test_drafting_more_never_takes_more_evaluations_and_independent_positions_take_the_fewest():
    free = FullDenoiser(lambda x: torch.arange(12.0).reshape(12, 1) * torch.linspace(0, 1, 4) + 0 * x[..., None], 4, 3)
    x = torch.full((20, 12), 3)
    for order in ORDERS:
        for ahead in (1, 2, 5, 11, 40):
            run = sample(free, x, Rule(order, Speculative(ahead)), seed=0)
            # The first evaluation drafts nothing; after it every draft is right.
            assert run.nfe.unique().tolist() == [1 + math.ceil(11 / (ahead + 1))]
            assert run.evaluations.unique().tolist() == [12]


def inconsistent(seed: int, symbols: int = 2, length: int = 4) -> PerturbedDenoiser:
    """Logits that are noise, a hash of the state."""
    flat = torch.full((symbols,) * length, float(symbols) ** -length, dtype=torch.float64)
    return PerturbedDenoiser(TableDenoiser(flat), 5.0, seed)


def test_without_the_order_check_the_law_is_another_one():
    """The control. 4,000 sequences a model: the distance of a right sampler would be below 0.05."""
    x, distances = torch.full((4000, 4), 2), []
    for seed in range(4):
        model = inconsistent(seed)
        law = exact_law(model, Rule(Entropy(), One()), x[0])
        for check in (True, False):
            run = sample(model, x, Rule(Entropy(), Speculative(3, check_order=check)), seed=0)
            share = law.counts(run.tokens).double() / len(x)
            distance = 0.5 * float((share[:-1] - law.log_q.exp()).abs().sum())
            if check:
                assert distance < 0.05
            else:
                distances.append(distance)
    assert max(distances) > 0.7


def test_without_the_order_check_exact_conditionals_still_give_the_law_of_the_data():
    # A draft says nothing about a uniform that is still to be used, so the order is one that has not seen the draws.
    oracle, x = random_table(3, 4, 11), torch.full((20_000, 4), 3)
    law = exact_law(oracle, Rule(Entropy(), One()), x[0])
    unchecked = Rule(Entropy(), Speculative(3, check_order=False))
    tokens = sample(oracle, x, unchecked, seed=0).tokens
    assert law.pvalue(tokens) > 1e-6
    assert not torch.equal(tokens, sample(oracle, x, Rule(Entropy(), One()), seed=0).tokens)
    with pytest.raises(ValueError, match="order check"):
        exact_law(oracle, unchecked, x[0])


def test_without_the_order_check_an_order_that_never_changes_is_safe():
    model, x = inconsistent(0), torch.full((100, 4), 2)
    for order in (LeftToRight(), Uniform()):
        one = sample(model, x, Rule(order, One()), seed=0)
        assert torch.equal(sample(model, x, Rule(order, Speculative(3, check_order=False)), seed=0).tokens, one.tokens)


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("model", [random_table(3, 4, 2), PerturbedDenoiser(random_hmm(3, 3, 4), 2.0)])
@pytest.mark.parametrize("draws", [{}, {"blocks": 3}, {"temperature": 0.6, "top_k": 2}], ids=repr)
def test_expected_evaluations_are_exact(order, model, draws):
    """5 standard errors (6e-7) of 8,000 sequences, for evaluations one after the other and for states evaluated."""
    x, rule = torch.full((4,), 3), Rule(order, Speculative(2))
    law = exact_law(model, rule, x, **draws)
    run = sample(model, x.expand(8000, -1), rule, seed=0, **draws)
    for drawn, mean in ((run.nfe.double(), law.nfe_mean), (run.evaluations.double(), law.evaluations_mean)):
        assert abs(float(drawn.mean()) - mean) <= 5 * float(drawn.std()) / 8000**0.5 + 1e-9
    one = exact_law(model, Rule(order, One()), x, **draws)
    assert torch.equal(law.log_q, one.log_q)
    assert 1 <= law.nfe_mean < one.nfe_mean == one.evaluations_mean < law.evaluations_mean


def test_expected_evaluations_of_the_data_and_where_none_are_computed():
    oracle, x = MarkovDenoiser.lazy(3, 0.8), torch.full((4,), 3)
    law = exact_law(oracle, Rule(Entropy(), Speculative(2)), x)
    assert law.nfe_mean_data == pytest.approx(law.nfe_mean, abs=1e-12)  # the sampler is exact
    cut = exact_law(random_table(3, 4, 2), Rule(Entropy(), Speculative(2)), x, top_k=1)
    assert math.isnan(cut.nfe_mean_data)  # part of the data cannot be drawn
    assert cut.nfe_mean >= 1
    many = exact_law(random_hmm(2, 2, 0), Rule(Uniform(), Speculative(2)), torch.full((8,), 2))
    assert many.kl < 1e-9
    assert math.isnan(many.nfe_mean)
    assert math.isnan(many.evaluations_mean)


def test_evaluations_of_drafts_are_not_computed_where_tokens_race(monkeypatch):
    """Their probabilities are overlaps of intervals, which a race has none of."""
    monkeypatch.setattr("unmask.oracles.speculation.RACE_FROM", 4)
    with pytest.raises(ValueError, match="vocabularies below 4 tokens"):
        exact_law(MarkovDenoiser.lazy(3, 0.8), Rule(Entropy(), Speculative(2)), torch.full((4,), 3))


class Strict:
    """4x4 Sudoku that refuses grids that cannot be: their logits have no mass."""

    vocab_size, mask_id = 5, 4

    def __init__(self) -> None:
        self.oracle = Sudoku4Denoiser()

    def __call__(self, query: Query) -> torch.Tensor:
        alive = self.oracle.log_marginal(query.x).isfinite()[query.where.nonzero()[:, 0]]
        return self.oracle(query).masked_fill(~alive.unsqueeze(-1), -math.inf)


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: type(o).__name__)
def test_a_drafted_state_that_cannot_be_ends_the_draft_and_is_no_error(order):
    x, strict = torch.full((40, 16), 4), Strict()
    asked = Asked(strict)
    one = sample(strict, x, Rule(order, One()), seed=0)
    ours = sample(asked, x, Rule(order, Speculative(6)), seed=0)
    assert torch.equal(ours.tokens, one.tokens)
    broken = [bool((~strict.oracle.log_marginal(query.x).isfinite()).any()) for query in asked.queries]
    assert any(broken), "the test needs drafts that contradict themselves"
    assert sum(len(query.x) for query in asked.queries) == int(ours.evaluations.sum())
    assert bool((ours.nfe < one.nfe).all())


def test_a_state_of_its_own_that_cannot_be_is_the_error_it_always_is():
    x = torch.full((2, 16), 4)
    x[1, :2] = 0
    for budget in (One(), Speculative(3)):
        with pytest.raises(LogitsError, match=r"sequence 1, position 2\) have no mass"):
            sample(Strict(), x, Rule(Entropy(), budget), seed=0)


def test_a_draft_is_read_off_the_last_evaluation_and_costs_none():
    model, x = random_hmm(3, 3, 0), torch.full((6, 7), 3)
    sampler = Sampler(model, Rule(Entropy(), Speculative(4)))
    state = sampler.start(x, seed=0)
    before = replace(state)
    after, info = sampler.step(state)
    assert info.evaluations.tolist() == [1] * 6
    assert info.chosen.sum(-1).tolist() == [1] * 6
    assert all(
        torch.equal(getattr(state, name), value)
        for name, value in vars(before).items()
        if isinstance(value, torch.Tensor)
    )
    _, info = sampler.step(after)
    assert info.evaluations.tolist() == [5] * 6
    assert info.forward_passes == 1


def test_a_fixed_order_is_asked_for_no_more_than_it_may_use():
    asked = Asked(random_hmm(3, 3, 0))
    sample(asked, torch.full((3, 12), 3), Rule(LeftToRight(), Speculative(2)), seed=0)
    assert max(int(query.where.sum(-1).max()) for query in asked.queries) == 3
    assert any(len(query.sequence.unique()) < len(query.sequence) for query in asked.queries)


def test_a_state_edited_between_steps_goes_on_one_at_a_time_from_there():
    model, x = PerturbedDenoiser(random_hmm(3, 3, 1), 3.0), torch.full((30, 8), 3)
    speculative, one = (Sampler(model, Rule(Uniform(), budget)) for budget in (Speculative(5), One()))
    state, _ = speculative.step(speculative.start(x, seed=0))
    assert isinstance(state.memory, torch.Tensor)
    drafted = state.memory[:, 1].long()  # the second drafted position is given a token, the third one another
    rows = torch.arange(30)
    tokens, pending = state.x.clone(), state.pending.clone()
    tokens[rows, drafted], pending[rows, drafted] = 2, False
    edited = replace(state, x=tokens, pending=pending)
    plain = replace(edited, memory=one.start(x, seed=0).memory)
    assert torch.equal(speculative.run(edited).tokens, one.run(plain).tokens)


def test_a_denoiser_that_wants_time_gets_that_of_each_state():
    class Timed:
        vocab_size, mask_id, wants_time = 4, 3, True

        def __init__(self) -> None:
            self.model = PerturbedDenoiser(random_hmm(3, 3, 0), 2.0)

        def __call__(self, query: Query) -> torch.Tensor:
            assert query.time is not None
            row = query.where.nonzero()[:, 0]
            return self.model(query) * (1 + query.time[row]).unsqueeze(-1)

    x, rule = torch.full((50, 7), 3), first_hitting()
    one = sample(Timed(), x, rule, seed=0)
    ours = sample(Timed(), x, replace(rule, budget=Speculative(3)), seed=0)
    assert torch.equal(ours.tokens, one.tokens)
    assert float(ours.nfe.double().mean()) < 6


def test_a_sequence_alone_costs_what_it_costs_in_a_batch():
    model, rule = PerturbedDenoiser(random_hmm(3, 3, 2), 1.0), Rule(Margin(), Speculative(3))
    rows = [[3, 3, 0, 3, 3], [3], [3, 3, 3, 3, 3, 3, 3, 3], [1, 2], [3, 1, 3, 3, 2, 3]]
    streams = [derive(5, row) for row in range(5)]
    together = sample(model, rows, rule, streams=streams, trace=True)
    for row, tokens in enumerate(rows):
        alone = sample(model, [tokens], rule, streams=[streams[row]], trace=True)
        assert alone.trace_json(0) == together.trace_json(row)
    stopped = sample(model, rows, rule, streams=streams, max_steps=2)
    assert stopped.forward_passes == 2
    assert int(stopped.masks_left[2]) > 0


def test_settings_that_do_not_fit_are_errors():
    for ahead in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="draft must be a whole number >= 1"):
            Speculative(ahead)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="changes them"):
        Rule(DrawnConfidence(), Speculative(2))


def test_the_command_line_reports_evaluations_and_states():
    run = ["solve", "--limit", "1", "--json", "--rule"]
    one, ours = (
        json.loads(CliRunner().invoke(app, [*run, *rest]).stdout)
        for rest in (
            ["topk:k=1,proxy=determined"],
            ["speculative", "-o", "draft=3", "-o", "proxy=determined"],
        )
    )
    assert ours["settings"] == {"draft": 3, "proxy": "determined"}
    assert one["nfe_mean"] == one["evaluations_mean"]
    assert ours["nfe_mean"] < one["nfe_mean"] / 2
    assert ours["nfe_mean"] == ours["forward_passes"]
    assert ours["evaluations_mean"] >= one["evaluations_mean"]
    rows = json.loads(CliRunner().invoke(app, ["compare", "--rules", "speculative,top1-entropy", "--json"]).stdout)
    assert rows[0]["kl"] == rows[1]["kl"]
    assert rows[0]["nfe_mean"] < rows[1]["nfe_mean"] == rows[1]["evaluations_mean"] < rows[0]["evaluations_mean"]


def test_the_page_shows_the_saved_figures_and_the_benchmark_checks_its_tokens():
    page = (ROOT / "docs" / "speculative.md").read_text(encoding="utf-8")
    saved = json.loads((ROOT / "docs" / "results" / "speculative.json").read_text())["rows"]
    assert page.split("<!-- speculative:begin -->")[1].split("<!-- speculative:end -->")[0].strip() == table(saved)
    assert all(row["same"] == 1 for row in saved if row["rule"] == "speculative")
    rows = measure(1, 3, ["sudoku4"])
    assert {row["draft"] for row in rows if row["rule"] == "speculative"} == {1, 2, 4, 8, 16}
