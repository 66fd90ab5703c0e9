"""The exact law of a uniformly random order of many masks, by dynamic programming over sets of masks.

If the number of unmasked positions does not depend on the marginals, every step takes a uniformly random subset of the
remaining masks, whatever happened before. So the probability `f(S)` that the tokens outside a set `S` of masks are
those of a given completion satisfies, for all `k`-subsets `U` of `S`,

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

from ..denoiser import Denoiser, Query
from ..draws.categorical import log_prob, marginals
from ..rules.ranked import Rule
from ..sampling.view import View, spread

LIMIT = 16
"""The largest number of masks."""

SIZE = 1 << 25
"""The largest number of (completion, set of masks, mask) triples."""

_ROWS = 1 << 13
"""The largest number of states evaluated at once."""


@dataclass(frozen=True)
class Expectations:
    """The log-probability of each completion, and expectations over random orders.

    Attributes:
        log_q: The log-probability under the sampler.
        bound: The expectation of `Σ_steps (ΣH - max H)` along the path to the completion, in nats.
        surprise: The expectation of `-Σ log p_i(x_i | ...)` along this path, under the sampler's denoiser, in nats.
        evaluations: The expected number of steps, which is the same for all completions.
    """

    log_q: Float[Tensor, " points"]
    bound: Float[Tensor, " points"]
    surprise: Float[Tensor, " points"]
    evaluations: float


def group_sizes(rule: Rule, masks: int) -> list[tuple[tuple[int, ...], float]]:
    """Returns how many positions a rule that ignores the marginals takes in each step.

    A budget with random groups (`ancestral`) has a method `group_sizes(masks)`, which is used here.

    Args:
        rule: The rule.
        masks: Number of masks.

    Returns:
        All possible sequences of group sizes, with their probabilities.
    """
    known = getattr(rule.budget, "group_sizes", None)
    if known is not None:
        return known(masks)
    memory = rule.start(torch.tensor([masks]))
    assert isinstance(memory, Tensor)
    sizes, left = [], masks
    while left:
        candidate = torch.arange(masks).unsqueeze(0) < left
        view = View.blank(candidate, torch.zeros(1, masks, dtype=torch.float64), memory)
        chosen, memory = rule.select(view)
        sizes.append(int(chosen.sum()))
        left -= sizes[-1]
    return [(tuple(sizes), 1.0)]


def uniform_subsets(denoiser: Denoiser, rule: Rule, x: Tensor, points: Tensor) -> Expectations:
    """Computes the law of a uniform order by following every completion through all sets of masks.

    Args:
        denoiser: The denoiser.
        rule: A rule with a uniformly random order and a budget that ignores the marginals.
        x: The sequence with masks.
        points: The completions.

    Raises:
        ValueError: If there are too many masks or too many completions.
    """
    where = (x == denoiser.mask_id).nonzero().squeeze(-1)
    masks = len(where)
    if masks > LIMIT or len(points) * masks << masks > SIZE:
        raise ValueError(
            f"{masks} masks and {len(points)} completions have too many sets of masks for an exact law (limit {LIMIT}"
            f" masks and {SIZE} numbers)"
        )
    sets = torch.arange(1 << masks)
    held = (sets.unsqueeze(-1) >> torch.arange(masks) & 1) > 0  # [sets, masks]
    gain = torch.zeros(len(points), len(sets), masks, dtype=torch.float64)
    entropy = torch.zeros_like(gain)
    hidden = torch.zeros(len(sets), len(x), dtype=torch.bool)
    hidden[:, where] = held
    for rows in torch.arange(len(points)).split(max(1, _ROWS // len(sets))):
        complete = points[rows].repeat_interleave(len(sets), 0)
        query = Query.of(torch.where(hidden.repeat(len(rows), 1), denoiser.mask_id, complete), denoiser.mask_id)
        logits = denoiser(query).double()
        stats = marginals(logits)
        surprise = log_prob(logits, stats.log_norm, complete[query.where])
        gain[rows], entropy[rows] = (
            spread(values, query.where, 0.0)[:, where].reshape(len(rows), len(sets), masks)
            for values in (surprise, stats.entropy)
        )
    totals = torch.zeros(3, len(points), dtype=torch.float64)  # q, bound, surprise
    evaluations = 0.0
    for sizes, probability in group_sizes(rule, masks):
        totals += probability * _follow(gain, entropy, held, sizes)
        evaluations += probability * len(sizes)
    return Expectations(totals[0].log(), totals[1], totals[2], evaluations)


def _follow(gain: Tensor, entropy: Tensor, held: Tensor, sizes: tuple[int, ...]) -> Float[Tensor, "3 points"]:
    """Returns the probability, bound and surprise of each completion, for one sequence of group sizes."""
    points, sets, masks = gain.shape
    mass = torch.zeros(points, sets, dtype=torch.float64)
    mass[:, -1] = 1.0
    totals = torch.zeros(3, points, dtype=torch.float64)
    count, left = held.sum(-1), masks
    for size in sizes:
        share = math.comb(left, size)
        layer = (count == left).nonzero().squeeze(-1)
        after = torch.zeros_like(mass)
        for members in itertools.combinations(range(masks), size):
            index = list(members)
            inside = layer[held[layer][:, index].all(-1)]
            together = gain[:, inside][:, :, index].sum(-1)
            target = inside - sum(1 << i for i in members)
            after.index_add_(1, target, mass[:, inside] * together.exp() / share)
            h = entropy[:, inside][:, :, index]
            totals[1] += (h.sum(-1) - h.amax(-1)).clamp(min=0).sum(-1) / (share * len(layer))
            totals[2] -= together.sum(-1) / (share * len(layer))
        mass, left = after, left - size
    totals[0] = mass[:, 0]
    return totals
