"""What counts as equal when positions are ranked: numbers that differ by rounding alone."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BITS = 17
"""Of the 52 bits behind the point of a float64, so many are left out: numbers within 4e-12 of each other tie."""


def settled(values: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Returns what positions are ranked by, with numbers that differ by rounding alone made equal.

    Where symmetry makes two positions equal, the last bits of their entropies are chance: they depend on the processor
    and the order of its sums, and a ranking by them would too. So float64 numbers are rounded to 35 bits; what is then
    equal ranks by position, the lower first. In float32 nothing is changed: there ties are rare and rounding is large.

    Args:
        values: Numbers to be ranked; infinities stay.
    """
    if values.dtype is not torch.float64:
        return values
    bits = values.view(torch.int64)
    return (bits + (1 << (_BITS - 1))).bitwise_and(-(1 << _BITS)).view(torch.float64)


def place(values: Float[Tensor, "rows length"]) -> Int[Tensor, "rows length"]:
    """Returns the place of each value among those of its row, the lowest first, ties by position."""
    return settled(values).argsort(dim=-1, stable=True).argsort(dim=-1)
