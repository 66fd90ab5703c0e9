"""Rows of logits that are kept, to compare later evaluations with: their statistics and divergences in one visit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .categorical import Marginals, divergence, forbid, marginals
from .kernels import comparing_kernel


@dataclass(frozen=True)
class Kept:
    """Logits as they came, with what makes log-probabilities of them.

    Attributes:
        logits: The rows; forbidden tokens are not removed.
        log_norm: `log Σ exp(logit)` without the forbidden tokens, in the dtype of statistics.
        norm: The same in float64, as the largest logit and what is above it, if a kernel compares with these rows.
    """

    logits: Float[Tensor, "rows vocab"]
    log_norm: Float[Tensor, " rows"]
    norm: Float[Tensor, "rows 2"] | None = None

    def select(self, index: Int[Tensor, " some"]) -> Kept:
        """Some of the rows."""
        return Kept(self.logits[index], self.log_norm[index], None if self.norm is None else self.norm[index])

    @staticmethod
    def cat(parts: Sequence[Kept]) -> Kept:
        """The rows of one after the other."""
        norms = [part.norm for part in parts if part.norm is not None]
        return Kept(
            torch.cat([part.logits for part in parts]),
            torch.cat([part.log_norm for part in parts]),
            torch.cat(norms) if len(norms) == len(parts) else None,
        )

    def log_p(self, index: Int[Tensor, " some"], forbidden: Sequence[int] = ()) -> Float[Tensor, "some vocab"]:
        """The log-probabilities of some of the rows, without tokens that are forbidden."""
        norm = self.log_norm[index].unsqueeze(-1)
        return forbid(self.logits[index].to(norm.dtype), forbidden) - norm


def compared(
    logits: Float[Tensor, "rows vocab"],
    before: Kept | None,
    index: Int[Tensor, " rows"],
    forbidden: Sequence[int] = (),
    stats: Marginals | None = None,
) -> tuple[Marginals, Kept, Float[Tensor, " rows"]]:
    """Returns the statistics of rows, the rows to be kept, and `KL(row ‖ row before)` of each in nats, float64.

    On a CPU rows of 256 tokens or more are read once for all of it. Nothing is checked (see `check_marginals`); the
    divergence of a row that is no distribution is NaN.

    Args:
        logits: The rows.
        before: Rows that were kept.
        index: Which of them each row is compared with; -1 for none, and then the divergence is `inf`.
        forbidden: Tokens that count as `-inf` in both.
        stats: The statistics, if they are known.
    """
    kernel = comparing_kernel(logits)
    if kernel is not None and (before is None or (before.norm is not None and before.logits.dtype == logits.dtype)):
        old = logits[:0] if before is None else before.logits
        norms = torch.empty(0, 2, dtype=torch.float64) if before is None or before.norm is None else before.norm
        columns, tops, norm, moved = kernel.compared(logits, old, index, norms, forbidden)
        top, token, entropy, doubt, closeness, log_norm = columns
        stats = Marginals(entropy, doubt, closeness, token, log_norm, None, top, tops)
        return stats, Kept(logits, log_norm, norm), moved
    stats = marginals(logits, forbidden, check=False) if stats is None else stats
    moved = torch.full((len(logits),), torch.inf, dtype=torch.float64, device=logits.device)
    known = (index >= 0).nonzero().squeeze(-1)
    if before is not None and len(known):
        moved[known] = divergence(logits[known], before.logits[index[known]], forbidden)
    return stats, Kept(logits, stats.log_norm), moved
