# type: ignore - compiled code: what its names stand for, only its compiler knows
"""How compiled code reads rows of logits: their bits as float32, forbidden tokens, the largest of a part.

Numba keeps what it compiled beside the file of the function that was called from outside, and looks at that file alone
to see whether it is out of date. After a change here, delete `__pycache__` beside it.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

TILE = 2048
"""Logits whose sums are made in float32."""
PART = 512
"""Logits whose largest one a draw is told: with fewer it reads less of a row, but finding them takes longer."""
MINUS_INFINITY = np.float32(-np.inf)
LOWEST = np.int32(-0x800000)
"""The bits of `-inf`."""
LANES = 64
"""Sums are made in so many parts, written out: the compiler has no choice, and bits are the same wherever it runs."""

INLINE = {"error_model": "numpy", "nogil": True, "cache": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


@intrinsic
@no_type_check
def as_float32(typingctx: Any, bits: Any) -> Any:
    """The float32 with these bits."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
@no_type_check
def as_int32(typingctx: Any, value: Any) -> Any:
    """The bits of a float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
@no_type_check
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """`a · b + c`, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, a, a), generate


@intrinsic
@no_type_check
def claim(typingctx: Any, counter: Any) -> Any:
    """Adds 1 to the first number of an array, whoever else does at the same time, and returns what it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@intrinsic
@no_type_check
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Asks for the cache line with an element of an array, and does not wait for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        made = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(builder.gep(made.data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, word(0), word(3), word(1)])  # for reading, to be kept, data
        return context.get_dummy_value()

    return types.void(array, index), generate


@no_type_check
def bits_of(stored: Any) -> Any:
    """The bits of a logit as a float32, from a float32 (as int32), a bfloat16 (int16) or a float16 (uint16)."""
    raise NotImplementedError


@overload(bits_of, jit_options={"cache": True})
@no_type_check
def _bits_for(stored):
    if stored == types.int32:
        return lambda stored: stored
    if stored == types.int16:
        return lambda stored: types.int32(types.int32(stored) << types.int32(16))

    def half(stored):
        magnitude = types.int32((types.int32(stored) & types.int32(0x7FFF)) << types.int32(13))
        value = as_int32(as_float32(magnitude) * types.float32(2.0**112))
        if magnitude >= types.int32(0x7C00 << 13):  # infinity and NaN keep the largest exponent
            value = types.int32(magnitude | types.int32(0x7F800000))
        return types.int32(value | ((types.int32(stored) & types.int32(0x8000)) << types.int32(16)))

    return half


@no_type_check
def signed_of(stored: Any) -> Any:
    """The stored logit as an integer with its sign: float16 comes without."""
    raise NotImplementedError


@overload(signed_of, jit_options={"cache": True})
@no_type_check
def _signed_for(stored):
    if stored == types.uint16:
        return lambda stored: types.int16(stored)
    return lambda stored: stored


@njit(**INLINE)
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


@njit(**INLINE)
@no_type_check
def touched(forbidden, begin, count):
    """Whether one of some tokens in a row is forbidden."""
    low = _from(forbidden, begin)
    return low < len(forbidden) and forbidden[low] < begin + count


@njit(**INLINE)
@no_type_check
def filled(count):
    """A count, rounded up to a multiple of the lanes."""
    return (count + LANES - 1) // LANES * LANES


@njit(**INLINE)
@no_type_check
def patched(part, begin, forbidden, tile):
    """Decodes a part of a row, with forbidden tokens at `-inf`, and fills it up to a whole number of lanes with it."""
    for i in range(len(part)):
        tile[i] = bits_of(part[i])
    low = _from(forbidden, begin)
    while low < len(forbidden) and forbidden[low] < begin + len(part):
        tile[forbidden[low] - begin] = LOWEST
        low += 1
    for i in range(len(part), filled(len(part))):
        tile[i] = LOWEST


@njit(**INLINE)
@no_type_check
def largest(part):
    """The largest number. Which one it is if there are NaN is not said; they are found in the sum.

    The bits of numbers without a sign are in the order of the numbers, those with one in the opposite order; and half
    as many bits are compared in half the time.
    """
    high = low = signed_of(part[0])
    for i in range(len(part)):
        bits = signed_of(part[i])
        high = bits if bits > high else high
        low = bits if bits < low else low
    return as_float32(bits_of(part.dtype.type(high if high >= 0 else low)))


@njit(**INLINE)
@no_type_check
def heights(row, forbidden, tile, tops):
    """The largest logit, that of every part of the row, and the first part that holds it."""
    top, at = MINUS_INFINITY, 0
    for number in range(len(tops)):
        begin = number * PART
        part = row[begin : begin + PART]
        if touched(forbidden, begin, len(part)):
            patched(part, begin, forbidden, tile)
            here = largest(tile[: len(part)])
        else:
            here = largest(part)
        tops[number] = here
        if here > top:
            top, at = here, number
    return top, at


@njit(**INLINE)
@no_type_check
def first_at(tile, top):
    """The first place of a number, 0 if it is nowhere."""
    first = types.int32(len(tile))
    for i in range(len(tile)):
        place = types.int32(i) if as_float32(tile[i]) == top else types.int32(len(tile))
        first = place if place < first else first
    return first if first < len(tile) else 0
