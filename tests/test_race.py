"""Draws by a race of exponential clocks: their law, their tails, and that they hardly feel rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unmask.draws import race
from unmask.draws.categorical import RACE_FROM, draw, draw_log_prob, draw_rows, forbid, marginals
from unmask.draws.race import GROUP, clocks
from unmask.draws.streams import Purpose, as_streams, uniforms
from unmask.oracles import pearson

VOCAB = RACE_FROM + 44  # not a multiple of the group


def noise(count: int, seed: int = 0) -> Tensor:
    return uniforms(as_streams([seed]), torch.arange(count), Purpose.TOKEN)


def test_clocks_are_independent_standard_exponentials():
    """Deviations above 5 standard errors of a mean are as rare as 6e-7; there are about thirty of them."""
    u = noise(4000)
    e = clocks(u, VOCAB)
    sample = e.flatten().sort().values
    distance = (1 - (-sample).exp() - torch.arange(len(sample)) / len(sample)).abs().max()
    assert float(distance) * math.sqrt(len(sample)) < 2.8  # Kolmogorov's statistic: beyond that 3e-7
    x = (1 - (-e).exp() - 0.5) * math.sqrt(12)  # uniform, of mean 0 and variance 1
    streams = (x[:, :-1], x[:, 1:]), (x[:, :-GROUP], x[:, GROUP:]), (x[:-1], x[1:]), (x[:, : VOCAB - 99], x[:, 99:])
    for one, other in streams:  # neighbours, in the next group, at the next position, anywhere
        for power in (1, 2):
            product = (one**power - (one**power).mean()) * (other**power - (other**power).mean())
            assert abs(float(product.mean() / product.std())) * math.sqrt(product.numel()) < 5
    first = e[:, :GROUP].min(-1)
    counts = torch.bincount(first.indices, minlength=GROUP)
    assert pearson(counts, torch.full((GROUP,), 1 / GROUP, dtype=torch.float64)) > 1e-6
    assert abs(float(first.values.mean() * GROUP) - 1) < 5 / math.sqrt(len(u))
    assert len(e.unique()) == e.numel()


def test_a_clock_depends_on_its_token_position_and_visit_and_on_nothing_else():
    u = uniforms(as_streams([3, 4]).unsqueeze(-1), torch.arange(5), Purpose.TOKEN)
    assert torch.equal(clocks(u.flatten(), 1000)[:, :VOCAB], clocks(u.flatten(), VOCAB))
    assert torch.equal(clocks(u[1], 1000), clocks(u.flatten(), 1000)[5:])
    again = uniforms(as_streams([3]), torch.arange(5), Purpose.TOKEN, visits=1)
    assert not bool((clocks(again, 100) == clocks(u[0], 100)).any())


def test_a_seed_keeps_its_meaning():
    z = torch.linspace(-2, 2, 1000).sin().expand(8, -1) * 3
    tokens = [860, 897, 954, 868, 603, 938, 680, 866]
    assert draw(z, noise(8, seed=5)).tolist() == tokens
    assert draw(z.double(), noise(8, seed=5)).tolist() == tokens


def test_clocks_reach_far_below_what_any_uniform_of_64_bits_gives():
    """The smallest is some 1e-39, and below 2⁻³² as above it the steps are small beside the clock itself."""
    word = torch.tensor([0, 0, 1, 2**32 - 1, 2**32, 2**40, 2**62, -(2**63), -1])
    more = torch.tensor([0, 64, 0, -1, 0, 0, 0, 0, -1])
    e = race._exponential(word, more)
    assert bool((e.diff() > 0).all())
    assert float(e[0]) / GROUP == race.LEAST < 1e-30
    assert float(e[3] / e[4]) == pytest.approx(1, rel=1e-9)
    expected = [2.0**-123, 1.5 * 2.0**-122, 2.0**-64, 2.0**-32, 2.0**-32, 2.0**-24, -math.log(0.75), math.log(2)]
    assert e[:-1].tolist() == pytest.approx(expected, rel=1e-7)
    assert float(e[-1]) == pytest.approx(53 * math.log(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.7}, {"top_p": 0.9}]
)
def test_a_race_has_the_stated_probabilities(dtype, settings):
    """60,000 draws against `draw_log_prob`; a correct draw fails one seed in 10⁶."""
    logits = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1)).to(dtype)
    tokens = torch.cat([draw(logits.expand(len(u), -1), u, **settings) for u in noise(60_000).split(6000)])
    p = draw_log_prob(logits, **settings)[0].exp()
    counts = torch.bincount(tokens, minlength=VOCAB)
    assert not bool((counts[p == 0] > 0).any())
    if int((p > 0).sum()) > 1:
        assert pearson(counts, p) > 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_path_takes_the_token_whose_clock_rings_first(dtype):
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(40, 5001, generator=generator) * torch.linspace(0, 9, 40).unsqueeze(-1)).to(dtype)
    z[3, 7:4000] = -math.inf
    z[4, :5000] = -math.inf
    u, tau = noise(40), torch.rand(40, dtype=torch.float64, generator=generator) * 2 + 0.1
    forbidden = (5, 2048)
    expected = (forbid(z, forbidden).double() / tau.unsqueeze(-1) - clocks(u, 5001).log()).argmax(-1)
    assert torch.equal(draw_rows(z, None, u, tau, forbidden=forbidden), expected)
    assert torch.equal(draw_rows(z, None, u, tau, forbidden=forbidden, stats=marginals(z, forbidden)), expected)
    assert torch.equal(draw(forbid(z.double(), forbidden), u, temperature=tau), expected)
    assert torch.equal(
        draw_rows(z, torch.tensor([9, 2]), u[[9, 2]], tau[[9, 2]], None, None, forbidden), expected[[9, 2]]
    )


def test_ties_go_to_the_lowest_token_where_noise_no_longer_counts():
    z = torch.zeros(50, 600)
    z[:, [130, 131, 500]] = 1.0
    assert set(draw(z, noise(50), temperature=0.0).tolist()) == {130}
    for each in (z, z.double()):
        assert set(draw(each, noise(50), temperature=1e-320).tolist()) == {130}
        assert set(draw(each, noise(50), temperature=1e-3).tolist()) == {130, 131, 500}


def differing(z: Tensor, other: Tensor, u: Tensor) -> tuple[float, float]:
    """The share of draws that differ, and the least that any coupling of the two laws could have."""
    distance = (z.double().softmax(-1) - other.double().softmax(-1)).abs().sum(-1) / 2
    return float((draw(z, u) != draw(other, u)).double().mean()), float(distance.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_differ_a_little_seldom_give_different_tokens(dtype):
    """2000 rows whose laws are some 2e-2 apart: no more than 2 d / (1 + d), with five standard errors.

    Inverting the CDF changes about half of them.
    """
    generator = torch.Generator().manual_seed(0)
    z = (torch.randn(2000, 4096, generator=generator) * 2).to(dtype)
    other = (z.float() + 0.05 * torch.randn(2000, 4096, generator=generator)).to(dtype)
    share, least = differing(z, other, noise(2000))
    bound = 2 * least / (1 + least)
    assert least > 0.01
    assert share < bound + 5 * math.sqrt(bound / 2000)


def test_truncation_keeps_the_tokens_that_a_race_without_it_would_take():
    z = torch.randn(500, 1000, generator=torch.Generator().manual_seed(0)) * 3
    free, kept = draw(z, noise(500)), draw(z, noise(500), top_k=20)
    inside = (draw_log_prob(z, top_k=20) > -math.inf).gather(1, free.unsqueeze(1)).squeeze(1)
    assert torch.equal(kept[inside], free[inside])
    assert 0 < int(inside.sum()) < 500


def gumbel_max(p: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """The published float32 draw, `argmax (log p - log(-log u))`, `u` in multiples of 2⁻²⁴, as `argmin -log(u)/p`."""
    tokens = []
    for _ in range(0, draws, 200):
        u = torch.rand(200, len(p), generator=generator)
        tokens.append(u.log_().neg_().div_(p).argmin(-1))
    return torch.cat(tokens)


def rare_classes(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of 10⁴ classes of 3e-8 and 100 of 1e-6 beside one large one; which each is; and the mass of each kind."""
    rare = torch.cat([torch.full((10_000,), 3e-8), torch.full((100,), 1e-6)])
    logits = torch.cat([1 - rare.sum(0, keepdim=True), rare]).log().to(dtype)
    cell = torch.cat([torch.zeros(1), torch.ones(10_000), torch.full((100,), 2)]).long()
    mass = torch.zeros(3, dtype=torch.float64).index_add_(0, cell, logits.double().softmax(-1))
    return logits, cell, mass


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str
)
def test_rare_classes_are_drawn_as_often_as_they_should(dtype):
    """300,000 draws, pooled by kind; expected counts are 90 and 30, and the threshold 1e-6.

    A correct draw fails about one seed in 3·10⁵ (the chi-square tail is approximate at such counts).
    """
    logits, cell, mass = rare_classes(dtype)
    drawn = torch.cat([draw(logits.expand(len(part), -1), part) for part in noise(300_000).split(2000)])
    assert pearson(torch.bincount(cell[drawn], minlength=3), mass) > 1e-6


def test_float32_gumbels_draw_rare_classes_too_seldom():
    """What the test above would see: with exponentials in multiples of ε = 2⁻²⁴ a class of probability π keeps the
    share r/(e^r - 1) of its mass, r = ε/π: 0.32 and 0.97 here, a noncentrality of 42.
    """
    logits, cell, mass = rare_classes(torch.float32)
    control = gumbel_max(logits.exp(), 300_000, torch.Generator().manual_seed(0))
    assert pearson(torch.bincount(cell[control], minlength=3), mass) < 1e-6
