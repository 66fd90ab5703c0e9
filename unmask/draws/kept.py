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
    found = _by_kernel(logits, before, index, forbidden)
    if found is not None:
        (top, token, entropy, doubt, closeness, log_norm), tops, norm, moved = found
        stats = Marginals(entropy, doubt, closeness, token, log_norm, None, top, tops)
        return stats, Kept(logits, log_norm, norm), moved
    stats = marginals(logits, forbidden, check=False) if stats is None else stats
    return stats, Kept(logits, stats.log_norm), _moved(logits, before, index, forbidden)


def moved(
    logits: Float[Tensor, "rows vocab"], before: Kept, index: Int[Tensor, " rows"], forbidden: Sequence[int] = ()
) -> Float[Tensor, " rows"]:
    """Returns the divergences alone (see `compared`)."""
    found = _by_kernel(logits, before, index, forbidden)
    return _moved(logits, before, index, forbidden) if found is None else found[-1]


def _by_kernel(
    logits: Tensor, before: Kept | None, index: Tensor, forbidden: Sequence[int]
) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor] | None:
    """What the kernel says, if there is one for these logits and those before."""
    kernel = comparing_kernel(logits)
    if kernel is None:
        return None
    if before is None:
        none = torch.empty(0, 2, dtype=torch.float64)
        return kernel.compared(logits, logits[:0], index, none, forbidden)
    if before.norm is None or before.logits.dtype != logits.dtype:
        return None
    return kernel.compared(logits, before.logits, index, before.norm, forbidden)


def _moved(logits: Tensor, before: Kept | None, index: Tensor, forbidden: Sequence[int]) -> Float[Tensor, " rows"]:
    """The divergences by plain PyTorch."""
    found = torch.full((len(logits),), torch.inf, dtype=torch.float64, device=logits.device)
    known = (index >= 0).nonzero().squeeze(-1)
    if before is not None and len(known):
        found[known] = divergence(logits[known], before.logits[index[known]], forbidden)
    return found
