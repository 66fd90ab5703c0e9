"""What every peer is run on: a model that looks up the exact conditionals of a small table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from unmask.denoiser import Query
from unmask.oracles import Oracle, TableDenoiser, random_table
from unmask.oracles.oracle import enumerate_completions

SYMBOLS, LENGTH, SEED = 3, 4, 1
IMPOSSIBLE = -1e4
"""The logit of the mask token: its probability is 0, and loops that multiply the two get 0 and not NaN."""


def the_table() -> Oracle:
    """The distribution that every loop samples from.

    The squares of random weights: with the weights themselves, the marginals are so flat that thresholds and budgets
    hardly ever write two tokens at once.
    """
    weights = random_table(SYMBOLS, LENGTH, SEED).weights ** 2
    return TableDenoiser((weights / weights.sum()).reshape((SYMBOLS,) * LENGTH))


class Answers(nn.Module):
    """A model that knows the exact conditionals of a table: it looks up the logits of every state.

    Args:
        oracle: The table.
        length: How many tokens it is about.
        shift: Whether the logits of a position stand at the one before it; then texts begin with a given token.
        mixed: Whether the first half of a batch are texts of another kind, which begin with a 1, and whose tokens are
            all equally probable; then those of the table begin with a 0.

    Attributes:
        seen: States it has answered, which had a mask.
    """

    def __init__(self, oracle: Oracle, length: int, shift: bool = False, mixed: bool = False) -> None:
        super().__init__()
        self.symbols, self.mask_id, self.length = oracle.symbols, oracle.mask_id, length
        self.shift, self.mixed = shift, mixed
        states = enumerate_completions(torch.full((length,), oracle.vocab_size), oracle.vocab_size, oracle.vocab_size)
        logits = torch.zeros(*states.shape, oracle.vocab_size, dtype=torch.float64)
        logits[states == oracle.mask_id] = oracle(Query.of(states, oracle.mask_id))
        logits[..., oracle.mask_id] = IMPOSSIBLE
        self.table = nn.Parameter(logits, requires_grad=False)
        self.powers = oracle.vocab_size ** torch.arange(length - 1, -1, -1)
        self.device, self.dtype, self.config = torch.device("cpu"), torch.float64, SimpleNamespace()
        self.seen = 0

    def prompt(self, batch: int) -> Tensor:
        """What the texts of a batch begin with: nothing, or a token that says of which kind they are."""
        kinds = (torch.arange(batch) < batch // 2).long() if self.mixed else torch.zeros(batch, dtype=torch.int64)
        return kinds.unsqueeze(-1)[:, : int(self.shift or self.mixed)]

    def logits(self, x: Tensor) -> Tensor:
        """The logits of all positions of some states."""
        return self.table[(x * self.powers).sum(-1)]

    def forward(self, input_ids: Tensor, *args: Any, **options: Any) -> SimpleNamespace:
        """The answer in the form that loops expect; shifted, the logits of a position stand at the one before it."""
        x = input_ids[:, int(self.shift or self.mixed) :]
        self.seen += int((x == self.mask_id).any(-1).sum())
        logits = self.logits(x)
        if self.mixed:
            other = input_ids[:, 0] == 1
            logits[other, :, : self.symbols] = 0.0
        if self.shift or self.mixed:
            logits = nn.functional.pad(logits, (0, 0, 0, 1) if self.shift else (0, 0, 1, 0))
        return SimpleNamespace(logits=logits)
