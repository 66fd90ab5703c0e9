"""The loop's step for `IndependenceTest`: which candidates may be drawn together is found by evaluating drafts.

The candidates are ranked, and every one gets a draft token from its marginal. In the first test those of the better
half are filled in, and of the others those whose marginal moves by more than epsilon are rejected. The next test does
the same within both halves at once, the one after it within the four quarters, and so on: `⌈log₂ n⌉` evaluations for
`n` candidates, one after the other, after which any two that are left were on different sides of some test. They take
their draft tokens. The first of the ranking is never tested itself, so that every step unmasks at least one position.

As all groups of a test share an evaluation, a candidate also sees the drafts of groups ranked after its own, and it
may be rejected for what a draft that is itself rejected later would have done to it. Draft tokens are drawn anew in
every step: a uniform that has decided who stays must not draw a token again.

References:
    Azangulov, Pandeva, Prasad, Zazo and Karmalkar (2025), arXiv:2510.21961.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .denoiser import Query
from .draws.categorical import divergence
from .rules.independence import IndependenceTest
from .sampling.view import View, spread

if TYPE_CHECKING:
    from .sampling.loop import Sampler


def tested(
    sampler: Sampler,
    query: Query,
    noise: Float[Tensor, "rows length"],
    memory: Float[Tensor, "rows memory"],
    token_noise: Float[Tensor, "rows length"],
    temperature: Float[Tensor, "rows length"],
) -> dict[str, Any]:
    """Evaluates a batch once, and again for every test; returns what a `Plan` holds.

    Args:
        sampler: Whose rule has an `IndependenceTest`.
        query: The state of the sequences, and their candidates.
        noise: Of the order.
        memory: Of the rule.
        token_noise: Uniforms that draw the draft tokens, fresh in every step.
        temperature: Of the draw.

    Raises:
        ValueError: If the denoiser wants the time: a test is at none.
        LogitsError: If a candidate's logits are no distribution.
    """
    if query.time is not None:
        raise ValueError(
            f"{sampler.rule.budget} evaluates drafts, which have no time; give a denoiser that ignores the time"
        )
    where = query.where
    logits, stats = sampler._evaluate(query)
    sampler._check(query, stats)
    masked = (query.x == sampler.denoiser.mask_id) & query.valid
    view = View.blank(where, noise, memory, masked, query.valid & ~masked).measured(stats)
    rank = sampler.rule.order.key(view).masked_fill(~where, torch.inf).argsort(dim=-1, stable=True).argsort(-1)
    tokens = sampler._draw(logits, None, token_noise[where], temperature[where])
    chosen, evaluations = prune(sampler, query, logits, rank, spread(tokens, where, sampler.denoiser.mask_id))
    return {
        "where": where,
        "logits": logits,
        "marginals": stats,
        "chosen": chosen,
        "memory": memory,
        "tokens": tokens,
        "evaluations": evaluations,
    }


def prune(
    sampler: Sampler,
    query: Query,
    logits: Float[Tensor, "candidates vocab"],
    rank: Int[Tensor, "rows length"],
    drafts: Int[Tensor, "rows length"],
) -> tuple[Bool[Tensor, "rows length"], Int[Tensor, " rows"]]:
    """Makes the tests; returns the candidates that are left, and how many evaluations each row took in all.

    Args:
        sampler: Whose rule has an `IndependenceTest`.
        query: The state of the sequences, and their candidates.
        logits: Of the candidates, evaluated already.
        rank: The place of each candidate in the ranking; what is none comes after them.
        drafts: The token drafted at each candidate.
    """
    assert isinstance(sampler.rule.budget, IndependenceTest)
    epsilon, where = sampler.rule.budget.epsilon, query.where
    number = spread(torch.arange(len(logits), device=logits.device), where, -1)
    left, evaluations = where, torch.ones(len(where), dtype=torch.int64, device=where.device)
    # Halves, quarters, ... of the ranking of each sequence, rounded up to a power of two; 0 is past the last.
    size = torch.tensor([_half(n) for n in where.sum(-1).tolist()], device=where.device).unsqueeze(-1)
    while bool((size > 0).any()):
        second = (rank // size.clamp(min=1) % 2 == 1) & (size > 0)
        filled, test = left & ~second, left & second
        row = test.any(-1).nonzero().squeeze(-1)
        if len(row):
            x = torch.where(filled[row], drafts[row], query.x[row])
            moved = sampler._logits(Query(x, test[row], query.valid[row], query.sequence[row]))
            influence = divergence(moved, logits[number[row][test[row]]], sampler.forbidden)
            rejected = torch.zeros_like(left[row]).masked_scatter_(test[row], influence > epsilon)
            left = left.index_copy(0, row, left[row] & ~rejected)
            evaluations = evaluations.index_add(0, row, torch.ones_like(row))
        size = size // 2
    return left, evaluations


def _half(count: int) -> int:
    """Half of the least power of two that is at least the count."""
    return (1 << max(0, count - 1).bit_length()) // 2
