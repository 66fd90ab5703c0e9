"""What the evaluations before looked like, for the rules that compare with them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sampling.view import spread


@dataclass(frozen=True)
class Past:
    """The last evaluation of each row, kept only for rules that ask for it (`Rule.history`).

    Attributes:
        sequence: Index of each row's sequence in the state.
        where: The positions that were evaluated.
        log_p: Their log-probabilities without the forbidden tokens, row-major over `where`.
        drifts: `KL(evaluation || the one before it)` in nats of the latest evaluations of each position, newest last;
            `+inf` where there was none to compare with.
        masked: How many positions of each row were masked.
        time: The diffusion time of each row's evaluation, if the denoiser wants time.
    """

    sequence: Int[Tensor, " rows"]
    where: Bool[Tensor, "rows length"]
    log_p: Float[Tensor, "positions vocab"]
    drifts: Float[Tensor, "rows length history"]
    masked: Int[Tensor, " rows"]
    time: Float[Tensor, " rows"] | None

    def of(self, sequence: Int[Tensor, " rows"]) -> Past:
        """Returns the rows of some of its sequences, in the given (ascending) order."""
        if torch.equal(sequence, self.sequence):
            return self
        row = torch.searchsorted(self.sequence, sequence)
        kept = torch.zeros(len(self.sequence), dtype=torch.bool, device=row.device).index_fill_(0, row, True)
        held = kept.unsqueeze(-1).expand_as(self.where)[self.where]
        time = None if self.time is None else self.time[row]
        return Past(sequence, self.where[row], self.log_p[held], self.drifts[row], self.masked[row], time)

    def at(self, where: Bool[Tensor, "rows length"]) -> tuple[Bool[Tensor, " positions"], Float[Tensor, "known vocab"]]:
        """Looks positions up: which of those in `where` (row-major) it knows, and their log-probabilities."""
        known = self.where & where
        return known[where], self.log_p[known[self.where]]

    @staticmethod
    def after(
        before: Past | None,
        sequence: Int[Tensor, " rows"],
        where: Bool[Tensor, "rows length"],
        log_p: Float[Tensor, "positions vocab"],
        masked: Int[Tensor, " rows"],
        time: Float[Tensor, " rows"] | None,
        history: int,
    ) -> Past:
        """Adds an evaluation to what came before it, of which the last `history` comparisons are kept."""
        if before is None:
            none = torch.full((*where.shape, history), torch.inf, dtype=torch.float64, device=where.device)
            return Past(sequence, where, log_p, none, masked, time)
        known, then = before.at(where)
        now = log_p[known]
        # exp underflows to 0 where log_p is -inf: 0 · (-inf - anything finite) counts as 0.
        terms = torch.where(now.isneginf(), 0.0, now.exp() * (now - then))
        drift = torch.full((len(log_p),), torch.inf, dtype=torch.float64, device=where.device)
        drift[known] = terms.sum(-1).double().clamp(min=0)
        drifts = torch.cat([before.drifts[..., 1:], spread(drift, where).unsqueeze(-1)], -1)
        return Past(sequence, where, log_p, drifts, masked, time)
