"""How often two laws give different tokens when both are drawn from with the same noise, in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def total_variation(p: Float[Tensor, "rows vocab"], q: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Returns `Σ_v |p_v - q_v| / 2`: the least probability of different tokens that any common noise can give."""
    return (p - q).abs().sum(-1) / 2


def inversion_differs(p: Float[Tensor, "rows vocab"], q: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Returns the probability that one uniform gives different tokens under both CDFs.

    Each token has an interval under `p` and one under `q`; it is drawn from both where they overlap.
    """
    one, other = p.cumsum(-1), q.cumsum(-1)
    begin = torch.maximum(one - p, other - q)
    return 1 - (torch.minimum(one, other) - begin).clamp(min=0).sum(-1)


def race_differs(p: Float[Tensor, "rows vocab"], q: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Returns the probability that a race with the same clocks has different winners under both laws.

    Token `v` wins both with probability `1 / Σ_w max(p_w / p_v, q_w / q_v)`. With tokens in the order of `q / p` the
    maximum is the first for those up to `v`, and the second for the rest, so running sums give all of them at once.
    It is never above `2 d / (1 + d)`, with `d` the total variation.
    """
    order = (q / p).nan_to_num(torch.inf).argsort(-1)
    p, q = p.gather(-1, order), q.gather(-1, order)
    rest = q.flip(-1).cumsum(-1).flip(-1) - q
    both = p * q / (q * p.cumsum(-1) + p * rest)
    return 1 - both.nan_to_num(0.0).sum(-1)
