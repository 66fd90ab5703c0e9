"""The probability that draws from two distributions with the same noise give different tokens, in closed form."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def total_variation(p: Float[Tensor, "rows vocab"], q: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Returns `Σ_v |p_v - q_v| / 2`: the least probability of different tokens that any common noise can give."""
    return (p - q).abs().sum(-1) / 2


def inversion_differs(p: Float[Tensor, "rows vocab"], q: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Returns the probability that inverse-CDF sampling from `p` and from `q` with one uniform gives different tokens.

    Each token has an interval of uniforms under `p` and one under `q`; both draws give the token where they overlap.
    """
    one, other = p.cumsum(-1), q.cumsum(-1)
    begin = torch.maximum(one - p, other - q)
    return 1 - (torch.minimum(one, other) - begin).clamp(min=0).sum(-1)


def race_differs(p: Float[Tensor, "rows vocab"], q: Float[Tensor, "rows vocab"]) -> Float[Tensor, " rows"]:
    """Returns the probability that exponential races with the same clocks have different winners under `p` and `q`.

    Token `v` wins both races with probability `1 / Σ_w max(p_w / p_v, q_w / q_v)`. If the tokens are ordered by `q /
    p`, the maximum is the first ratio for tokens up to `v` and the second for the rest, so cumulative sums give all of
    them at once. The result is at most `2 d / (1 + d)`, with `d` the total variation.
    """
    order = (q / p).nan_to_num(torch.inf).argsort(-1)
    p, q = p.gather(-1, order), q.gather(-1, order)
    rest = q.flip(-1).cumsum(-1).flip(-1) - q
    both = p * q / (q * p.cumsum(-1) + p * rest)
    return 1 - both.nan_to_num(0.0).sum(-1)
