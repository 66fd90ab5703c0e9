"""Rules that rank by drawn tokens, and the moment sampler: what they do, and the bias that is their price."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from unmask import All, Confidence, EntropyBound, FullDenoiser, One, Rule, Steps, TopK, derive, sample
from unmask.oracles import (
    MarkovDenoiser,
    PerturbedDenoiser,
    Sudoku4Denoiser,
    exact_law,
    pearson,
    random_hmm,
    random_table,
)
from unmask.oracles.scored_law import plackett_luce
from unmask.rules import DrawnConfidence, Moment

COINS = torch.tensor([0.8, 0.2, 0.0]).log()  # independent positions: any honest sampler draws them so


def coins() -> FullDenoiser:
    return FullDenoiser(lambda x: COINS.expand(*x.shape, -1).clone(), 3, 2)


def share_of_tails(order) -> tuple[float, float]:
    run = sample(coins(), torch.full((4000, 4), 2), Rule(order, One()), seed=0)
    tails = run.tokens.double()
    return float(tails.mean()), float(tails.mean(-1).std()) / 4000**0.5


def test_choosing_positions_by_their_draws_is_biased_and_by_their_marginals_is_not():
    """Four independent coins, one at a time, exact conditionals: the truth is 0.2; 5 standard errors."""
    honest, error = share_of_tails(Confidence())
    assert abs(honest - 0.2) < 5 * error
    biased, error = share_of_tails(DrawnConfidence())
    # Tails is fixed first only if every draw left is tails: with n left that is 0.2^n, so (0.2+0.04+0.008+0.0016)/4.
    assert abs(biased - 0.0624) < 5 * error
    assert biased < 0.2 - 20 * error


def test_gumbel_noise_moves_the_choice_towards_random_and_so_back_to_the_truth():
    shares = [share_of_tails(DrawnConfidence(gumbel=noise))[0] for noise in (0.0, 2.0, 1e6)]
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] == pytest.approx(0.2, abs=0.02)
    with pytest.raises(ValueError, match="gumbel"):
        DrawnConfidence(gumbel=-1.0)


@pytest.mark.parametrize("order", [DrawnConfidence(), DrawnConfidence(gumbel=4.5), Moment(1.0)])
def test_they_keep_every_contract_of_the_loop(order):
    oracle = random_hmm(3, 3, 0)
    rows = [[3, 3, 3, 1, 3], [3, 3], [0, 3, 3, 3, 3, 3, 3]]
    streams = [derive(3, row) for row in range(3)]
    taus = torch.tensor([0.0, 1.0, 0.7], dtype=torch.float64)
    for rule in (Rule(order, One()), Rule(order, Steps(2))):
        together = sample(oracle, rows, rule, streams=streams, temperature=taus, trace=True)
        assert bool(together.finished.all())
        assert together.sequences[0][3] == 1
        for row, tokens in enumerate(rows):
            alone = sample(oracle, [tokens], rule, streams=[streams[row]], temperature=float(taus[row]), trace=True)
            assert alone.sequences[0] == together.sequences[row]
            assert alone.trace(0) == together.trace(row)


N = 20_000


def drawn(denoiser, rule: Rule, x: torch.Tensor, **draw) -> torch.Tensor:
    """`N` sequences from the loop, in batches that fit a cache."""
    streams = [derive(5, row) for row in range(N)]
    parts = [
        sample(denoiser, x.expand(2000, -1), rule, streams=streams[i : i + 2000], **draw) for i in range(0, N, 2000)
    ]
    return torch.cat([part.tokens for part in parts])


@pytest.mark.parametrize(
    "order", [DrawnConfidence(), DrawnConfidence(0.7), DrawnConfidence(4.5), Moment(0.9)], ids=repr
)
@pytest.mark.parametrize("budget", [One(), TopK(2), Steps(3), All()], ids=repr)
def test_the_loop_draws_from_their_exact_law(order, budget):
    """Pearson, 20,000 sequences on 81 outcomes, threshold 1e-6 as in test_loop_law."""
    oracle, x, rule = random_table(3, 4, 11), torch.full((4,), 3), Rule(order, budget)
    law = exact_law(oracle, rule, x)
    assert float(law.log_q.exp().sum()) + law.off_support == pytest.approx(1)
    assert law.pvalue(drawn(oracle, rule, x)) > 1e-6


@pytest.mark.parametrize(
    ("order", "draw"),
    [
        (DrawnConfidence(), {"blocks": 2}),
        (DrawnConfidence(), {"temperature": 0.6}),
        (DrawnConfidence(1.0), {"temperature": 1.5, "top_k": 2, "blocks": 2}),
        (DrawnConfidence(1.0), {"top_p": 0.8, "forbidden": [1]}),
        (Moment(1.0), {"temperature": 1.5, "forbidden": [0]}),
        (Moment(1.0), {"top_p": 0.8, "blocks": 2}),
    ],
    ids=repr,
)
def test_it_does_so_with_a_pinned_token_and_settings_of_the_draw(order, draw):
    oracle, x = random_table(3, 5, 6), torch.tensor([3, 2, 3, 3, 3])
    law = exact_law(oracle, Rule(order, Steps(3)), x, **draw)
    assert law.pvalue(drawn(oracle, Rule(order, Steps(3)), x, **draw)) > 1e-6


@pytest.mark.parametrize("order", [DrawnConfidence(), DrawnConfidence(1.0), Moment(1.0)], ids=repr)
def test_it_does_so_with_a_wrong_model(order):
    oracle, x = PerturbedDenoiser(random_table(3, 4, 5), 0.5), torch.full((4,), 3)
    law = exact_law(oracle, Rule(order, Steps(2)), x)
    assert law.pvalue(drawn(oracle, Rule(order, Steps(2)), x)) > 1e-6


def test_at_temperature_zero_nothing_is_random_without_noise():
    oracle, x = random_table(3, 4, 5), torch.full((4,), 3)
    assert float(exact_law(oracle, Rule(DrawnConfidence(), Steps(3)), x, temperature=0.0).log_q.max()) == 0
    noisy = exact_law(oracle, Rule(Moment(1.0), Steps(3)), x, temperature=0.0)
    assert -math.inf < float(noisy.log_q.max()) < 0


def test_sets_that_follow_from_the_ranking_may_be_of_any_size():
    oracle, x, rule = random_table(3, 4, 11), torch.full((4,), 3), Rule(DrawnConfidence(), EntropyBound(0.9))
    law = exact_law(oracle, rule, x)
    assert law.pvalue(drawn(oracle, rule, x)) > 1e-6
    assert 1 < law.nfe_mean < 4
    with pytest.raises(ValueError, match="do not depend on the marginals"):
        exact_law(oracle, Rule(DrawnConfidence(1.0), EntropyBound(0.9)), x)


def test_another_law_is_told_apart():
    """The control: the same sequences against the law of noise a little stronger."""
    oracle, x = random_table(3, 4, 11), torch.full((4,), 3)
    tokens = drawn(oracle, Rule(DrawnConfidence(0.7), One()), x)
    assert exact_law(oracle, Rule(DrawnConfidence(1.0), One()), x).pvalue(tokens) < 1e-6


def test_the_law_states_the_bias_of_one_at_a_time():
    """On the coins by hand: tails comes first only if every draw left is tails, so its share is 0.0624."""
    law = exact_law(coins(), Rule(DrawnConfidence(), One()), torch.full((4,), 2))
    assert float((law.log_q.exp() * law.points.double().mean(-1)).sum()) == pytest.approx(
        0.0624, abs=1e-7
    )  # the coins are float32
    x = torch.full((4,), 3)
    for oracle in (random_table(3, 4, 11), random_hmm(3, 3, 4), MarkovDenoiser.lazy(3, 0.75)):
        kl = [exact_law(oracle, Rule(DrawnConfidence(gumbel), One()), x).kl for gumbel in (0.0, 1.0, 1e6)]
        assert kl[0] > kl[1] > 1e-3  # though the conditionals are exact and nothing is drawn together
        assert kl[2] < 1e-9  # noise alone is the uniform order
        assert exact_law(oracle, Rule(Confidence(), One()), x).kl < 1e-9


def test_the_moment_sampler_draws_from_a_power_of_the_marginals():
    """On the coins by hand: with `n` of four masks left, tails has the weight `0.2^β`, `β = 1 + 4 / (alpha n)`."""
    for alpha in (0.5, 2.0, 20.0):
        law = exact_law(coins(), Rule(Moment(alpha), One()), torch.full((4,), 2))
        powers = [1 + 4 / (alpha * n) for n in (4, 3, 2, 1)]
        tails = sum(0.2**b / (0.2**b + 0.8**b) for b in powers) / 4
        assert float((law.log_q.exp() * law.points.double().mean(-1)).sum()) == pytest.approx(tails, rel=1e-6)
    x = torch.full((4,), 3)
    for oracle in (random_table(3, 4, 11), random_hmm(3, 3, 4), MarkovDenoiser.lazy(3, 0.75)):
        kl = [exact_law(oracle, Rule(Moment(alpha), One()), x).kl for alpha in (0.5, 5.0, 1e6)]
        assert kl[0] > kl[1] > 1e-3 > 1e-9 > kl[2]
    with pytest.raises(ValueError, match="alpha"):
        Moment(0.0)


def test_the_moment_sampler_prefers_positions_of_large_moments():
    """Two positions with different marginals, exactly: the first one fixed is drawn with weights `Σ p^β`."""
    p = torch.tensor([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0]], dtype=torch.float64)
    denoiser = FullDenoiser(lambda x: p.log().expand(len(x), -1, -1).clone(), 3, 2)
    runs = sample(denoiser, torch.full((N, 2), 2), Rule(Moment(1.0), One()), seed=0, max_steps=1)
    moments = p.square().sum(-1)  # β = 2 while everything is masked
    first = (runs.tokens != 2).long().argmax(-1)
    assert pearson(torch.bincount(first, minlength=2), moments) > 1e-6
    assert pearson(torch.bincount(runs.tokens[first == 1, 1], minlength=3), torch.tensor([0.81, 0.01, 0.0])) > 1e-6
    greedy = sample(denoiser, torch.full((200, 2), 2), Rule(Moment(1.0), One()), seed=0, temperature=0.0)
    assert greedy.tokens.unique(dim=0).tolist() == [[0, 0]]


def test_maskgit_comes_near_the_moment_sampler_on_long_sequences():
    """Share of tails among the tokens fixed first, of 4,000 runs: within 5 standard errors of the limit, or far off."""
    limit = 0.2**1.5 / (0.2**1.5 + 0.8**1.5)
    for length, near in ((2, False), (128, True)):
        x, rule = torch.full((4000, length), 2), Rule(DrawnConfidence(2.0), One())
        first = sample(coins(), x, rule, seed=0, max_steps=1).tokens
        share = float((first == 1).sum()) / 4000
        assert (abs(share - limit) < 5 * (limit * (1 - limit) / 4000) ** 0.5) == near


def test_evaluations_are_counted_and_what_is_not_defined_is_nan():
    oracle, x = random_table(3, 4, 11), torch.full((4,), 3)
    law = exact_law(oracle, Rule(DrawnConfidence(1.0), Steps(3)), x)
    assert law.nfe_mean == pytest.approx(3)
    assert law.nfe_mean_data == law.nfe_mean
    assert all(math.isnan(value) for value in (law.bound, law.dependence, law.model_error))
    assert math.isnan(exact_law(oracle, Rule(DrawnConfidence(), EntropyBound(0.9)), x).nfe_mean_data)
    plain = exact_law(coins(), Rule(DrawnConfidence(), One()), torch.full((4,), 2))
    assert math.isnan(plain.kl)


def test_sets_drawn_without_replacement_have_the_probabilities_of_all_their_orders():
    weights = torch.tensor([[1.0, 2.0, 4.0, 0.5], [1e-300, 1.0, 1e300, 1e-200]], dtype=torch.float64)
    for k in range(1, 5):
        sets, chance = plackett_luce(weights.log(), k)
        assert len(sets) == math.comb(4, k)
        torch.testing.assert_close(chance.sum(-1), torch.ones(2, dtype=torch.float64))
        for members, probability in zip(sets, chance.T, strict=True):
            orders = list(itertools.permutations(members.nonzero().squeeze(-1).tolist()))
            by_hand = 0.0
            for order in orders:
                left, product = weights[0].sum(), 1.0
                for item in order:
                    product, left = product * float(weights[0, item] / left), left - weights[0, item]
                by_hand += product
            assert float(probability[0]) == pytest.approx(by_hand)
    sets, chance = plackett_luce(weights.log(), 2)
    assert float(chance[1, sets.tolist().index([False, True, True, False])]) == pytest.approx(1)


def test_too_many_joint_draws_are_refused_with_the_limit():
    with pytest.raises(ValueError, match="16 masks of 4 symbols are too many"):
        exact_law(Sudoku4Denoiser(), Rule(DrawnConfidence(), One()), torch.full((16,), 4))
