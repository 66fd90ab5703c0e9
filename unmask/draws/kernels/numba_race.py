# type: ignore - compiled code: what its names stand for, only its compiler knows
"""Draws of rows of logits by a race on a CPU (see `draws.race`), compiled by Numba.

Of each group of 64 tokens one word of the hash says when its first clock rings. The logarithm of that word, from its
exponent and mantissa alone, and the largest logit of a part of the row say whether the group could win: of 126,464
tokens some 450 groups are read, 100 looked into, and 50 clocks made. All that is left out could not have won, so the
token is the one that all clocks give.
"""

from __future__ import annotations

import math
from typing import no_type_check

import numpy as np
from numba import njit, types

from ..race import FIRST, GOLDEN, GROUP, INSIDE, SECOND
from .numba_bits import (
    INLINE,
    PART,
    TILE,
    as_float32,
    as_int32,
    bits_of,
    claim,
    first_at,
    heights,
    largest,
    patched,
    prefetch,
    touched,
)

_LOG2 = math.log(2)
LINE = 64
"""Bytes that the memory gives at once."""
_SLACK = 1e-5
"""What is left out falls short by more than this, so that no rounding matters."""


@njit(**INLINE)
@no_type_check
def _mix(word):
    """Scrambles 64 bits; see `draws.race`."""
    word = (word ^ (word >> types.uint64(30))) * types.uint64(FIRST)
    word = (word ^ (word >> types.uint64(27))) * types.uint64(SECOND)
    return word ^ (word >> types.uint64(31))


@njit(**INLINE)
@no_type_check
def _counter(key, index):
    """What the first word of an index is made of."""
    return key + (types.uint64(2) * types.uint64(index) + types.uint64(1)) * types.uint64(GOLDEN)


@njit(**INLINE)
@no_type_check
def _exponential(word, more):
    """A standard exponential from two words; see `draws.race`."""
    u = (types.float64(word) + 0.5) * 2.0**-64
    if word < types.uint64(1 << 32):
        u = types.float64(word) * 2.0**-64 + (types.float64(more >> types.uint64(6)) + 0.5) * 2.0**-122
    return -math.log1p(-min(u, 1.0 - 2.0**-53))


@njit(**INLINE)
@no_type_check
def _lead(word):
    """How far a clock with this first word may lift a logit, or more: `-log(w 2^-64)` at most.

    The logarithm is at least the exponent and the mantissa read as one number, since `log2(1 + m) >= m`.
    """
    below = as_int32(types.float32(word) * types.float32(1.0 - 1e-6))
    return (191.0 - types.float64(below) * 2.0**-23) * _LOG2 + _SLACK


@njit(**INLINE)
@no_type_check
def _race_tile(part, begin, tops, scale, key, leads, marked, best, token):
    """The better of a token with its score, and the best of a tile, given the largest logit of each of its parts.

    The memory is asked at once for all groups that could win as things stand, before the first of them is looked into.
    """
    groups, first, count = (len(part) + GROUP - 1) // GROUP, begin // GROUP, 0
    for g in range(groups):
        leads[g] = _lead(_mix(_counter(key, first + g))) + math.log(GROUP)
    for number in range(len(tops)):
        top = types.float64(tops[number]) * scale
        if top == -np.inf:
            continue
        for g in range(number * (PART // GROUP), min(groups, (number + 1) * (PART // GROUP))):
            if top + leads[g] < best:
                continue
            marked[count] = g
            count += 1
            for i in range(g * GROUP, min(len(part), (g + 1) * GROUP), LINE // part.itemsize):
                prefetch(part, i)
    for i in range(count):
        g = marked[i]
        if types.float64(tops[g // (PART // GROUP)]) * scale + leads[g] < best:
            continue
        some = part[g * GROUP : (g + 1) * GROUP]
        highest = types.float64(largest(some)) * scale
        if highest == -np.inf or highest + leads[g] < best:
            continue
        best, token = _race_group(some, begin + g * GROUP, highest, scale, key, leads[g], best, token)
    return best, token


@njit(**INLINE)
@no_type_check
def _race_group(some, begin, highest, scale, key, lead, best, token):
    """The better of a token with its score, and the best of a group: first the token of its first clock, then others.

    Few of the others have both a logit that could win with the first clock and a first word of their own that says a
    wait short enough.
    """
    counter = _counter(key, begin // GROUP)
    word, more = _mix(counter), _mix(counter + types.uint64(GOLDEN))
    place, first = types.int64(more & types.uint64(GROUP - 1)), np.nan
    if place < len(some):
        z = types.float64(as_float32(bits_of(some[place]))) * scale
        if z > -np.inf and z + lead >= best:
            first = _exponential(word, more) / GROUP
            score = z - math.log(first)
            if score > best or (score == best and begin + place < token):
                best, token = score, begin + place
    enough = (best - lead) / scale
    enough = max(types.float32(enough - 1e-6 * abs(enough)), types.float32(-3.4028235e38))
    inside = _mix(key ^ types.uint64(INSIDE))
    i = _next(some, enough, -1)
    while i < len(some):
        z = types.float64(as_float32(bits_of(some[i]))) * scale
        counter = _counter(inside, begin + i)
        own = _mix(counter)
        if z + _lead(own) >= best and i != place:
            if first != first:
                first = _exponential(word, more) / GROUP
            clock = first + _exponential(own, _mix(counter + types.uint64(GOLDEN)))
            score = z - math.log(clock)
            if score > best or (score == best and begin + i < token):
                best, token = score, begin + i
        i = _next(some, enough, i)
    return best, token


@njit(**INLINE)
@no_type_check
def _next(part, enough, after):
    """The first place behind another whose number is large enough; the length if there is none."""
    first = types.int32(len(part))
    for i in range(len(part)):
        fits = as_float32(bits_of(part[i])) >= enough and types.int32(i) > types.int32(after)
        place = types.int32(i) if fits else types.int32(len(part))
        first = place if place < first else first
    return first


@njit(**INLINE)
@no_type_check
def _row_race(row, uniform, temperature, forbidden, known, tops, tile, leads, marked):
    """The token of one row whose clock rings first, see `draws.race`; at temperature 0 the first of the largest.

    With known tops of the parts it begins where the highest is, and reads no part that cannot win.
    """
    start = 0
    if known:
        for number in range(len(tops)):
            start = number if tops[number] > tops[start] else start
    elif temperature == 0.0:
        _, start = heights(row, forbidden, tile, tops)
    if temperature == 0.0:
        begin = start * PART
        patched(row[begin : begin + PART], begin, forbidden, tile)
        return begin + first_at(tile[: min(PART, len(row) - begin)], tops[start])
    scale = min(1.0 / temperature, 1e250)
    key = _mix(types.uint64(types.int64(uniform * 2.0**53)) + types.uint64(GOLDEN))
    best, token, tiles = -np.inf, 0, (len(row) + TILE - 1) // TILE
    start //= TILE // PART
    for turn in range(tiles):
        begin = (start + turn if start + turn < tiles else start + turn - tiles) * TILE
        part, tall = row[begin : begin + TILE], tops[begin // PART : (begin + TILE) // PART]
        if touched(forbidden, begin, len(part)):
            patched(part, begin, forbidden, tile)
            shown = tile[: len(part)]
            if not known:
                _fill(shown, tall)
            best, token = _race_tile(shown, begin, tall, scale, key, leads, marked, best, token)
        else:
            if not known:
                _fill(part, tall)
            best, token = _race_tile(part, begin, tall, scale, key, leads, marked, best, token)
    return token


@njit(**INLINE)
@no_type_check
def _fill(part, tops):
    """Notes the largest logit of each part of a tile."""
    for number in range(len(tops)):
        tops[number] = largest(part[number * PART : (number + 1) * PART])


@njit(error_model="numpy", nogil=True, cache=True)
@no_type_check
def draw(logits, rows, uniform, temperature, forbidden, known, tops, out, tile, mine, leads, marked, counter):
    """Draws for rows until there are none left; see `numba_rows.draw`."""
    while True:
        r = claim(counter)
        if r >= len(rows):
            return
        row = rows[r]
        tall = tops[row] if known else mine
        out[r] = _row_race(logits[row], uniform[r], temperature[r], forbidden, known, tall, tile, leads, marked)


def scratch(parts: int) -> tuple[np.ndarray, ...]:
    """Room for a thread: a tile, the tops of the parts of a row, and what is known of the groups of a tile."""
    groups = TILE // GROUP
    return np.empty(TILE, np.int32), np.empty(parts, np.float32), np.empty(groups), np.empty(groups, np.int64)
