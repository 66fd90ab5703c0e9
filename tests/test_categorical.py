from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.draws.categorical import (
    RACE_FROM,
    draw,
    draw_log_prob,
    forbid,
    log_prob,
    marginals,
    most_probable,
    truncate,
)
from unmask.errors import LogitsError
from unmask.oracles import pearson
from unmask.sampling.draw import Draw, Settings

ULP1 = 1 - 2.0**-53  # the largest uniform
EPS = 2.0**-52  # of float64, twice the largest error of a rounding


def reference(row: list[float]) -> tuple[float, float, float]:
    """Entropy, doubt and closeness by exact summation, from exponentials that are never subtracted from 1."""
    z = sorted((value for value in row if value > -math.inf), reverse=True)
    rest = [math.exp(value - z[0]) for value in z[1:]]
    total = math.fsum([1.0, *rest])
    entropy = (
        math.log1p(math.fsum(rest))
        + math.fsum(e * (z[0] - value) for e, value in zip(rest, z[1:], strict=True)) / total
    )
    second = rest[0] if rest else 0.0
    return entropy, math.fsum(rest) / total, (math.fsum(rest) + second) / total


def log_sums(row: list[float], beta: float) -> tuple[Decimal, Decimal]:
    """`log Σ e^{β (z - top)}` and `β log Σ e^{z - top}`, to fifty digits: their difference is `log Σ p^β`."""
    with localcontext(prec=50):
        below = [Decimal(value) - Decimal(max(row)) for value in row if value > -math.inf]
        of_powers = sum((Decimal(beta) * each).exp() for each in below)
        return Decimal(of_powers).ln(), Decimal(beta) * Decimal(sum(each.exp() for each in below)).ln()


@given(
    st.lists(st.one_of(st.floats(-60, 60, width=32), st.just(-math.inf)), min_size=1, max_size=40).filter(
        lambda row: max(row) > -math.inf
    )
)
def test_statistics_agree_with_exact_summation(row):
    entropy, doubt, closeness = reference(row)
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        stats = marginals(torch.tensor([row], dtype=dtype))
        # Relative, down to the underflow of the dtype: no cancellation near zero entropy.
        assert float(stats.entropy) == pytest.approx(entropy, rel=rtol, abs=1e-30)
        assert float(stats.doubt) == pytest.approx(doubt, rel=rtol, abs=1e-30)
        assert float(stats.closeness) == pytest.approx(closeness, rel=rtol, abs=1e-30)
        assert int(stats.token) == row.index(max(row))
        assert float(stats.confidence) == pytest.approx(1 - doubt, rel=rtol)
        assert float(stats.margin) == pytest.approx(1 - closeness, rel=rtol, abs=rtol)


def test_moments_are_sums_of_powers_and_change_no_other_statistic():
    logits = torch.randn(5, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    logits[1] = torch.tensor([0.0] + [-math.inf] * 29)
    logits[2] = torch.tensor([0.0, -40.0] + [-math.inf] * 28)
    power = torch.tensor([1.0, 3.0, 1.5, 2.0, 1e6], dtype=torch.float64)
    stats, plain = marginals(logits, [3], power), marginals(logits, [3])
    assert plain.log_moment is None
    assert stats.log_moment is not None
    for name in ("entropy", "doubt", "closeness", "token", "log_norm"):
        assert torch.equal(getattr(stats, name), getattr(plain, name))
    for row, beta, found in zip(forbid(logits, [3]).tolist(), power.tolist(), stats.log_moment.tolist(), strict=True):
        of_powers, of_all = log_sums(row, beta)
        # Each of the two is a sum of positive terms, with a relative error of a rounding per term and some for each
        # exponential and logarithm. So where they are tiny there is hardly an error: nothing cancels.
        allowed = (len(row) + 8) * EPS * float(of_powers + of_all)
        assert found == pytest.approx(float(of_powers - of_all), rel=0, abs=allowed)
    alone = marginals(logits[3:4], [3], power[3:4]).log_moment
    assert torch.equal(alone, stats.log_moment[3:4])  # pyright: ignore


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.5}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.7}])
def test_a_draw_has_the_stated_probabilities(settings):
    """200,000 draws against `draw_log_prob`; a correct draw fails one seed in 10⁶."""
    logits = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
    uniform = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    tokens = draw(logits.expand(200_000, -1), uniform, **settings)
    p = draw_log_prob(logits, **settings)[0].exp()
    assert float(p.sum()) == pytest.approx(1)
    counts = torch.bincount(tokens, minlength=6)
    assert not bool((counts[p == 0] > 0).any())
    if int((p > 0).sum()) > 1:
        assert pearson(counts, p) > 1e-6


def test_a_tiny_entropy_is_not_rounded_to_zero():
    logits = torch.tensor([[0.0, -17.0, -18.0]])  # float32: logsumexp - E[logit] gives exactly 0 here
    naive = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
    assert float(marginals(logits).entropy) == pytest.approx(reference([0.0, -17.0, -18.0])[0], rel=1e-5)
    assert abs(float(naive) / float(marginals(logits).entropy) - 1) > 0.01


def test_half_precision_is_computed_in_float32_and_float64_stays():
    logits = torch.randn(4, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        stats = marginals(logits.to(dtype))
        assert stats.entropy.dtype == expected
        exact = marginals(logits.to(dtype).double())
        torch.testing.assert_close(stats.entropy.double(), exact.entropy, rtol=1e-5, atol=0)


def test_rows_in_chunks_equal_rows_at_once(monkeypatch):
    logits = torch.randn(50, 37, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    power = torch.linspace(1, 3, 50, dtype=torch.float64)
    whole, tokens = marginals(logits, power=power), draw(logits, u)
    monkeypatch.setattr("unmask.draws.categorical._CHUNK", 100)
    again = vars(marginals(logits, power=power))
    assert {name for name, values in vars(whole).items() if values is None} == {"tops"}  # of the compiled kernels
    for name, values in vars(whole).items():
        assert values is again[name] is None or torch.equal(values, again[name])
    assert torch.equal(tokens, draw(logits, u))


@pytest.mark.parametrize(("value", "reason"), [(math.nan, "NaN"), (math.inf, r"\+inf"), (-math.inf, "no mass")])
def test_a_row_that_is_no_distribution_is_an_error_that_names_it(value, reason):
    logits = torch.zeros(5, 4)
    logits[3] = value
    with pytest.raises(LogitsError, match=f"row 3.*{reason}") as caught:
        marginals(logits)
    assert caught.value.row == 3
    logits[3, 1:] = 0.0
    if value != -math.inf:
        with pytest.raises(LogitsError, match=reason):
            marginals(logits)
    else:
        assert bool(marginals(logits).entropy.isfinite().all())


def test_shapes_and_dtypes_are_checked():
    for bad in (torch.zeros(3), torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 0)):
        with pytest.raises(ValueError, match="rows, vocab"):
            marginals(bad)
    assert marginals(torch.zeros(0, 3)).entropy.shape == (0,)
    assert draw(torch.zeros(0, 3), torch.zeros(0)).shape == (0,)


def test_forbidden_tokens_are_renormalised_away():
    logits = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    stats = marginals(logits, [2])
    assert float(logits[0, 2]) == 3.0  # the denoiser's tensor is left as it is
    logits = forbid(logits, [2])
    torch.testing.assert_close(vars(stats), vars(marginals(logits)))
    assert float(stats.doubt) == pytest.approx(1 / (1 + math.e))
    assert float(log_prob(logits, stats.log_norm, torch.tensor([1]))) == pytest.approx(math.log(math.e / (1 + math.e)))
    assert int(draw(logits, torch.tensor([ULP1]))) == 1


def test_inversion_equals_the_exact_cdf_on_a_grid_of_uniforms():
    weights = [0.0, 3.0, 1e-7, 0.0, 0.5, 1e-300, 2.0, 0.0]
    logits = torch.tensor([weights], dtype=torch.float64).log()
    total = math.fsum(weights)
    edges = [math.fsum(weights[: i + 1]) / total for i in range(len(weights))]
    grid = [0.0, 2.0**-53, 0.25, 0.5, ULP1, *(i / 1000 for i in range(1000))]
    grid += [min(ULP1, max(0.0, e + delta)) for e in edges for delta in (-1e-12, 1e-12)]
    tokens = draw(logits.expand(len(grid), -1), torch.tensor(grid, dtype=torch.float64)).tolist()
    for u, token in zip(grid, tokens, strict=True):
        assert weights[token] > 0
        first = next(i for i, edge in enumerate(edges) if edge > u) if u < edges[-1] else 6
        assert token == first or abs(edges[min(token, first)] - u) < len(weights) * EPS
    assert tokens[0] == 1  # u = 0 takes the first token with mass, not token 0
    assert tokens[4] == 6  # the largest u takes the last token with mass


def test_temperature_zero_takes_the_first_maximum_and_others_divide_the_logits():
    logits = torch.tensor([[0.0, 2.0, 2.0]]).expand(2, -1)
    u = torch.tensor([0.9, 0.9], dtype=torch.float64)
    assert draw(logits, u, temperature=torch.tensor([0.0, 1.0])).tolist() == [1, 2]
    p = torch.tensor([[0.1, 0.2, 0.7]], dtype=torch.float64)
    u = torch.linspace(0, ULP1, 1001, dtype=torch.float64)
    hot = torch.bincount(draw(p.log().expand(1001, -1), u, temperature=2.0), minlength=3) / 1001
    torch.testing.assert_close(hot.double(), (p.sqrt() / p.sqrt().sum())[0], atol=2e-3, rtol=0)


def test_top_k_and_top_p_keep_what_they_say():
    z = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log()

    def kept(top_k: int | None = None, top_p: float | None = None) -> list[bool]:
        return (truncate(z, top_k, top_p) > -math.inf).tolist()[0]

    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_k=9) == [True] * 4
    assert kept(top_p=0.5) == [True, False, False, False]
    assert kept(top_p=0.6) == [True, True, False, False]
    assert kept(top_p=1e-9) == [True, False, False, False]
    assert kept(top_k=2, top_p=0.7) == [True, True, False, False]  # 0.625 of the two is not yet 0.7
    assert kept(top_p=1.0) == [True] * 4
    flat = truncate(torch.zeros(1, 10, dtype=torch.float64), None, 0.8)
    assert int((flat > -math.inf).sum()) == 8  # 0.8 is reached, although eight rounded tenths stop short of it


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_draw_settings_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        draw(torch.zeros(1, 3), torch.zeros(1), **bad)


def test_a_tiny_temperature_is_the_argmax_and_no_overflow():
    logits = torch.tensor([[1.0, 3.0, 2.0, -torch.inf]]).expand(3, -1)
    u = torch.tensor([0.0, 0.5, ULP1], dtype=torch.float64)
    for tau in (1e-308, 1e-3):
        assert draw(logits, u, temperature=tau).tolist() == [1, 1, 1]


def test_a_row_has_the_same_bits_alone_transposed_and_beside_others():
    generator = torch.Generator().manual_seed(0)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)  # with one, a long single row is not split between threads
        for vocab in (3, 37, 70_000):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                logits = torch.randn(5, vocab, generator=generator, dtype=torch.float64).mul(3).to(dtype)
                power = torch.full((5,), 1.5, dtype=torch.float64)
                together = vars(marginals(logits, power=power))
                turned = vars(marginals(logits.T.contiguous().T, power=power))
                for name, values in together.items():
                    if values is None:  # tops, which only the compiled kernels leave
                        assert vocab < 256 or dtype == torch.float64
                        continue
                    alone = torch.cat([vars(marginals(row.unsqueeze(0), power=power[:1]))[name] for row in logits])
                    assert torch.equal(alone, values)
                    assert torch.equal(turned[name], values)
    finally:
        torch.set_num_threads(threads)


def test_the_most_probable_tokens_come_best_first_and_ties_by_id():
    logits = torch.tensor([[1.0, 3.0, 1.0, 3.0, -math.inf], [9.0, 0.0, 0.0, 0.0, 0.0]]).bfloat16()
    tokens, log_p = most_probable(logits, marginals(logits, [0]).log_norm, 3, [0])
    assert tokens.tolist() == [[1, 3, 2], [1, 2, 3]]
    both = 2 + math.exp(-2)
    assert log_p[0].exp().tolist() == pytest.approx([1 / both, 1 / both, math.exp(-2) / both])
    assert log_p[1].exp().tolist() == pytest.approx([0.25] * 3)
    tokens, log_p = most_probable(logits, marginals(logits, [0]).log_norm, 10, [0])
    assert tokens.shape == log_p.shape == (2, 4)
    assert float(log_p[0, -1]) == -math.inf


@pytest.mark.parametrize("vocab", [5, RACE_FROM + 40])
def test_what_is_known_of_a_temperature_saves_work_and_changes_no_token(vocab: int):
    """A temperature that all sequences share is known on the host: 0 takes the argmax of the statistics, 1 divides by
    nothing."""
    z = torch.randn(6, vocab, generator=torch.Generator().manual_seed(3)).round(decimals=1)  # with ties
    u = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    settings = Settings.of(vocab, vocab - 1, top_k=None)
    rows, stats = torch.tensor([4, 0, 5, 2, 2, 1]), marginals(z, settings.forbidden)
    for temperature in (0.0, 0.7, 1.0):
        known = Draw.of(torch.full((6,), temperature, dtype=torch.float64), [settings])
        assert known.common == temperature
        unknown = replace(known, common=None)
        given = (z, rows, torch.arange(6), u)
        assert torch.equal(known.tokens(*given, stats=stats), unknown.tokens(*given))
    mixed = Draw.of(torch.tensor([0.0, 1.0]).double(), [settings])
    assert mixed.common is None
    assert Draw.join([known, known]).common == 1.0
    assert Draw.join([known, mixed]).common is None
