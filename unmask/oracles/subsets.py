"""The exact law of a uniformly random order over many masks, by dynamic programming over sets of masks.

Where the number of positions unmasked does not depend on the marginals, every step takes a uniformly random subset of
the masks left, whatever happened before. So for one completion the probability of holding its tokens outside a set `S`
of masks obeys, over `k`-subsets `U` of `S`,

    f(S \\ U) += f(S) / C(|S|, k) · Π_{i∈U} p_i(x_i | x outside S),

which takes `2^masks` states instead of `masks!` orders.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..categorical import marginals
from ..denoiser import Denoiser, Query
from ..rules.rule import Rule
from ..rules.view import View, spread

LIMIT = 16
"""The largest number of masks."""


@dataclass(frozen=True)
class Expectations:
    """For each completion: `log q`, and its expectations over random orders.

    Attributes:
        log_q: The sampler's log-probability.
        bound: `Σ_steps (ΣH - max H)` along its own path.
        surprise: `-Σ log p_i(x_i | ...)` along its own path, under the sampler's denoiser.
        evaluations: The expected number of steps, the same for every completion.
    """

    log_q: Float[Tensor, " points"]
    bound: Float[Tensor, " points"]
    surprise: Float[Tensor, " points"]
    evaluations: float


def group_sizes(rule: Rule, masks: int) -> list[tuple[tuple[int, ...], float]]:
    """Asks a marginal-free rule how many positions it takes in each step: every possibility with its probability.

    A budget whose groups are random (`ancestral`) knows them itself, as `group_sizes(masks)`.
    """
    known = getattr(rule.budget, "group_sizes", None)
    if known is not None:
        return known(masks)
    memory = rule.start(torch.tensor([masks]))
    sizes, left = [], masks
    while left:
        flat = torch.zeros(1, masks, dtype=torch.float64)
        view = View(torch.arange(masks).unsqueeze(0) < left, flat, flat, flat, flat, memory)
        chosen, memory = rule.select(view)
        sizes.append(int(chosen.sum()))
        left -= sizes[-1]
    return [(tuple(sizes), 1.0)]


def uniform_subsets(denoiser: Denoiser, rule: Rule, x: Tensor, points: Tensor) -> Expectations:
    """Follows every completion through all sets of masks.

    Raises:
        ValueError: If there are more than `LIMIT` masks.
    """
    where = (x == denoiser.mask_id).nonzero().squeeze(-1)
    if len(where) > LIMIT:
        raise ValueError(f"{len(where)} masks have too many subsets for an exact law (limit {LIMIT})")
    mass = torch.zeros(3, len(points), dtype=torch.float64)  # q, bound, surprise
    evaluations = 0.0
    for sizes, probability in group_sizes(rule, len(where)):
        rows = [_follow(denoiser, x, point, where, sizes) for point in points]
        mass += probability * torch.tensor(rows, dtype=torch.float64).T
        evaluations += probability * len(sizes)
    return Expectations(mass[0].log(), mass[1], mass[2], evaluations)


def _follow(
    denoiser: Denoiser, x: Tensor, point: Tensor, where: Tensor, sizes: tuple[int, ...]
) -> tuple[float, float, float]:
    masks = len(where)
    mass = torch.zeros(1 << masks, dtype=torch.float64)
    mass[-1] = 1.0
    bit = 1 << torch.arange(masks)
    left, bound, surprise = masks, 0.0, 0.0
    for size in sizes:
        layer = torch.tensor([sum(1 << i for i in s) for s in itertools.combinations(range(masks), left)])
        held = (layer.unsqueeze(-1) & bit) > 0
        states = point.repeat(len(layer), 1)
        states[:, where] = torch.where(held, denoiser.mask_id, point[where])
        query = Query.of(states, denoiser.mask_id)
        logits = denoiser(query).double()
        stats = marginals(logits)
        tokens = point.expand(len(layer), -1)[query.where]
        gain = spread(logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - stats.log_norm, query.where, 0.0)[:, where]
        entropy = spread(stats.entropy, query.where, 0.0)[:, where]
        share = math.comb(left, size)
        after = torch.zeros_like(mass)
        for members in itertools.combinations(range(masks), size):
            index = list(members)
            inside = held[:, index].all(-1)
            together = gain[inside][:, index].sum(-1)
            target = layer[inside] & ~sum(1 << i for i in members)
            after.index_add_(0, target, mass[layer[inside]] * together.exp() / share)
            h = entropy[inside][:, index]
            bound += float((h.sum(-1) - h.amax(-1)).clamp(min=0).sum()) / (share * len(layer))
            surprise -= float(together.sum()) / (share * len(layer))
        mass, left = after, left - size
    return float(mass[0]), bound, surprise
