# type: ignore - compiled code: what its names stand for, only its compiler knows
"""Statistics and draws of rows of logits on a GPU, in Triton: each row is read once, whatever is asked of it.

A row is cut into pieces of `_PIECE` logits, one program each, so that few rows fill a GPU as well as many, and the bits
of a row depend on nothing but the row. A piece leaves `max`, `Σe` and `Σe·(-d)` relative to its own maximum. A second
kernel of one program per row adds them up, and reads the piece with the row's maximum once more, without the top token:
so `s = Σ_{k≠argmax} e^{d_k}` is a sum of small numbers, never 1 minus something (see `draws.categorical.marginals`).

Draws are races in float64: every piece makes the clocks of all its tokens, and leaves its best.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..race import FIRST, GOLDEN, GROUP, INSIDE, SECOND, rates

_PIECE = 4096
_RACE = 1024
"""The piece of a draw, which works on float64 and keeps more of it at a time."""
_WARPS = 4


@triton.jit
def _load(logits, row, piece, forbidden, flags, stride, vocab, PIECE: tl.constexpr, MASKED: tl.constexpr):
    """One piece of a row as float32, `-inf` past the end and at forbidden tokens; and the token ids."""
    token = piece * PIECE + tl.arange(0, PIECE)
    x = tl.load(logits + row.to(tl.int64) * stride + token, mask=token < vocab, other=-float("inf")).to(tl.float32)
    if MASKED:  # noqa: SIM102 - known when the kernel is compiled, the next one is not
        if tl.load(flags + piece) != 0:
            x = tl.where(tl.load(forbidden + token, mask=token < vocab, other=0) != 0, -float("inf"), x)
    return x, token


@triton.jit
def _finite(x):
    """`x`, or 0 if it is infinite: what is subtracted from logits without making NaN."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def _sums(x, d, beta, POWER: tl.constexpr):
    """`Σe^d`, `Σe^d·(-d)` and, with a power, `Σe^(βd)`."""
    e = tl.exp(d)
    # exp underflows to 0 far above this floor, so the product is 0 where d is -inf, instead of NaN.
    t = -tl.sum(e * tl.maximum(d, -1e4), 0)
    moment = t
    if POWER:
        moment = tl.sum(tl.exp(beta * d), 0)
    return tl.sum(e, 0), t, moment


@triton.jit
def _piece_kernel(
    logits, forbidden, flags, power, parts, stride, vocab, pieces, count,
    PIECE: tl.constexpr, MASKED: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row, piece = program // pieces, program % pieces
    x, _ = _load(logits, row, piece, forbidden, flags, stride, vocab, PIECE, MASKED)
    top = tl.max(x, 0)
    beta = 1.0
    if POWER:
        beta = tl.load(power + row)
    s, t, moment = _sums(x, x - _finite(top), beta, POWER)
    tl.store(parts + program, top)
    tl.store(parts + count + program, s)
    tl.store(parts + 2 * count + program, t)
    if POWER:
        tl.store(parts + 3 * count + program, moment)


@triton.jit
def _log1p(s):
    """`log(1 + s)` of a float64 `s >= 0`, to full relative precision."""
    z = 1.0 + s
    return tl.where(z == 1.0, s, tl.log(z) * (s / tl.where(z == 1.0, 1.0, z - 1.0)))


@triton.jit
def _row_kernel(
    logits, forbidden, flags, power, parts, out, tokens, stride, vocab, pieces, count, rows,
    PIECE: tl.constexpr, PIECES: tl.constexpr, MASKED: tl.constexpr, POWER: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    piece = tl.arange(0, PIECES)
    held = piece < pieces
    at = parts + row * pieces + piece
    tops = tl.load(at, mask=held, other=-float("inf"))
    top = tl.max(tops, 0)
    best = tl.minimum(tl.min(tl.where(tops == top, piece, PIECES), 0), pieces - 1)
    x, token = _load(logits, row, best, forbidden, flags, stride, vocab, PIECE, MASKED)
    winner = tl.min(tl.where(x == top, token, vocab - 1), 0)
    x = tl.where(token == winner, -float("inf"), x)
    # The other pieces, moved from their own maximum to the row's.
    other = held & (piece != best)
    second = tl.maximum(tl.max(x, 0), tl.max(tl.where(other, tops, -float("inf")), 0))
    shift = tl.maximum(tops.to(tl.float64) - _finite(top), -1e4)
    weight = tl.where(other, tl.exp(shift), 0.0)
    sums = tl.load(at + count, mask=held, other=0.0).to(tl.float64)
    moments = tl.load(at + 2 * count, mask=held, other=0.0).to(tl.float64)
    beta = 1.0
    if POWER:
        beta = tl.load(power + row)
    s, t, moment = _sums(x, x - _finite(top), beta, POWER)
    s = s.to(tl.float64) + tl.sum(weight * sums, 0)
    t = t.to(tl.float64) + tl.sum(weight * (moments - shift * sums), 0)
    z, log_z = 1.0 + s, _log1p(s)
    # Any NaN in the row made its piece's sum NaN, whatever the maximum did with it.
    anything = tl.sum(sums, 0)
    tl.store(out + row, tl.where(anything == anything, top, float("nan")))
    tl.store(out + rows + row, (log_z + t / z).to(tl.float32))
    tl.store(out + 2 * rows + row, (s / z).to(tl.float32))
    tl.store(out + 3 * rows + row, ((s + tl.exp((second - _finite(top)).to(tl.float64))) / z).to(tl.float32))
    tl.store(out + 4 * rows + row, (top + log_z).to(tl.float32))
    if POWER:
        powered = tl.load(at + 3 * count, mask=held, other=0.0).to(tl.float64)
        raised = moment.to(tl.float64) + tl.sum(tl.where(other, tl.exp(beta * shift), 0.0) * powered, 0)
        tl.store(out + 5 * rows + row, (_log1p(raised) - beta * log_z).to(tl.float32))
    tl.store(tokens + row, winner.to(tl.int64))


_FIRST, _SECOND, _GOLDEN = tl.constexpr(FIRST), tl.constexpr(SECOND), tl.constexpr(GOLDEN)
_INSIDE, _GROUP = tl.constexpr(INSIDE), tl.constexpr(GROUP)


@triton.jit
def _mix(word):
    """Scrambles unsigned 64 bits; see `draws.race`."""
    word = (word ^ (word >> 30)) * _FIRST
    word = (word ^ (word >> 27)) * _SECOND
    return word ^ (word >> 31)


@triton.jit
def _exponential(key, index):
    """The standard exponential of each index under a key, and the second word that it is made of; see `draws.race`."""
    counter = key + (2 * index.to(tl.uint64) + 1) * _GOLDEN
    word, more = _mix(counter), _mix(counter + _GOLDEN)
    tail = word.to(tl.float64) * 5.421010862427522e-20 + ((more >> 6).to(tl.float64) + 0.5) * 1.880790961315660e-37
    u = tl.where((word >> 32) == 0, tail, (word.to(tl.float64) + 0.5) * 5.421010862427522e-20)
    return -_log1p(-tl.minimum(u, 1.0 - 1.1102230246251565e-16)), more


@triton.jit
def _race_kernel(
    logits, forbidden, flags, rows, temperature, scale, uniform, scores, tokens, stride, vocab, pieces,
    PIECE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    drawn, piece = program // pieces, program % pieces
    x, token = _load(logits, tl.load(rows + drawn), piece, forbidden, flags, stride, vocab, PIECE, MASKED)
    key = _mix((tl.load(uniform + drawn) * 9007199254740992.0).to(tl.int64).to(tl.uint64) + _GOLDEN)
    group = piece * (PIECE // _GROUP) + tl.arange(0, PIECE // _GROUP)
    first, more = _exponential(key, group)
    first, place = first / _GROUP, (more & (_GROUP - 1)).to(tl.int32)
    number = tl.arange(0, _GROUP)
    later, _ = _exponential(_mix(key ^ _INSIDE), group[:, None] * _GROUP + number[None, :])
    clock = first[:, None] + tl.where(number[None, :] == place[:, None], 0.0, later)
    z = x.to(tl.float64) * tl.load(scale + drawn)
    z -= tl.where(tl.load(temperature + drawn) == 0, 0.0, tl.log(tl.reshape(clock, (PIECE,))))
    best = tl.max(z, 0)
    tl.store(scores + program, best)
    tl.store(tokens + program, tl.min(tl.where(z == best, token, vocab - 1), 0).to(tl.int64))


@lru_cache(maxsize=16)
def _banned(forbidden: tuple[int, ...], vocab: int, device: torch.device, piece: int) -> tuple[Tensor, Tensor]:
    """One byte per token, and one per piece that holds a forbidden token."""
    byte = torch.zeros(triton.cdiv(vocab, piece) * piece, dtype=torch.int8)
    byte[list(forbidden)] = 1
    return byte.to(device), byte.view(-1, piece).amax(-1).to(device)


def statistics(
    logits: Tensor, forbidden: Sequence[int], power: Tensor | None, *, piece: int = _PIECE, warps: int = _WARPS
) -> tuple[tuple[Tensor, ...], None]:
    """The columns `draws.categorical.marginals` is made of, in float32: top, token, ...; draws need nothing else."""
    rows, vocab = logits.shape
    pieces = triton.cdiv(vocab, piece)
    powered = power is not None
    width = triton.next_power_of_2(pieces)
    parts = torch.empty((4 if powered else 3, rows * pieces), dtype=torch.float32, device=logits.device)
    out = torch.empty((6 if powered else 5, rows), dtype=torch.float32, device=logits.device)
    token = torch.empty(rows, dtype=torch.int64, device=logits.device)
    banned, flags = _banned(tuple(forbidden), vocab, logits.device, piece)
    beta = power.float() if power is not None else parts
    shape, masked = (logits.stride(0), vocab, pieces, rows * pieces), bool(forbidden)
    if not rows:
        return (out[0], token, *out[1:].unbind()), None
    with torch.cuda.device_of(logits):
        _piece_kernel[(rows * pieces,)](
            logits, banned, flags, beta, parts, *shape, PIECE=piece, MASKED=masked, POWER=powered, num_warps=warps
        )  # fmt: skip
        _row_kernel[(rows,)](
            logits, banned, flags, beta, parts, out, token, *shape, rows,
            PIECE=piece, PIECES=width, MASKED=masked, POWER=powered, num_warps=warps,
        )  # fmt: skip
    top, *columns = out.unbind()
    return (top, token, *columns), None


def draw(
    logits: Tensor,
    rows: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    forbidden: Sequence[int],
    tops: Tensor | None = None,
) -> Tensor:
    """Draws one token for each of some rows by a race, given float64 uniforms and temperatures; see `draws.race`."""
    vocab = logits.shape[1]
    pieces = triton.cdiv(vocab, _RACE)
    scores = torch.empty((len(rows), pieces), dtype=torch.float64, device=logits.device)
    tokens = torch.empty((len(rows), pieces), dtype=torch.int64, device=logits.device)
    banned, flags = _banned(tuple(forbidden), vocab, logits.device, _RACE)
    if not len(rows):
        return tokens[:, 0]
    scale = torch.where(temperature == 0, 1.0, rates(temperature))
    with torch.cuda.device_of(logits):
        _race_kernel[(len(rows) * pieces,)](
            logits, banned, flags, rows, temperature, scale, uniform, scores, tokens, logits.stride(0), vocab, pieces,
            PIECE=_RACE, MASKED=bool(forbidden), num_warps=_WARPS,
        )  # fmt: skip
    return torch.where(scores == scores.amax(-1, keepdim=True), tokens, vocab - 1).amin(-1)
