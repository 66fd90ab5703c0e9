"""The fused kernels against the plain path, which is tested against exact summation."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from unmask.draws import categorical, kernels
from unmask.draws.categorical import Marginals, divergence, draw, draw_rows, forbid, marginals
from unmask.draws.kept import compared
from unmask.errors import LogitsError

NAMES = ("entropy", "doubt", "closeness", "log_norm", "log_moment")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = 1e-6  # relative, of statistics; float32 alone gives 1e-7 and a row has thousands of terms


def hard_rows(dtype: torch.dtype, vocab: int = 5001) -> Tensor:
    """Rows that go wrong easily; the vocabulary is no multiple of anything."""
    z = torch.randn(11, vocab, generator=torch.Generator().manual_seed(0)) * 4
    z[0, 77] = 40.0  # nearly determined
    z[1] = -math.inf
    z[1, 2500] = z[1, 4100] = 1.0  # a tie between far apart tokens
    z[2] = 0.0
    z[3, 3:] = -math.inf
    z[4] += 1000.0
    z[5] = -17.0
    z[5, vocab - 1] = 0.0  # the top token is the last
    z[6] = -math.inf
    z[6, 9] = -3.0  # determined: entropy exactly 0
    z[7] = -z[7].abs() - 1.0  # nothing is positive
    z[8, 2047] = z[8, 2048] = 30.0  # a tie over the edge of a tile
    z[9] *= 20.0
    z[10] = -0.0
    z[10, 5] = 0.0  # equal, whatever the sign
    return z.to(dtype)


def plain(z: Tensor, forbidden: tuple[int, ...] = (), power: Tensor | None = None) -> Marginals:
    top, token, entropy, doubt, closeness, log_norm, *moment = categorical._in_chunks(z, forbidden, power)
    return Marginals(entropy, doubt, closeness, token, log_norm, moment[0] if moment else None, top)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_are_those_of_float64(dtype):
    pytest.importorskip("numba")
    z, power = hard_rows(dtype), torch.linspace(1, 4, 11)
    assert kernels.row_kernel(z) is not None
    for forbidden in ((), (0, 2047, 4100, 5000), (77,)):
        ours, exact = marginals(z, forbidden, power), plain(z.double(), forbidden, power.double())
        for name in NAMES:
            torch.testing.assert_close(getattr(ours, name).double(), getattr(exact, name), rtol=TOLERANCE, atol=1e-15)
        assert torch.equal(ours.token, exact.token)
        assert ours.entropy[6].item() == ours.doubt[6].item() == ours.closeness[6].item() == 0.0
        without = marginals(z, forbidden)
        assert all(torch.equal(getattr(without, name), getattr(ours, name)) for name in NAMES[:-1])


def test_tiny_entropies_are_at_least_as_good_as_on_the_plain_path():
    rows = torch.full((40, 1000), -math.inf)
    rows[:, 3] = 0.0
    rows[:, 500] = -torch.arange(40) * 2.5 - 1.0  # down to entropies of 1e-41 nats
    exact = plain(rows.double()).entropy
    ours = marginals(rows).entropy.double()
    torch.testing.assert_close(ours[:33], exact[:33], rtol=5e-7, atol=0)
    torch.testing.assert_close(ours, exact, rtol=1e-2, atol=1e-44)  # denormal from there on
    assert bool((ours > 0).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_draws_are_those_of_float64(dtype):
    pytest.importorskip("numba")
    z = hard_rows(dtype)
    tau = torch.tensor([1.0, 0.5, 2.0, 1e-3, 0.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1e-320], dtype=torch.float64)
    forbidden = (1, 4999)
    rows = torch.tensor([10, 3, 3, 0, 4, 5, 6, 7, 8, 9, 1, 2])
    allowed = forbid(z, forbidden).double()[rows]
    generator = torch.Generator().manual_seed(1)
    for uniform in (torch.zeros(12).double(), *torch.rand(50, 12, dtype=torch.float64, generator=generator)):
        ours = draw_rows(z, rows, uniform, tau[rows], forbidden=forbidden)
        assert ours.tolist() == draw(allowed, uniform, temperature=tau[rows]).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_statistics_save_draws_their_work_and_change_none(dtype):
    """Peaked, flat and masked rows, at all temperatures; and what draws never look at may be anything."""
    pytest.importorskip("numba")
    z, forbidden = hard_rows(dtype), (1, 2047, 4999)
    stats, exact = marginals(z, forbidden), forbid(z, forbidden).double()
    generator = torch.Generator().manual_seed(2)
    rows = torch.arange(len(z))
    for turn in range(300):
        uniform = torch.rand(len(z), dtype=torch.float64, generator=generator)
        tau = torch.ones(len(z)) if turn % 2 else torch.rand(len(z), generator=generator).mul(3).sub(0.3).clamp(min=0)
        ours = draw_rows(z, rows, uniform, tau, forbidden=forbidden, stats=stats)
        assert torch.equal(ours, draw_rows(z, rows, uniform, tau, forbidden=forbidden)), turn
        assert torch.equal(ours, draw(exact, uniform, temperature=tau)), turn
    # Of a row with one high token, a draw reads the tile of that one and none of the others: those may be anything.
    z = torch.randn(64, 20_000, generator=generator).to(dtype)
    z[:, 9000] = 40.0
    stats, uniform = marginals(z), torch.rand(64, dtype=torch.float64, generator=generator)
    elsewhere = torch.arange(20_000) // 2048 != 9000 // 2048
    assert draw_rows(z.masked_fill(elsewhere, 100.0), None, uniform, stats=stats).tolist() == [9000] * 64


def test_a_row_has_the_same_bits_whatever_is_beside_it(monkeypatch):
    pytest.importorskip("numba")
    z = torch.randn(40, 20_000, generator=torch.Generator().manual_seed(0)) * 4
    u = torch.rand(40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together, tokens = marginals(z, (5,)), draw_rows(z, None, u, forbidden=(5,))
    finally:
        torch.set_num_threads(threads)
    for row in (0, 17, 39):
        alone = marginals(z[row : row + 1].clone(), (5,))
        for name in (*NAMES[:-1], "token"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])
    assert torch.equal(draw_rows(z, torch.tensor([39, 0]), u[[39, 0]], forbidden=(5,)), tokens[[39, 0]])


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [slice(None), 0, 4000])
def test_rows_that_are_no_distribution_are_named_as_on_the_plain_path(value, place):
    z = torch.randn(6, 5001, generator=torch.Generator().manual_seed(0))
    z[4, place] = value
    z[2, 7] = math.inf
    z[2, 9] = -math.nan  # NaN is worse than infinity
    for rows in (z, z[3:]):
        messages = []
        for look in (marginals, lambda rows: categorical.check_marginals(plain(rows))):
            try:
                look(rows)
                messages.append("")
            except LogitsError as error:
                messages.append(f"{error.row} {error.reason}")
        assert messages[0] == messages[1]
        if rows is z:
            assert messages[0] == "2 contain NaN"


def test_forbidden_infinities_do_not_matter_and_a_row_without_tokens_does():
    z = torch.zeros(2, 300)
    z[1, 7] = math.inf
    z[0, 250] = math.nan
    assert bool(marginals(z, (7, 250)).entropy.isfinite().all())
    z[1] = -math.inf
    z[1, 3] = 0.0
    with pytest.raises(LogitsError, match="row 1 have no mass"):
        marginals(z, (3, 7, 250))


def test_narrow_float64_and_strided_logits_work_too():
    assert kernels.row_kernel(torch.zeros(2, 100)) is None
    assert kernels.row_kernel(torch.zeros(2, 5000, dtype=torch.float64)) is None
    z = torch.randn(8, 5001, generator=torch.Generator().manual_seed(0))
    strided = torch.stack([z, z + 1], -1)[..., 0]
    assert not strided.is_contiguous()
    assert torch.equal(marginals(strided).entropy, marginals(z).entropy)
    assert torch.equal(marginals(z[::2]).entropy, marginals(z).entropy[::2])
    assert marginals(z[:0]).entropy.shape == draw_rows(z, torch.zeros(0).long(), torch.zeros(0).double()).shape == (0,)


def truth(now: Tensor, then: Tensor, forbidden: tuple[int, ...]) -> Tensor:
    """`KL(now ‖ then)` of logits in float64, summed in another way than it is computed."""
    z, w = forbid(now.double(), forbidden), forbid(then.double(), forbidden)
    top = z.argmax(-1, keepdim=True)
    d, e = z - z.gather(1, top), w - w.gather(1, top)
    terms = torch.where(d.exp() > 0, d.exp() * (d - e), 0.0).scatter(1, top, 0.0)
    rest, other = (x.scatter(1, top, -math.inf).exp().sum(-1) for x in (d, e))
    return terms.sum(-1) / (1 + rest) - rest.log1p() + other.log1p()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_are_compared_with_earlier_ones_as_in_float64(dtype):
    """Against all other hard rows, and rows that moved a little; the statistics keep all their bits."""
    pytest.importorskip("numba")
    z, noise = hard_rows(dtype), torch.randn(11, 5001, generator=torch.Generator().manual_seed(3))
    for forbidden in ((), (0, 2047, 4100, 5000), (77,)):
        none, kept, never = compared(z, None, torch.full((11,), -1), forbidden)
        assert never.isinf().all()
        for scale in (0.0, 1e-3, 0.1, 2.0):
            moved = (z.double() + scale * noise).to(dtype)
            stats, _, drift = compared(moved, kept, torch.arange(11), forbidden)
            torch.testing.assert_close(drift, truth(moved, z, forbidden).clamp(min=0), rtol=2e-6, atol=3e-7)
            assert scale or drift.tolist() == [0.0] * 11
            exact = marginals(moved, forbidden)
            assert all(
                torch.equal(getattr(stats, name), getattr(exact, name)) for name in (*NAMES[:-1], "token", "tops")
            )
        assert all(torch.equal(getattr(none, name), getattr(marginals(z, forbidden), name)) for name in NAMES[:-1])
        row, other = (grid.flatten() for grid in torch.meshgrid(torch.arange(11), torch.arange(11), indexing="ij"))
        _, _, drift = compared(z[row], kept, other, forbidden)
        exact = divergence(z[row], z[other], forbidden)
        assert torch.equal(drift.isinf(), exact.isinf())
        torch.testing.assert_close(drift, exact, rtol=1e-6, atol=1e-7)


def test_a_small_divergence_of_a_nearly_determined_row_is_not_lost():
    """Of logits of 40 nats float32 alone would leave 1e-6; here the error is in proportion to what moved."""
    z = torch.full((1, 1000), -math.inf)
    z[0, 3], z[0, 500] = 40.0, 20.0
    moved = z.clone()
    moved[0, 500] = 20.5
    _, kept, _ = compared(z, None, torch.tensor([-1]))
    _, _, drift = compared(moved, kept, torch.tensor([0]))
    torch.testing.assert_close(drift, truth(moved, z, ()), rtol=1e-5, atol=0)
    assert 1e-11 < float(drift) < 1e-9


def test_rows_that_are_no_distribution_have_no_divergence():
    z = torch.randn(4, 5001, generator=torch.Generator().manual_seed(0))
    _, kept, _ = compared(z, None, torch.full((4,), -1))
    z = z.clone()
    z[0], z[1, 7], z[2, 9] = -math.inf, math.nan, math.inf
    for rows in (z, z.double()):
        _, _, drift = compared(rows, kept, torch.arange(4))
        assert drift.isnan().tolist() == [True, True, True, False]


TRITON = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from tests.test_kernels import DTYPES, NAMES, hard_rows, plain
from unmask.draws.categorical import draw, forbid
from unmask.draws.kernels import triton_rows
for dtype in DTYPES:
    z, power = hard_rows(dtype, 4999), torch.linspace(1, 4, 11)
    for forbidden in ((), (0, 4100)):
        (top, token, *columns), _ = triton_rows.statistics(z, forbidden, power)
        exact = plain(z.double(), forbidden, power.double())
        for name, column in zip(NAMES, columns, strict=True):
            torch.testing.assert_close(column.double(), getattr(exact, name), rtol=1e-6, atol=1e-15)
        assert torch.equal(token, exact.token)
        assert len(triton_rows.statistics(z, forbidden, None)[0]) == 6
    rows = torch.tensor([8, 0, 0, 9, 2])
    u = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tau = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    expected = draw(forbid(z, (1,)).double()[rows], u, temperature=tau)
    assert torch.equal(triton_rows.draw(z, rows, u, tau, (1,)), expected)
z = torch.zeros(4, 4999)
z[0, 4], z[1, 4998], z[2], z[3, 0] = float("nan"), torch.inf, -torch.inf, -float("nan")
top = triton_rows.statistics(z, (1,), None)[0][0]
assert top.isnan().tolist() == [True, False, False, True] and top[1] == torch.inf and top[2] == -torch.inf
"""


def test_the_gpu_kernels_under_their_interpreter():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", TRITON], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
