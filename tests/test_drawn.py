"""Rules that rank by drawn tokens: what they do, and the bias that is their price."""

from __future__ import annotations

import pytest
import torch

from unmask import Confidence, FullDenoiser, One, Rule, Steps, derive, sample
from unmask.oracles import exact_law, random_hmm, random_table
from unmask.rules import DrawnConfidence

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


@pytest.mark.parametrize("order", [DrawnConfidence(), DrawnConfidence(gumbel=4.5)])
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


def test_they_have_no_exact_law_and_say_so():
    with pytest.raises(ValueError, match="ranks by drawn tokens"):
        exact_law(random_table(3, 3, 0), Rule(DrawnConfidence(), One()), torch.full((3,), 3))
