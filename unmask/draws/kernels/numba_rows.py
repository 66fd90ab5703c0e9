# type: ignore - compiled code: what its names stand for, only its compiler knows
"""Statistics and draws of rows of logits on a CPU: one call, compiled by Numba on first use and kept in its cache.

A row stays in cache: one pass finds its maximum, another adds up `Σe` and `Σe·(-d)` in float32 over tiles and in
float64 over rows, without the top token (see `draws.categorical.marginals`). The exponential is a polynomial that the
compiler turns into vector instructions. Half precision is decoded tile by tile, so nothing is copied.

Threads take one row after the other from a common counter: one that is kept from running delays nobody, and no row
depends on who does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any, no_type_check

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload
from torch import Tensor

from ..race import FIRST, GOLDEN, GROUP, INSIDE, SECOND

_TILE = 2048
_SMALL = 1 << 17
"""Logits that one thread does faster than two can share."""

_MINUS_INFINITY = np.float32(-np.inf)
_LOWEST = np.int32(-0x800000)
"""The bits of `-inf`."""
_LIFT = 40
"""Exponentials are made `2^40` times too large in float32, so that none that matters is denormal."""
_UNLIFT = 2.0**-_LIFT

_LANES = 64
"""Sums are made in so many parts, written out: the compiler has no choice, and bits are the same wherever it runs."""

_INSIDE = {"error_model": "numpy", "nogil": True, "cache": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@intrinsic
@no_type_check
def _as_float32(typingctx: Any, bits: Any) -> Any:
    """The float32 with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
@no_type_check
def _as_int32(typingctx: Any, value: Any) -> Any:
    """The bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
@no_type_check
def _fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """`a · b + c`, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), generate


@intrinsic
@no_type_check
def _claim(typingctx: Any, counter: Any) -> Any:
    """Adds 1 to the first number of an array, whoever else does at the same time, and returns what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@no_type_check
def _bits(stored: Any) -> Any:
    """The bits of a logit as a float32, from a float32 (as int32), a bfloat16 (int16) or a float16 (uint16)."""
    raise NotImplementedError


@overload(_bits, jit_options={"cache": True})
@no_type_check
def _bits_of(stored):
    if stored == types.int32:
        return lambda stored: stored
    if stored == types.int16:
        return lambda stored: types.int32(types.int32(stored) << types.int32(16))

    def half(stored):
        magnitude = types.int32((types.int32(stored) & types.int32(0x7FFF)) << types.int32(13))
        value = _as_int32(_as_float32(magnitude) * types.float32(2.0**112))
        if magnitude >= types.int32(0x7C00 << 13):  # infinity and NaN keep the largest exponent
            value = types.int32(magnitude | types.int32(0x7F800000))
        return types.int32(value | ((types.int32(stored) & types.int32(0x8000)) << types.int32(16)))

    return half


@no_type_check
def _signed(stored: Any) -> Any:
    """The stored logit as an integer with its sign: float16 comes without."""
    raise NotImplementedError


@overload(_signed, jit_options={"cache": True})
@no_type_check
def _signed_of(stored):
    if stored == types.uint16:
        return lambda stored: types.int16(stored)
    return lambda stored: stored


@njit(**_INSIDE)
@no_type_check
def _exp32(d):
    """`2^40 e^d` of a float32 `-116 <= d <= 0`, to about one unit in the last place; exactly 0 at -116, NaN stays NaN.

    The sum with the large number leaves `n + 167` in the lowest bits, `n` the next integer to `d / log 2`; moved to the
    exponent's place, with its bias of 127, that is `2^(n + 40)`, or 0 where `n = -167`.
    """
    magic = types.float32(12582912.0 + 167.0)
    shifted = _fma(d, types.float32(1.44269504088896341), magic)
    # log 2 in float32 is off by no more than 2e-9
    r = _fma(magic - shifted, types.float32(0.6931471805599453), d)
    p = _fma(types.float32(0.001384364441037178), r, types.float32(0.008374163880944252))
    p = _fma(p, r, types.float32(0.04166800156235695))
    p = _fma(p, r, types.float32(0.16666431725025177))
    p = _fma(p, r, types.float32(0.4999999403953552))
    p = _fma(p, r, types.float32(1.0))
    p = _fma(p, r, types.float32(1.0))
    return p * _as_float32(types.int32(_as_int32(shifted) << types.int32(23)))


@njit(**_INSIDE)
@no_type_check
def _from(forbidden, begin):
    """How many forbidden tokens (ascending ids) are below a token."""
    low, high = 0, len(forbidden)
    while low < high:
        middle = (low + high) // 2
        if forbidden[middle] < begin:
            low = middle + 1
        else:
            high = middle
    return low


@njit(**_INSIDE)
@no_type_check
def _touched(forbidden, begin, count):
    """Whether one of some tokens in a row is forbidden."""
    low = _from(forbidden, begin)
    return low < len(forbidden) and forbidden[low] < begin + count


@njit(**_INSIDE)
@no_type_check
def _whole(count):
    """A count, rounded up to a multiple of the lanes."""
    return (count + _LANES - 1) // _LANES * _LANES


@njit(**_INSIDE)
@no_type_check
def _patched(part, begin, forbidden, tile):
    """Decodes a part of a row, with forbidden tokens at `-inf`, and fills it up to a whole number of lanes with it."""
    for i in range(len(part)):
        tile[i] = _bits(part[i])
    low = _from(forbidden, begin)
    while low < len(forbidden) and forbidden[low] < begin + len(part):
        tile[forbidden[low] - begin] = _LOWEST
        low += 1
    for i in range(len(part), _whole(len(part))):
        tile[i] = _LOWEST


@njit(**_INSIDE)
@no_type_check
def _largest(part):
    """The largest number. Which one it is if there are NaN is not said; they are found in the sum.

    The bits of numbers without a sign are in the order of the numbers, those with one in the opposite order; and half
    as many bits are compared in half the time.
    """
    high = low = _signed(part[0])
    for i in range(len(part)):
        bits = _signed(part[i])
        high = bits if bits > high else high
        low = bits if bits < low else low
    return _as_float32(_bits(part.dtype.type(high if high >= 0 else low)))


@njit(**_INSIDE)
@no_type_check
def _tops(row, forbidden, tile, tops):
    """The largest logit, that of every tile of the row, and the first tile that holds it."""
    top, at = _MINUS_INFINITY, 0
    for number in range(len(tops)):
        begin = number * _TILE
        part = row[begin : begin + _TILE]
        if _touched(forbidden, begin, len(part)):
            _patched(part, begin, forbidden, tile)
            here = _largest(tile[: len(part)])
        else:
            here = _largest(part)
        tops[number] = here
        if here > top:
            top, at = here, number
    return top, at


@njit(**_INSIDE)
@no_type_check
def _index(tile, top):
    """The first place of a number, 0 if it is nowhere."""
    first = types.int32(len(tile))
    for i in range(len(tile)):
        place = types.int32(i) if _as_float32(tile[i]) == top else types.int32(len(tile))
        first = place if place < first else first
    return first if first < len(tile) else 0


@njit(**_INSIDE)
@no_type_check
def _sums(part, top, lanes, totals):
    """Adds `Σe^d` and `Σe^d·(-d)`, `2^40` times too large, to totals in as many parts as there are lanes, all full."""
    s, t = lanes[0], lanes[1]
    lanes[:] = types.float32(0.0)
    for begin in range(0, len(part), _LANES):
        some = part[begin : begin + _LANES]
        for j in range(_LANES):
            d = _as_float32(_bits(some[j])) - top
            d = types.float32(-116.0) if d < types.float32(-116.0) else d
            e = _exp32(d)
            s[j] += e
            t[j] = _fma(-e, d, t[j])
    for j in range(_LANES):
        totals[0, j] += types.float64(s[j])
        totals[1, j] += types.float64(t[j])


@njit(**_INSIDE)
@no_type_check
def _moment(part, top, beta, lanes, totals):
    """Adds `Σe^(βd)`, `2^40` times too large, to a total in parts. With `β = 1` it is the same as in `_sums`."""
    m = lanes[0]
    m[:] = types.float32(0.0)
    for i in range(len(part)):
        d = (_as_float32(_bits(part[i])) - top) * beta
        m[i % _LANES] += _exp32(types.float32(-116.0) if d < types.float32(-116.0) else d)
    for j in range(_LANES):
        totals[2, j] += types.float64(m[j])


@njit(**_INSIDE)
@no_type_check
def _any_nan(row, forbidden):
    """NaN if the row has one at a token that is not forbidden, else 0."""
    for token in range(len(row)):
        x = _as_float32(_bits(row[token]))
        if x != x and not _touched(forbidden, token, 1):
            return np.nan
    return 0.0


@njit(**_INSIDE)
@no_type_check
def _row_statistics(row, forbidden, beta, tile, lanes, totals, tops, out, tokens, r):
    """The columns of one row, and the largest logit of each of its tiles."""
    top, best = _tops(row, forbidden, tile, tops)
    finite = types.float32(0.0) if not math.isfinite(top) else top
    totals[:] = 0.0
    second, token = _MINUS_INFINITY, 0
    for number in range(len(tops)):
        begin = number * _TILE
        part = row[begin : begin + _TILE]
        count, other = len(part), tops[number]
        if number == best or count % _LANES > 0 or _touched(forbidden, begin, count):
            _patched(part, begin, forbidden, tile)
            patched = tile[: _whole(count)]
            if number == best:
                token = begin + _index(patched, top)
                patched[token - begin] = _LOWEST
                other = _largest(patched)
            _sums(patched, finite, lanes, totals)
            if beta is not None:
                _moment(patched, finite, beta, lanes, totals)
        else:
            _sums(part, finite, lanes, totals)
            if beta is not None:
                _moment(part, finite, beta, lanes, totals)
        second = other if other > second else second
    s, t, m = 0.0, 0.0, 0.0
    for j in range(_LANES):
        s, t, m = s + totals[0, j], t + totals[1, j], m + totals[2, j]
    if top == np.inf:  # the sum says nothing then
        s = types.float64(_any_nan(row, forbidden))
    out[0, r] = top if s == s else types.float32(np.nan)
    s, t, m = s * _UNLIFT, t * _UNLIFT, m * _UNLIFT
    log_z = math.log1p(s)
    out[1, r] = log_z + t / (1.0 + s)
    out[2, r] = s / (1.0 + s)
    out[3, r] = (s + math.exp(types.float64(second) - finite)) / (1.0 + s)
    out[4, r] = finite + log_z
    if beta is not None:
        out[5, r] = math.log1p(m) - beta * log_z
    tokens[r] = token


@njit(error_model="numpy", nogil=True, cache=True)
@no_type_check
def _statistics(logits, forbidden, power, tops, out, tokens, tile, lanes, totals, counter):
    """Rows until there are none left; see `statistics`. Without a power, nothing of it is compiled."""
    while True:
        r = _claim(counter)
        if r >= len(logits):
            return
        beta = None if power is None else power[r]
        _row_statistics(logits[r], forbidden, beta, tile, lanes, totals, tops[r], out, tokens, r)


@njit(**_INSIDE)
@no_type_check
def _mix(word):
    """Scrambles 64 bits; see `draws.race`."""
    word = (word ^ (word >> types.uint64(30))) * types.uint64(FIRST)
    word = (word ^ (word >> types.uint64(27))) * types.uint64(SECOND)
    return word ^ (word >> types.uint64(31))


@njit(**_INSIDE)
@no_type_check
def _counter(key, index):
    """What the first word of an index is made of."""
    return key + (types.uint64(2) * types.uint64(index) + types.uint64(1)) * types.uint64(GOLDEN)


@njit(**_INSIDE)
@no_type_check
def _exponential(word, more):
    """A standard exponential from two words; see `draws.race`."""
    u = (types.float64(word) + 0.5) * 2.0**-64
    if word < types.uint64(1 << 32):
        u = types.float64(word) * 2.0**-64 + (types.float64(more >> types.uint64(6)) + 0.5) * 2.0**-122
    return -math.log1p(-min(u, 1.0 - 2.0**-53))


@njit(**_INSIDE)
@no_type_check
def _reach(lead):
    """The largest first word with which a group may still win, or more; `lead` is its largest logit's over the best.

    With a word `w` its first clock is at least `w 2^-64 / 64`, and to win it must be at most `e^lead`.
    """
    everything = types.uint64(0xFFFFFFFFFFFFFFFF)
    return types.uint64(math.exp(lead) * (1.0 + 1e-6) * 2.0**70) + types.uint64(1) if lead < -4.2 else everything


@njit(**_INSIDE)
@no_type_check
def _race_tile(part, begin, top, scale, key, words, best, token):
    """The better of a token with its score, and the best of a tile with the given largest logit."""
    height, inside = types.float64(top) * scale, _mix(key ^ types.uint64(INSIDE))
    groups, limit = (len(part) + GROUP - 1) // GROUP, _reach(height - best)
    smallest = types.uint64(0xFFFFFFFFFFFFFFFF)
    for g in range(groups):
        words[g] = _mix(_counter(key, begin // GROUP + g))
        smallest = words[g] if words[g] < smallest else smallest
    if height == -np.inf or smallest > limit:
        return best, token
    for g in range(groups):
        if words[g] > limit:
            continue
        some = part[g * GROUP : (g + 1) * GROUP]
        if words[g] > _reach(types.float64(_largest(some)) * scale - best):
            continue
        more = _mix(_counter(key, begin // GROUP + g) + types.uint64(GOLDEN))
        first = _exponential(words[g], more) / GROUP
        least, place = best + math.log(first), types.int64(more & types.uint64(GROUP - 1))
        for i in range(len(some)):
            z = types.float64(_as_float32(_bits(some[i]))) * scale
            if z >= least and z > -np.inf:
                at, clock = begin + g * GROUP + i, first
                if i != place:
                    counter = _counter(inside, at)
                    clock += _exponential(_mix(counter), _mix(counter + types.uint64(GOLDEN)))
                score = z - math.log(clock)
                if score > best or (score == best and at < token):
                    best, token = score, at
        limit = _reach(height - best)
    return best, token


@njit(**_INSIDE)
@no_type_check
def _row_race(row, uniform, temperature, forbidden, known, tops, tile, words):
    """The token of one row whose clock rings first, see `draws.race`; at temperature 0 the first of the largest.

    With known tops of the tiles it begins with the highest, and reads no tile that cannot win.
    """
    start = 0
    if known:
        for number in range(len(tops)):
            start = number if tops[number] > tops[start] else start
    elif temperature == 0.0:
        _, start = _tops(row, forbidden, tile, tops)
    if temperature == 0.0:
        _patched(row[start * _TILE : (start + 1) * _TILE], start * _TILE, forbidden, tile)
        return start * _TILE + _index(tile[: min(_TILE, len(row) - start * _TILE)], tops[start])
    scale = min(1.0 / temperature, 1e250)
    key = _mix(types.uint64(types.int64(uniform * 2.0**53)) + types.uint64(GOLDEN))
    best, token = -np.inf, 0
    for turn in range(len(tops)):
        number = start + turn if start + turn < len(tops) else start + turn - len(tops)
        begin = number * _TILE
        part = row[begin : begin + _TILE]
        if _touched(forbidden, begin, len(part)):
            _patched(part, begin, forbidden, tile)
            patched = tile[: len(part)]
            top = tops[number] if known else _largest(patched)
            best, token = _race_tile(patched, begin, top, scale, key, words, best, token)
        else:
            top = tops[number] if known else _largest(part)
            best, token = _race_tile(part, begin, top, scale, key, words, best, token)
    return token


@njit(error_model="numpy", nogil=True, cache=True)
@no_type_check
def _draw(logits, rows, uniform, temperature, forbidden, known, tops, out, tile, scratch, words, counter):
    """Rows until there are none left; see `draw`."""
    while True:
        r = _claim(counter)
        if r >= len(rows):
            return
        row = rows[r]
        heights = tops[row] if known else scratch
        out[r] = _row_race(logits[row], uniform[r], temperature[r], forbidden, known, heights, tile, words)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="unmask-rows")


def _together(
    kernel: Callable[..., None],
    arguments: tuple[Any, ...],
    scratch: Callable[[], tuple[np.ndarray, ...]],
    rows: int,
    size: int,
) -> None:
    """Runs a kernel on as many threads as PyTorch may use, this one among them, each with scratch of its own."""
    counter = np.zeros(1, np.int64)
    helpers = min(torch.get_num_threads(), rows, 1 + size // _SMALL) - 1
    tasks = [_pool(torch.get_num_threads()).submit(kernel, *arguments, *scratch(), counter) for _ in range(helpers)]
    kernel(*arguments, *scratch(), counter)
    for task in tasks:
        if not task.cancel():  # it never started: nothing is left to do for it
            task.result()


def _stored(logits: Tensor) -> np.ndarray:
    """The bits of the logits, as the kernels take them; shares memory if the rows are contiguous."""
    kind = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.uint16}[logits.dtype]
    return logits.detach().contiguous().view(kind).numpy()


_NOTHING = np.empty((0, 0), np.float32)


@lru_cache(maxsize=16)
def _banned(forbidden: tuple[int, ...]) -> np.ndarray:
    return np.array(sorted(set(forbidden)), np.int64)


def statistics(
    logits: Tensor, forbidden: Sequence[int], power: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The columns `draws.categorical.marginals` is made of, in float32: top, token, ...; and the top of each tile."""
    rows, vocab = logits.shape
    out = torch.empty(5 if power is None else 6, rows, dtype=torch.float32)
    token = torch.empty(rows, dtype=torch.int64)
    tops = torch.empty(rows, -(-vocab // _TILE), dtype=torch.float32)
    beta = None if power is None else power.float().contiguous().numpy()
    arguments = (_stored(logits), _banned(tuple(forbidden)), beta, tops.numpy(), out.numpy(), token.numpy())

    def scratch() -> tuple[np.ndarray, ...]:
        return np.empty(_TILE, np.int32), np.empty((2, _LANES), np.float32), np.empty((3, _LANES), np.float64)

    _together(_statistics, arguments, scratch, rows, logits.numel())
    top, *columns = out.unbind()
    return (top, token, *columns), tops


def draw(
    logits: Tensor,
    rows: Tensor,
    uniform: Tensor,
    temperature: Tensor,
    forbidden: Sequence[int],
    tops: Tensor | None = None,
) -> Tensor:
    """Draws one token for each of some rows by a race, given float64 uniforms and temperatures; see `draws.race`.

    With the tops of the tiles of all rows, from `statistics`, a draw reads no tile that cannot win.
    """
    out = torch.empty(len(rows), dtype=torch.int64)
    numbers = (tensor.contiguous().numpy() for tensor in (rows, uniform, temperature))
    heights = _NOTHING if tops is None else tops.numpy()
    arguments = (_stored(logits), *numbers, _banned(tuple(forbidden)), tops is not None, heights, out.numpy())
    tiles = -(-logits.shape[1] // _TILE)

    def scratch() -> tuple[np.ndarray, ...]:
        return np.empty(_TILE, np.int32), np.empty(tiles, np.float32), np.empty(_TILE // GROUP, np.uint64)

    _together(_draw, arguments, scratch, len(rows), len(rows) * (logits.shape[1] if tops is None else 4 * _TILE))
    return out
