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
from numba import njit, types
from torch import Tensor

from . import numba_race as race
from .numba_bits import (
    INLINE,
    LANES,
    LOWEST,
    MINUS_INFINITY,
    PART,
    TILE,
    as_float32,
    as_int32,
    bits_of,
    claim,
    filled,
    first_at,
    fma,
    heights,
    largest,
    patched,
    touched,
)

_SMALL = 1 << 17
"""Logits that one thread does faster than two can share."""

_LIFT = 40
"""Exponentials are made `2^40` times too large in float32, so that none that matters is denormal."""
UNLIFT = 2.0**-_LIFT


@njit(**INLINE)
@no_type_check
def exp32(d):
    """`2^40 e^d` of a float32 `-116 <= d <= 0`, to about one unit in the last place; exactly 0 at -116, NaN stays NaN.

    The sum with the large number leaves `n + 167` in the lowest bits, `n` the next integer to `d / log 2`; moved to the
    exponent's place, with its bias of 127, that is `2^(n + 40)`, or 0 where `n = -167`.
    """
    magic = types.float32(12582912.0 + 167.0)
    shifted = fma(d, types.float32(1.44269504088896341), magic)
    # log 2 in float32 is off by no more than 2e-9
    r = fma(magic - shifted, types.float32(0.6931471805599453), d)
    p = fma(types.float32(0.001384364441037178), r, types.float32(0.008374163880944252))
    p = fma(p, r, types.float32(0.04166800156235695))
    p = fma(p, r, types.float32(0.16666431725025177))
    p = fma(p, r, types.float32(0.4999999403953552))
    p = fma(p, r, types.float32(1.0))
    p = fma(p, r, types.float32(1.0))
    return p * as_float32(types.int32(as_int32(shifted) << types.int32(23)))


@njit(**INLINE)
@no_type_check
def _sums(part, top, lanes, totals):
    """Adds `Σe^d` and `Σe^d·(-d)`, `2^40` times too large, to totals in as many parts as there are lanes, all full."""
    s, t = lanes[0], lanes[1]
    lanes[:] = types.float32(0.0)
    for begin in range(0, len(part), LANES):
        some = part[begin : begin + LANES]
        for j in range(LANES):
            d = as_float32(bits_of(some[j])) - top
            d = types.float32(-116.0) if d < types.float32(-116.0) else d
            e = exp32(d)
            s[j] += e
            t[j] = fma(-e, d, t[j])
    for j in range(LANES):
        totals[0, j] += types.float64(s[j])
        totals[1, j] += types.float64(t[j])


@njit(**INLINE)
@no_type_check
def _moment(part, top, beta, lanes, totals):
    """Adds `Σe^(βd)`, `2^40` times too large, to a total in as many parts. With `β = 1` it is that of `_sums`."""
    m = lanes[0]
    lanes[:] = types.float32(0.0)
    for begin in range(0, len(part), LANES):
        some = part[begin : begin + LANES]
        for j in range(LANES):
            d = (as_float32(bits_of(some[j])) - top) * beta
            d = types.float32(-116.0) if d < types.float32(-116.0) else d
            e = exp32(d)
            m[j] += e
    for j in range(LANES):
        totals[2, j] += types.float64(m[j])


@njit(**INLINE)
@no_type_check
def _any_nan(row, forbidden):
    """NaN if the row has one at a token that is not forbidden, else 0."""
    for token in range(len(row)):
        x = as_float32(bits_of(row[token]))
        if x != x and not touched(forbidden, token, 1):
            return np.nan
    return 0.0


@njit(**INLINE)
@no_type_check
def columns(row, forbidden, top, second, s, t, out, r):
    """Writes the columns of a row that follow from its two largest logits and its sums; returns `log Σ e^d`."""
    if top == np.inf:  # the sum says nothing then
        s = types.float64(_any_nan(row, forbidden))
    finite = finite_or_0(top)
    log_z = math.log1p(s)
    out[0, r] = top if s == s else types.float32(np.nan)
    out[1, r] = log_z + t / (1.0 + s)
    out[2, r] = s / (1.0 + s)
    out[3, r] = (s + math.exp(types.float64(second) - finite)) / (1.0 + s)
    out[4, r] = finite + log_z
    return log_z


@njit(**INLINE)
@no_type_check
def finite_or_0(top):
    """What is subtracted from the logits of a row without making NaN."""
    return types.float32(0.0) if not math.isfinite(top) else top


@njit(**INLINE)
@no_type_check
def row_statistics(row, forbidden, beta, tile, lanes, totals, tops, out, tokens, r):
    """The columns of one row, and the largest logit of each of its parts; returns `log Σ e^d`."""
    top, best = heights(row, forbidden, tile, tops)
    best //= TILE // PART
    finite = finite_or_0(top)
    totals[:] = 0.0
    second, token = MINUS_INFINITY, 0
    for number in range((len(row) + TILE - 1) // TILE):
        begin = number * TILE
        part = row[begin : begin + TILE]
        count, other = len(part), MINUS_INFINITY
        for highest in tops[begin // PART : (begin + TILE) // PART]:
            other = highest if highest > other else other
        if number == best or count % LANES > 0 or touched(forbidden, begin, count):
            patched(part, begin, forbidden, tile)
            shown = tile[: filled(count)]
            if number == best:
                token = begin + first_at(shown, top)
                shown[token - begin] = LOWEST
                other = largest(shown)
            _sums(shown, finite, lanes, totals)
            if beta is not None:
                _moment(shown, finite, beta, lanes, totals)
        else:
            _sums(part, finite, lanes, totals)
            if beta is not None:
                _moment(part, finite, beta, lanes, totals)
        second = other if other > second else second
    s, t, m = 0.0, 0.0, 0.0
    for j in range(LANES):
        s, t, m = s + totals[0, j], t + totals[1, j], m + totals[2, j]
    log_z = columns(row, forbidden, top, second, s * UNLIFT, t * UNLIFT, out, r)
    if beta is not None:
        out[5, r] = math.log1p(m * UNLIFT) - beta * log_z
    tokens[r] = token
    return log_z


@njit(error_model="numpy", nogil=True, cache=True)
@no_type_check
def _statistics(logits, forbidden, power, tops, out, tokens, tile, lanes, totals, counter):
    """Rows until there are none left; see `statistics`. Without a power, nothing of it is compiled."""
    while True:
        r = claim(counter)
        if r >= len(logits):
            return
        beta = None if power is None else power[r]
        row_statistics(logits[r], forbidden, beta, tile, lanes, totals, tops[r], out, tokens, r)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="unmask-rows")


def together(
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


def stored(logits: Tensor) -> np.ndarray:
    """The bits of the logits, as the kernels take them; shares memory if the rows are contiguous."""
    kind = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.uint16}[logits.dtype]
    return logits.detach().contiguous().view(kind).numpy()


_NOTHING = np.empty((0, 0), np.float32)


@lru_cache(maxsize=16)
def banned(forbidden: tuple[int, ...]) -> np.ndarray:
    return np.array(sorted(set(forbidden)), np.int64)


def statistics(
    logits: Tensor, forbidden: Sequence[int], power: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """The columns `draws.categorical.marginals` is made of, in float32: top, token, ...; and the top of each part."""
    rows, vocab = logits.shape
    out = torch.empty(5 if power is None else 6, rows, dtype=torch.float32)
    token = torch.empty(rows, dtype=torch.int64)
    tops = torch.empty(rows, -(-vocab // PART), dtype=torch.float32)
    beta = None if power is None else power.float().contiguous().numpy()
    arguments = (stored(logits), banned(tuple(forbidden)), beta, tops.numpy(), out.numpy(), token.numpy())

    def scratch() -> tuple[np.ndarray, ...]:
        return np.empty(TILE, np.int32), np.empty((2, LANES), np.float32), np.empty((3, LANES), np.float64)

    together(_statistics, arguments, scratch, rows, logits.numel())
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

    With the tops of the parts of all rows, from `statistics`, a draw reads no part that cannot win.
    """
    out = torch.empty(len(rows), dtype=torch.int64)
    numbers = (tensor.contiguous().numpy() for tensor in (rows, uniform, temperature))
    known = _NOTHING if tops is None else tops.numpy()
    arguments = (stored(logits), *numbers, banned(tuple(forbidden)), tops is not None, known, out.numpy())
    parts = -(-logits.shape[1] // PART)
    read = logits.shape[1] if tops is None else 4 * TILE
    together(race.draw, arguments, lambda: race.scratch(parts), len(rows), len(rows) * read)
    return out
