"""Schedules, ancestral sampling and the first-hitting sampler: one law, reached from both sides."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask import (
    Entropy,
    EntropyBound,
    MaskedFraction,
    One,
    Rule,
    TimeGrid,
    Uniform,
    ancestral,
    derive,
    first_hitting,
    parallel_first_hitting,
    sample,
)
from unmask.denoiser import Query
from unmask.draws.streams import Purpose, as_streams, uniforms
from unmask.oracles import exact_law, random_hmm, random_markov, random_table
from unmask.schedule import SCHEDULES, Cosine, Geometric, Linear, Polynomial

ALL = [*SCHEDULES.values(), Polynomial(0.5), Geometric(1e-3, 5.0)]


class Timed:
    """An oracle that wants the time and records it with the rows it was asked for."""

    wants_time = True

    def __init__(self, oracle) -> None:
        self.oracle, self.times, self.rows = oracle, [], 0
        self.vocab_size, self.mask_id = oracle.vocab_size, oracle.mask_id

    def __call__(self, query: Query) -> torch.Tensor:
        assert query.time is not None
        self.times.append((query.sequence.tolist(), query.time.tolist()))
        self.rows += int(query.where.sum())
        return self.oracle(query)


def times_of(timed: Timed, sequence: int) -> list[float]:
    return [t for rows, ts in timed.times for row, t in zip(rows, ts, strict=True) if row == sequence]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_schedules_satisfy_their_identities(schedule):
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    alpha = schedule.alpha(t)
    assert float(alpha[0]) == pytest.approx(1, abs=1e-12)
    assert float(alpha[-1]) == pytest.approx(0, abs=1e-12)
    assert bool((alpha.diff() < 0).all())
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(schedule.inverse(u)), u, atol=1e-9, rtol=0)
    torch.testing.assert_close(schedule.inverse(alpha)[50:951], t[50:951], atol=1e-9, rtol=0)
    inner, h = t[10:-10], 1e-6
    numeric = (schedule.alpha(inner + h) - schedule.alpha(inner - h)) / (2 * h)
    torch.testing.assert_close(schedule.derivative(inner), numeric, atol=1e-5, rtol=1e-5)


def test_schedule_settings_out_of_range_are_refused():
    for make in (lambda: Polynomial(0.0), lambda: Polynomial(math.inf), lambda: Geometric(1.0, 0.5)):
        with pytest.raises(ValueError, match=r"need|finite"):
            make()
    for bad in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="whole number >= 1"):
            TimeGrid(bad)  # pyright: ignore[reportArgumentType]


def ancestral_law_by_cells(oracle, x: torch.Tensor, steps: int, schedule) -> dict[tuple[int, ...], float]:
    """The textbook process: in every cell each mask is unmasked with probability (α_s - α_t)/(1 - α_t), then drawn."""
    mask = oracle.mask_id
    time = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    law = {tuple(x.tolist()): 1.0}
    for t, s in itertools.pairwise(time):
        a_t, a_s = float(schedule.alpha(t)), float(schedule.alpha(s))
        hit = (a_s - a_t) / (1 - a_t)
        after: dict[tuple[int, ...], float] = {}
        for state, mass in law.items():
            masked = [i for i, token in enumerate(state) if token == mask]
            if not masked:
                after[state] = after.get(state, 0.0) + mass
                continue
            p = oracle(Query.of(torch.tensor([state]), mask)).softmax(-1)
            for which in itertools.product((False, True), repeat=len(masked)):
                share = math.prod(hit if w else 1 - hit for w in which)
                drawn = [row for row, w in enumerate(which) if w]
                for tokens in itertools.product(range(mask), repeat=len(drawn)):
                    new, probability = list(state), mass * share
                    for row, token in zip(drawn, tokens, strict=True):
                        new[masked[row]] = token
                        probability *= float(p[row, token])
                    if probability:
                        after[tuple(new)] = after.get(tuple(new), 0.0) + probability
        law = after
    return law


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Geometric()], ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_law_of_hitting_times_in_cells_is_the_textbook_process(schedule, steps):
    oracle = random_table(2, 3, 4)
    x = torch.full((3,), 2)
    law = exact_law(oracle, ancestral(steps, schedule), x)
    expected = ancestral_law_by_cells(oracle, x, steps, schedule)
    q = torch.tensor([expected[tuple(point)] for point in law.points.tolist()], dtype=torch.float64)
    torch.testing.assert_close(law.log_q.exp(), q, atol=1e-12, rtol=0)


@pytest.mark.parametrize("oracle", [random_table(3, 4, 2), random_markov(3, 1), random_hmm(2, 3, 0)], ids=repr)
def test_ancestral_sampling_tends_to_the_first_hitting_sampler_which_is_exact(oracle):
    x = torch.full((4,), 3)
    exact = exact_law(oracle, first_hitting(), x)
    assert exact.kl <= 1e-9
    assert exact.nfe_mean == pytest.approx(4)
    gaps = []
    for steps in (4, 32, 256, 2048):
        law = exact_law(oracle, ancestral(steps), x)
        gaps.append(0.5 * float((law.log_q.exp() - exact.log_q.exp()).abs().sum()))
        assert law.nfe_mean <= min(steps, 4)
        assert law.kl <= law.bound + 1e-9
    # The share of runs in which two of four masks meet in one cell is 6/T to first order, and so is the distance.
    assert all(a > b for a, b in itertools.pairwise(gaps))
    assert gaps[2] / gaps[3] == pytest.approx(8, rel=0.1)
    assert gaps[3] < 6 / 2048


@pytest.mark.parametrize("rule", [first_hitting(), parallel_first_hitting(2), ancestral(3), ancestral(8, Cosine())])
def test_the_loop_draws_from_these_laws(rule):
    """Pearson, 20,000 sequences; a correct sampler fails one seed in 10⁶."""
    oracle, x = random_table(3, 4, 11), torch.full((4,), 3)
    law = exact_law(oracle, rule, x)
    runs = [
        sample(oracle, x.expand(2000, -1), rule, streams=[derive(1, row) for row in range(i, i + 2000)])
        for i in range(0, 20_000, 2000)
    ]
    assert law.pvalue(torch.cat([run.tokens for run in runs])) > 1e-6
    nfe = torch.cat([run.nfe for run in runs]).double()
    assert abs(float(nfe.mean()) - law.nfe_mean) <= 5 * float(nfe.std()) / 20_000**0.5 + 1e-9


def test_on_a_long_chain_both_have_the_likelihoods_of_the_data():
    """128 tokens: mean log-likelihood of 400 samples against the entropy rate; fails one correct run in 10⁵ each.

    The control, 16 evaluations at T = 16, is caught.
    """
    chain = random_markov(4, 3)
    x = torch.full((128,), 4)
    transition, marginal = chain.transition, chain.initial
    h = -(chain.transition * transition.log()).sum(-1)
    exact = float((marginal * marginal.log()).sum())
    for _ in range(127):
        exact -= float((marginal * h).sum())
        marginal = marginal @ transition
    for rule, right in ((first_hitting(), True), (ancestral(100_000), True), (ancestral(16), False)):
        run = sample(chain, x.expand(400, -1), rule, seed=5)
        log_p = chain.log_marginal(run.tokens)
        z = (float(log_p.mean()) - exact) / (float(log_p.std()) / 20)
        assert (abs(z) < 4.4) == right
        assert int(run.nfe.max()) <= (128 if right else 16)


def test_hitting_times_are_ordered_and_have_the_recursion_of_the_paper():
    """`1 - α(τ_{n-1}) = (1 - α(τ_n)) u^{1/n}`: the ratio to the power n is uniform; Kolmogorov, one seed in 10⁶."""
    for schedule in (Linear(), Cosine()):
        timed = Timed(random_markov(2, 0))
        sample(timed, torch.full((3000, 5), 2), first_hitting(schedule), seed=0)
        tau = torch.tensor([ts for _, ts in timed.times], dtype=torch.float64).T  # [sequence, evaluation]
        assert tau.shape == (3000, 5)
        assert bool((tau.diff(dim=-1) < 0).all())
        masked = 1 - schedule.alpha(torch.cat([torch.ones(3000, 1, dtype=torch.float64), tau], -1))
        for n in (5, 3, 1):
            u = (masked[:, 6 - n] / masked[:, 5 - n]).pow(n).sort().values
            grid = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
            assert float((u - grid).abs().max()) * 3000**0.5 < 2.8


def test_a_grid_passes_the_start_of_its_cell_and_evaluates_only_where_something_happens():
    timed = Timed(random_markov(3, 0))
    run = sample(timed, torch.full((20, 6), 3), ancestral(4), seed=2)
    for row in range(20):
        times = times_of(timed, row)
        assert len(times) == int(run.nfe[row]) <= 4
        assert set(times) <= {0.25, 0.5, 0.75, 1.0}
        assert times == sorted(set(times), reverse=True)


@given(st.integers(0, 1000), st.sampled_from([first_hitting(), ancestral(3), parallel_first_hitting(2)]))
def test_every_sequence_has_its_own_clock(seed, rule):
    oracle = random_hmm(2, 3, 0)
    rows = [[3, 3, 3, 3], [3, 1, 3], [3], [0, 3, 3, 2, 3]]
    streams = [derive(seed, row) for row in range(4)]
    timed = Timed(oracle)
    together = sample(timed, rows, rule, streams=streams)
    for row, tokens in enumerate(rows):
        alone = Timed(oracle)
        one = sample(alone, [tokens], rule, streams=[streams[row]])
        assert one.sequences[0] == together.sequences[row]
        assert times_of(alone, 0) == times_of(timed, row)


def test_blind_rules_evaluate_only_the_positions_they_draw():
    timed = Timed(random_markov(3, 0))
    run = sample(timed, torch.full((4, 10), 3), first_hitting(), seed=0, trace=True)
    assert timed.rows == 40
    assert len(run.trace(0)) == 10
    assert run.trace(0)[0].entropy > 0


def test_with_blocks_the_time_told_is_that_of_what_is_unmasked():
    timed = Timed(random_markov(2, 0))
    run = sample(timed, torch.full((30, 6), 2), first_hitting(), seed=1, blocks=3)
    noise = uniforms(as_streams(run.streams).unsqueeze(-1), torch.arange(6), Purpose.ORDER)
    for row in range(30):
        own = Linear().inverse(noise[row])
        expected = [*own[:3].sort(descending=True).values.tolist(), *own[3:].sort(descending=True).values.tolist()]
        assert times_of(timed, row) == expected


def test_a_denoiser_that_wants_time_needs_a_clock():
    timed = Timed(random_markov(3, 0))
    with pytest.raises(ValueError, match="no clock"):
        sample(timed, [[3, 3]], Rule(Entropy(), One()), seed=0)
    sample(timed, [[3, 3, 3, 0]], Rule(Entropy(), One(), MaskedFraction()), seed=0)
    assert [ts[0] for _, ts in timed.times] == [0.75, 0.5, 0.25]
    plain = sample(random_markov(3, 0), [[3, 3, 3]], Rule(Uniform(), One()), seed=0)
    assert torch.equal(plain.tokens, sample(random_markov(3, 0), [[3, 3, 3]], first_hitting(), seed=0).tokens)
    assert EntropyBound(0.1).marginal_free is False
