"""What a rule may look at: the marginals of the candidate positions, before and after ranking.

Rules see marginals, never drawn tokens: a position chosen because its *draw* looked confident biases the samples, even
one at a time. Rules that need more (draws, past predictions, extra evaluations) are separate, named protocols.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ..draws.categorical import Marginals


@dataclass(frozen=True)
class View:
    """The state of a batch as its rule sees it. Statistics are `+inf` where a position is not a candidate.

    Attributes:
        candidate: Positions that may be unmasked now.
        entropy: Marginal entropies, in nats.
        doubt: One minus the largest probability.
        closeness: One minus the margin between the two largest probabilities.
        position: The position of each column in the sequence; ranking permutes it with the rest.
        noise: One uniform random number in `[0, 1)` per position, fixed for the whole sequence by its stream.
        memory: The rule's own numbers, one row per sequence (see `Budget.start`).
        masked: Positions without a token, in the open block or not; `None` before there is a sequence to look at.
        known: Positions with a token. Padding is neither masked nor known.
        last: Candidates that are unmasked only together with all others or after them; `None` if there are none.
        drift: The largest of the last `Rule.history` divergences `KL(evaluation || the one before)` at a position, in
            nats; `+inf` where there were fewer evaluations. `None` for rules that do not compare evaluations.
    """

    candidate: Bool[Tensor, "batch length"]
    entropy: Float[Tensor, "batch length"]
    doubt: Float[Tensor, "batch length"]
    closeness: Float[Tensor, "batch length"]
    position: Int[Tensor, "batch length"]
    noise: Float[Tensor, "batch length"]
    memory: Float[Tensor, "batch memory"]
    masked: Bool[Tensor, "batch length"] | None = None
    known: Bool[Tensor, "batch length"] | None = None
    last: Bool[Tensor, "batch length"] | None = None
    drift: Float[Tensor, "batch length"] | None = None

    @staticmethod
    def blank(
        candidate: Bool[Tensor, "batch length"],
        noise: Float[Tensor, "batch length"],
        memory: Float[Tensor, "batch memory"],
        masked: Bool[Tensor, "batch length"] | None = None,
        known: Bool[Tensor, "batch length"] | None = None,
    ) -> View:
        """Returns a view before any evaluation, which is enough for a rule that does not look at marginals."""
        nothing = torch.zeros_like(noise)
        position = torch.arange(candidate.shape[1], device=candidate.device).expand_as(candidate)
        return View(candidate, nothing, nothing, nothing, position, noise, memory, masked, known)

    def measured(self, stats: Marginals, late: Bool[Tensor, " rows"] | None = None) -> View:
        """Returns the same view with the statistics of its candidates, one row each.

        A candidate is `late` if its most probable token has to wait for the others. Only the first late candidate stays
        a candidate. It is unmasked after the others or together with all of them, so a text is written before it ends.
        """
        view, statistics = self, {}
        for name in ("entropy", "doubt", "closeness"):
            statistics[name] = spread(getattr(stats, name), self.candidate)
        if late is not None:
            waits = spread(late, self.candidate, False)
            first = waits & (waits.cumsum(-1) == 1)
            view = replace(self, candidate=self.candidate & ~waits | first, last=first)
            statistics = {name: values.masked_fill(~view.candidate, torch.inf) for name, values in statistics.items()}
        return replace(view, **statistics)

    def ranked(self, order: Int[Tensor, "batch length"]) -> View:
        """Returns the same view with positions permuted: column `k` holds position `order[:, k]`."""
        columns = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "memory"}
        moved = {name: values.gather(1, order) for name, values in columns.items() if values is not None}
        return replace(self, **moved)


def dependence_bound(
    chosen: Bool[Tensor, "batch length"], entropy: Float[Tensor, " chosen"]
) -> Float[Tensor, " batch"]:
    """Returns `ΣH - max H` over the positions chosen in each row, in nats: a bound on their dependence error.

    Args:
        chosen: Positions drawn together.
        entropy: The entropy of each of these positions, in nats, row-major.
    """
    h = torch.zeros(chosen.shape, dtype=torch.float64, device=chosen.device).masked_scatter_(chosen, entropy.double())
    h = h.scatter(1, h.argmax(-1, keepdim=True), 0.0)
    return h.cumsum(-1)[:, -1]  # sequential, so that padding changes no bit


def spread(
    values: Shaped[Tensor, " rows"], where: Bool[Tensor, "batch length"], fill: float | int = torch.inf
) -> Shaped[Tensor, "batch length"]:
    """Puts one value per candidate (row-major) back in its place, with `fill` elsewhere."""
    return torch.full(where.shape, fill, dtype=values.dtype, device=values.device).masked_scatter_(where, values)
