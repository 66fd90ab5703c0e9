# type: ignore - compiled code: what its names stand for, only its compiler knows
"""Statistics of rows of logits, and how far each is from an earlier row, in one visit of both, on a CPU.

With `d_k = z_k - z_t`, `t` the most probable token, and `d'_k = w_k - w_t` of the earlier row:
`KL = Σ_{k≠t} p_k (d_k - d'_k) - log Σ e^d + log Σ e^d'`. All of it is small where the row is nearly determined, and
both logarithms are kept in float64; so the error is some 1e-7 of what moved, and 0 if nothing did. The columns of
`numba_rows.statistics` come with the bits that they have there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import no_type_check

import numpy as np
import torch
from numba import njit, types
from torch import Tensor

from .numba_bits import (
    INLINE,
    LANES,
    LOWEST,
    MINUS_INFINITY,
    PART,
    TILE,
    as_float32,
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
from .numba_rows import UNLIFT, banned, columns, exp32, finite_or_0, row_statistics, stored, together


@njit(**INLINE)
@no_type_check
def _sums(part, old, top, old_at, lanes, totals):
    """Adds `Σe^d`, `Σe^d·(-d)` and `Σe^d·(d - d')`, `2^40` times too large, to totals in parts; see `numba_rows`.

    In the third, what has no probability now counts as 0, whatever it had before.
    """
    s, t, k = lanes[0], lanes[1], lanes[2]
    lanes[:] = types.float32(0.0)
    zero = types.float32(0.0)
    for begin in range(0, len(part), LANES):
        some, then = part[begin : begin + LANES], old[begin : begin + LANES]
        for j in range(LANES):
            d = as_float32(bits_of(some[j])) - top
            moved = d - (as_float32(bits_of(then[j])) - old_at)
            d = types.float32(-116.0) if d < types.float32(-116.0) else d
            e = exp32(d)
            s[j] += e
            t[j] = fma(-e, d, t[j])
            k[j] = fma(e, moved if e > zero else zero, k[j])
    for j in range(LANES):
        totals[0, j] += types.float64(s[j])
        totals[1, j] += types.float64(t[j])
        totals[2, j] += types.float64(k[j])


@njit(**INLINE)
@no_type_check
def _row_compared(row, old, old_norm, forbidden, tile, other_tile, lanes, totals, tops, out, tokens, r):
    """The columns of one row; returns `log Σ e^d`, and the divergence from the old row."""
    top, best = heights(row, forbidden, tile, tops)
    best //= TILE // PART
    begin = best * TILE
    patched(row[begin : begin + TILE], begin, forbidden, tile)
    token = begin + first_at(tile[: filled(min(TILE, len(row) - begin))], top)
    finite, old_at = finite_or_0(top), as_float32(bits_of(old[token]))
    totals[:] = 0.0
    second = MINUS_INFINITY
    for number in range((len(row) + TILE - 1) // TILE):
        begin = number * TILE
        part, then = row[begin : begin + TILE], old[begin : begin + TILE]
        count, other = len(part), MINUS_INFINITY
        lanes[0, 0] = largest(then)  # brings it into the cache, faster than the sums do
        for highest in tops[begin // PART : (begin + TILE) // PART]:
            other = highest if highest > other else other
        if number == best or count % LANES > 0 or touched(forbidden, begin, count):
            patched(part, begin, forbidden, tile)
            patched(then, begin, forbidden, other_tile)
            shown = tile[: filled(count)]
            if number == best:
                shown[token - begin] = LOWEST
                other = largest(shown)
            _sums(shown, other_tile[: filled(count)], finite, old_at, lanes, totals)
        else:
            _sums(part, then, finite, old_at, lanes, totals)
        second = other if other > second else second
    s, t, k = 0.0, 0.0, 0.0
    for j in range(LANES):
        s, t, k = s + totals[0, j], t + totals[1, j], k + totals[2, j]
    log_z = columns(row, forbidden, top, second, s * UNLIFT, t * UNLIFT, out, r)
    tokens[r] = token
    if not math.isfinite(top):
        return log_z, np.nan
    if old_at == MINUS_INFINITY:
        return log_z, np.inf
    grown = (old_norm[0] - types.float64(old_at)) + (old_norm[1] - log_z)
    return log_z, k * UNLIFT / (1.0 + s * UNLIFT) + grown


@njit(error_model="numpy", nogil=True, cache=True)
@no_type_check
def _compare(
    logits, old, index, old_norms, forbidden, tops, out, tokens, norms, moved, tile, other, lanes, totals, counter
):
    """Rows until there are none left; see `compared`."""
    while True:
        r = claim(counter)
        if r >= len(logits):
            return
        i = index[r]
        if i < 0:
            log_z = row_statistics(logits[r], forbidden, None, tile, lanes, totals, tops[r], out, tokens, r)
            moved[r] = np.inf
        else:
            log_z, moved[r] = _row_compared(
                logits[r], old[i], old_norms[i], forbidden, tile, other, lanes, totals, tops[r], out, tokens, r
            )
        norms[r, 0], norms[r, 1] = finite_or_0(out[0, r]), log_z


def compared(
    logits: Tensor, old: Tensor, index: Tensor, old_norms: Tensor, forbidden: Sequence[int]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
    """`numba_rows.statistics`, the normaliser of each row, and its divergence from a row of `old`.

    Args:
        logits: Rows of logits.
        old: Earlier rows, of the same dtype.
        index: Which of the earlier rows each row is compared with; -1 for none.
        old_norms: The normalisers of the earlier rows, float64 `[rows, 2]`: the largest logit, and `log Σ e^d`.
        forbidden: Tokens taken out of both.

    Returns:
        The columns and the tops of the parts, as there; the normalisers; and `KL(row ‖ earlier row)` in nats, `inf`
        without one.
    """
    rows, vocab = logits.shape
    out = torch.empty(5, rows, dtype=torch.float32)
    token = torch.empty(rows, dtype=torch.int64)
    tops = torch.empty(rows, -(-vocab // PART), dtype=torch.float32)
    norms, moved = torch.empty(rows, 2, dtype=torch.float64), torch.empty(rows, dtype=torch.float64)
    given = (stored(logits), stored(old), index.numpy(), old_norms.numpy(), banned(tuple(forbidden)))
    arguments = (*given, *(tensor.numpy() for tensor in (tops, out, token, norms, moved)))

    def scratch() -> tuple[np.ndarray, ...]:
        lanes, totals = np.empty((3, LANES), np.float32), np.empty((3, LANES), np.float64)
        return np.empty(TILE, np.int32), np.empty(TILE, np.int32), lanes, totals

    together(_compare, arguments, scratch, rows, logits.numel())
    top, *rest = out.unbind()
    return (top, token, *rest), tops, norms, moved.clamp_(min=0)
