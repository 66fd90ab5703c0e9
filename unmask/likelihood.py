"""How probable a model finds a sequence: the time-agnostic bound on its negative log-likelihood, estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .categorical import log_prob, marginals
from .denoiser import Denoiser, Query, check_denoiser
from .errors import LogitsError
from .sampler import Tokens, as_batch, stream_ids
from .schedule import Schedule
from .streams import Purpose, uniforms


@dataclass(frozen=True)
class Likelihood:
    """NELBO estimates of a batch, in nats.

    Attributes:
        nelbo: Of each sequence's maskable tokens, given the pinned ones.
        standard_error: Of each estimate, from its independent replicates (NaN for a single one).
        tokens: How many tokens of each sequence were maskable.
        evaluations: Model evaluations spent on each sequence.
    """

    nelbo: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    tokens: Int[Tensor, " batch"]
    evaluations: int

    @property
    def per_token(self) -> Float[Tensor, " batch"]:
        """Nats per maskable token."""
        return self.nelbo / self.tokens

    def mean(self) -> tuple[float, float]:
        """Nats per token over all sequences, with the standard error over sequences (data and estimator together)."""
        total = int(self.tokens.sum())
        mean = float(self.nelbo.sum()) / total
        if len(self.nelbo) < 2:
            return mean, float(self.standard_error.sum()) / total
        residual = self.nelbo - mean * self.tokens
        return mean, float(residual.std()) * len(self.nelbo) ** 0.5 / total


def nelbo(
    denoiser: Denoiser,
    x: Tokens,
    *,
    maskable: Bool[Tensor, "batch length"] | None = None,
    strata: int = 16,
    replicates: int = 2,
    seed: int | None = None,
    streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
    batch_size: int = 64,
    schedule: Schedule | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Likelihood:
    """Estimates `L · E_{n ~ U{1..L}} E_{|M| = n} [ (1/n) Σ_{i∈M} -log p_i(x_i | x_{∖M}) ]` without bias.

    With exact conditionals this is `-log p(x)`, for a model it bounds its own negative log-likelihood from above. `L`
    counts the maskable tokens. Two things lower the variance at equal evaluations:

    - *stratified counts*: of each replicate's `strata` evaluations, number `s` has `n = ⌊L (s + u_s) / strata⌋ + 1`
      masks;
    - *disjoint masks*: consecutive counts take consecutive stretches of one random permutation for as long as they fit,
      so that small masks, which vary most with where they fall, do not fall on the same tokens twice.

    Every mask is marginally uniform given its size, so neither adds bias. All random numbers belong to the sequence's
    own stream: the estimate does not depend on batch mates.

    Args:
        denoiser: The model.
        x: Complete sequences.
        maskable: False at pinned tokens, which are given and not scored; default: all tokens.
        strata: Evaluations per replicate.
        replicates: Independent repetitions; two or more give a standard error.
        seed: Gives row `r` the stream `derive(seed, r)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence.
        batch_size: Masked sequences per evaluation of the model.
        schedule: For denoisers that want the time: at which `n/L` of the tokens are masked.
        on_batch: Called with the number of masked sequences just evaluated.

    Raises:
        ValueError: If a sequence contains a mask or has nothing to score, or an argument is out of range.
        LogitsError: If the denoiser returns NaN, `+inf` or a row without mass.

    References:
        Zheng et al. (2025), arXiv:2409.02908, Proposition 3.1; Ou et al. (2025), arXiv:2406.03736.
    """
    check_denoiser(denoiser)
    for name, value in (("strata", strata), ("replicates", replicates), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {value!r}")
    x, valid = as_batch(x, denoiser)
    scored = valid if maskable is None else maskable.to(torch.bool) & valid
    if scored.shape != x.shape:
        raise ValueError(f"maskable must have shape {tuple(x.shape)}, got {tuple(scored.shape)}")
    if bool(((x == denoiser.mask_id) & valid).any()):
        raise ValueError("a likelihood is of complete sequences; these contain the mask token")
    length = scored.sum(-1)
    if bool((length == 0).any()):
        raise ValueError(f"sequence {int((length == 0).nonzero()[0])} has no token to score")
    if getattr(denoiser, "wants_time", False) and schedule is None:
        raise ValueError("this denoiser wants to know the time; pass the schedule it was trained with")
    ids = stream_ids(seed, streams, len(x), x.device)
    sequence, counts, masks = _masks(scored, length, ids, strata, replicates)
    value = torch.zeros(len(sequence), dtype=torch.float64, device=x.device)
    for start in range(0, len(sequence), batch_size):
        rows, where = sequence[start : start + batch_size], masks[start : start + batch_size]
        n = counts[start : start + batch_size]
        time = None if schedule is None else schedule.inverse(1 - n.double() / length[rows])
        query = Query(torch.where(where, denoiser.mask_id, x[rows]), where, valid[rows], rows, time)
        value[start : start + batch_size] = _surprise(denoiser, query, x[rows]) * length[rows] / n
        if on_batch is not None:
            on_batch(len(rows))
    runs = _total(value.reshape(len(x), replicates, strata)) / strata
    mean = _total(runs) / replicates
    spread = _total((runs - mean.unsqueeze(-1)).square()) / max(1, replicates - 1)
    error = (spread / replicates).sqrt() if replicates > 1 else torch.full_like(mean, torch.nan)
    return Likelihood(mean, error, length, strata * replicates)


def _total(values: Float[Tensor, "*batch terms"]) -> Float[Tensor, "*batch"]:
    """Sums in order, so that neither batch size nor padding changes a bit."""
    return values.cumsum(-1)[..., -1]


def _masks(
    scored: Tensor, length: Tensor, ids: Tensor, strata: int, replicates: int
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"], Bool[Tensor, "rows length"]]:
    """Every mask of every sequence: whose, how many, where; in order of sequence, replicate and stratum."""
    samples = strata * replicates
    index = torch.arange(samples, device=scored.device)
    u = uniforms(ids.unsqueeze(-1), index, Purpose.COUNT)
    share = (index % strata + u) / strata
    counts = (share * length.unsqueeze(-1)).floor().long().clamp(max=length.unsqueeze(-1) - 1) + 1
    # Which permutation each mask takes its stretch from, and where the stretch begins.
    permutation, first = torch.zeros_like(counts), torch.zeros_like(counts)
    for row, (sizes, limit) in enumerate(zip(counts.tolist(), length.tolist(), strict=True)):
        number, used = -1, limit
        for sample, size in enumerate(sizes):
            if sample % strata == 0 or used + size > limit:
                number, used = number + 1, 0
            permutation[row, sample], first[row, sample] = number, used
            used += size
    sequence = torch.arange(len(scored), device=scored.device).repeat_interleave(samples)
    position = torch.arange(scored.shape[1], device=scored.device)
    noise = uniforms(ids[sequence].unsqueeze(-1), position, Purpose.MASK, permutation.reshape(-1, 1))
    rank = noise.masked_fill(~scored[sequence], torch.inf).argsort(-1).argsort(-1)
    begin, n = first.reshape(-1, 1), counts.reshape(-1, 1)
    return sequence, counts.reshape(-1), (rank >= begin) & (rank < begin + n)


@torch.no_grad()
def _surprise(denoiser: Denoiser, query: Query, x: Tensor) -> Float[Tensor, " batch"]:
    """`Σ_{i∈M} -log p_i(x_i)` of each row, the mask token taken out of the model's distribution."""
    logits = denoiser(query)
    expected = (int(query.where.sum()), denoiser.vocab_size)
    if tuple(logits.shape) != expected:
        raise ValueError(f"the denoiser returned logits of shape {tuple(logits.shape)}, expected {expected}")
    try:
        stats = marginals(logits, [denoiser.mask_id])
    except LogitsError as error:
        row, position = query.where.nonzero()[error.row].tolist()
        place = f" (sequence {int(query.sequence[row])}, position {position})"
        raise LogitsError(error.row, error.reason, place) from None
    nats = torch.zeros(query.where.shape, dtype=torch.float64, device=x.device)
    nats[query.where] = -log_prob(logits, stats.log_norm, x[query.where]).double()
    return _total(nats)
