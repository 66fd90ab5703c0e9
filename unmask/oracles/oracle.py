"""Oracles: denoisers with exact conditionals, which separate the error of a sampler from that of its model.

Symbols are `0..symbols-1`, and the mask token is `symbols`. Conditionals are float64 logits. A state of probability
zero (two positions that were drawn together and contradict each other) has no conditionals: the oracle then returns the
uniform distribution over the symbols, and the law of a sampler counts this probability as off-support.

An oracle's result for a sequence is the same to the last bit in any batch: sums run over contiguous rows of fixed
length, never over the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Query

LIMIT = 1 << 22
"""The largest number of completions that is enumerated."""


class Oracle(ABC):
    """A denoiser with the exact conditionals of a known distribution.

    Args:
        symbols: Size of the alphabet, without the mask token.

    Raises:
        ValueError: If there is no symbol.
    """

    def __init__(self, symbols: int) -> None:
        if symbols < 1:
            raise ValueError(f"an oracle needs at least one symbol, got {symbols}")
        self.symbols = symbols

    @property
    def vocab_size(self) -> int:
        """Number of token ids: the symbols and the mask token."""
        return self.symbols + 1

    @property
    def mask_id(self) -> int:
        """The mask token: the last id."""
        return self.symbols

    @abstractmethod
    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        """Returns the exact conditionals of the requested positions as logits; each is treated as if it were masked."""

    @abstractmethod
    def log_marginal(self, x: Int[Tensor, "batch length"]) -> Float[Tensor, " batch"]:
        """Returns the log-probability of the unmasked tokens, summed over masked ones; `-inf` outside the support."""

    def completions(self, x: Int[Tensor, " length"]) -> tuple[Int[Tensor, "points length"], Float[Tensor, " points"]]:
        """Enumerates the completions of one sequence with masks.

        Returns:
            The completions of positive probability, and their log-probabilities given the unmasked tokens.

        Raises:
            ValueError: If there are too many to enumerate, or the given tokens have probability zero.
        """
        points = enumerate_completions(x, self.mask_id, self.symbols)
        log_p = self.log_marginal(points)
        total = self.log_marginal(x.unsqueeze(0))
        if not bool(total.isfinite()):
            raise ValueError(f"the given tokens have probability zero under the oracle: {x.tolist()}")
        alive = log_p > -torch.inf
        return points[alive], (log_p - total)[alive]


def enumerate_completions(x: Int[Tensor, " length"], mask_id: int, symbols: int) -> Int[Tensor, "points length"]:
    """Returns all ways to fill the masks of `x` with the symbols `0..symbols-1`, in lexicographic order.

    Raises:
        ValueError: If there are more than `LIMIT`.
    """
    where = (x == mask_id).nonzero().squeeze(-1)
    if symbols ** len(where) > LIMIT:
        raise ValueError(f"{symbols}^{len(where)} completions are too many to enumerate (limit {LIMIT})")
    code = torch.arange(symbols ** len(where))
    powers = symbols ** torch.arange(len(where) - 1, -1, -1)
    points = x.repeat(len(code), 1)
    points[:, where] = code.unsqueeze(-1) // powers % symbols
    return points


def distinct(
    x: Int[Tensor, "batch length"],
) -> tuple[Int[Tensor, "states length"], Int[Tensor, " batch"]]:
    """Returns the distinct rows and, for each original row, its index among them."""
    if len(x) <= 1:
        return x, torch.zeros(len(x), dtype=torch.int64)
    states, inverse = torch.unique(x, dim=0, return_inverse=True)
    return states, inverse


def with_mask_column(probability: Float[Tensor, "rows symbols"]) -> Float[Tensor, "rows vocab"]:
    """Turns probabilities of the symbols into logits over the vocabulary; rows that sum to 0 become uniform."""
    dead = probability.sum(-1, keepdim=True) <= 0
    p = torch.where(dead, torch.ones_like(probability), probability)
    return torch.cat([p.log(), torch.full_like(p[:, :1], -torch.inf)], -1)
