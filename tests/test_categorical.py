from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.categorical import draw, forbid, log_prob, marginals, truncate
from unmask.errors import LogitsError
from unmask.oracles import pearson

ULP1 = 1 - 2.0**-53  # the largest uniform


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
    whole, tokens = marginals(logits), draw(logits, u)
    monkeypatch.setattr("unmask.categorical._CHUNK", 100)
    for a, b in zip(vars(whole).values(), vars(marginals(logits)).values(), strict=True):
        assert torch.equal(a, b)
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
    forbid(logits, [2])
    stats = marginals(logits)
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
        assert token == first or abs(edges[min(token, first)] - u) < 1e-15
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


def gumbel_max(logits: torch.Tensor, draws: int, generator: torch.Generator) -> torch.Tensor:
    """The published float32 draw: argmax of logits + g, g = -log(-log u), u in multiples of 2^-24."""
    tokens = []
    for _ in range(0, draws, 200):
        u = torch.rand(200, len(logits), generator=generator)
        tokens.append((logits - u.log_().neg_().log_()).argmax(-1))
    return torch.cat(tokens)


def test_rare_classes_are_drawn_as_often_as_they_should_where_float32_gumbel_fails():
    """10⁴ classes of 3e-8 beside one large one, 200,000 draws, rare against large; threshold 1e-6.

    A correct draw fails one seed in 10⁶. Gumbels truncated at 24 ln 2 leave a class of probability π the share
    e^{-ε/π} of its mass (ε = 2⁻²⁴), here 0.14: 60 rare draws are expected and 8 come, 6.7 standard deviations away.
    """
    rare, n = 10_000, 200_000
    logits = torch.cat([torch.tensor([1 - rare * 3e-8]), torch.full((rare,), 3e-8)]).log()
    p = logits.double().softmax(-1)
    pair = torch.stack([p[0], p[1:].sum()])
    decades = torch.cat([p[:1], p[1:].reshape(10, -1).sum(-1)])

    def counts(tokens: torch.Tensor) -> torch.Tensor:
        return torch.bincount((tokens + 999) // 1000, minlength=11)

    generator = torch.Generator().manual_seed(0)
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    ours = counts(torch.cat([draw(logits.expand(2000, -1), part) for part in u.split(2000)]))
    assert pearson(ours, decades) > 1e-6
    assert pearson(torch.stack([ours[0], ours[1:].sum()]), pair) > 1e-6
    control = counts(gumbel_max(logits, n, generator))
    assert pearson(torch.stack([control[0], control[1:].sum()]), pair) < 1e-6
