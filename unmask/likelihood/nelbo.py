"""Likelihoods of sequences under a model: exact, token by token, or an estimate of the time-agnostic bound (NELBO)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..denoiser import Denoiser, Query, check_denoiser
from ..draws.categorical import log_prob, marginals
from ..draws.streams import Purpose, uniforms
from ..errors import LogitsError
from ..sampling.loop import Tokens, as_batch, stream_ids
from ..schedule import Schedule


@dataclass(frozen=True)
class Likelihood:
    """Estimates of the NELBO (negative evidence lower bound) of a batch of sequences, in nats.

    Attributes:
        nelbo: The estimate for each sequence's maskable tokens, given the pinned ones.
        standard_error: The standard error of each estimate, from its independent replicates (NaN for a single one).
        tokens: Number of maskable tokens of each sequence.
        evaluations: Number of evaluations of the model per sequence.
    """

    nelbo: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    tokens: Int[Tensor, " batch"]
    evaluations: int

    @property
    def per_token(self) -> Float[Tensor, " batch"]:
        """The estimate in nats per maskable token."""
        return self.nelbo / self.tokens

    def mean(self) -> tuple[float, float]:
        """Returns the mean over the tokens of all sequences, in nats per token, and its standard error.

        The standard error is computed over sequences, so it includes both the choice of the data and the noise of the
        estimator. For a single sequence it includes only the latter.
        """
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

    This is the NELBO, in nats. With exact conditionals it equals `-log p(x)`; for a model it is an upper bound on the
    model's own negative log-likelihood. `L` counts the maskable tokens. Two things lower the variance at equal cost:

    - *stratified counts*: of each replicate's `strata` evaluations, evaluation `s` has
      `n = ⌊L (s + u_s) / strata⌋ + 1` masks, with `u_s` uniform;
    - *disjoint masks*: consecutive evaluations take consecutive parts of one random permutation as long as they fit. So
      small sets of masks, whose terms vary most with the tokens they cover, do not cover the same tokens twice.

    Every set of masks is marginally uniform given its size, so neither adds bias. All random numbers come from the
    sequence's own stream, so the estimate does not depend on the other sequences of the batch.

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
    x, length, counts, value = surprise_by_count(
        denoiser,
        x,
        maskable=maskable,
        strata=strata,
        replicates=replicates,
        seed=seed,
        streams=streams,
        batch_size=batch_size,
        schedule=schedule,
        on_batch=on_batch,
    )
    value = value * length.repeat_interleave(strata * replicates) / counts
    runs = _total(value.reshape(len(x), replicates, strata)) / strata
    mean = _total(runs) / replicates
    spread = _total((runs - mean.unsqueeze(-1)).square()) / max(1, replicates - 1)
    error = (spread / replicates).sqrt() if replicates > 1 else torch.full_like(mean, torch.nan)
    return Likelihood(mean, error, length, strata * replicates)


def surprise_by_count(
    denoiser: Denoiser,
    x: Tokens,
    *,
    maskable: Bool[Tensor, "batch length"] | None,
    strata: int,
    replicates: int,
    seed: int | None,
    streams: Iterable[int] | Int[Tensor, " batch"] | None,
    batch_size: int,
    schedule: Schedule | None,
    on_batch: Callable[[int], None] | None,
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"], Int[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Returns the terms that `nelbo` averages; the arguments and errors are the same.

    Returns:
        The sequences, their numbers of maskable tokens, and for each evaluation, in order of sequence, replicate and
        stratum, the number of masks and the sum over them of `-log p_i(x_i | x_{∖M})`, in nats.
    """
    _check_counts(strata=strata, replicates=replicates, batch_size=batch_size)
    x, valid, scored = _to_score(denoiser, x, maskable, schedule)
    length = scored.sum(-1)
    ids = stream_ids(seed, streams, len(x), x.device)
    sequence, counts, masks = _masks(scored, length, ids, strata, replicates)
    value = torch.zeros(len(sequence), dtype=torch.float64, device=x.device)
    for start in range(0, len(sequence), batch_size):
        rows, where = sequence[start : start + batch_size], masks[start : start + batch_size]
        n = counts[start : start + batch_size]
        time = None if schedule is None else schedule.inverse(1 - n.double() / length[rows])
        query = Query(torch.where(where, denoiser.mask_id, x[rows]), where, valid[rows], rows, time)
        value[start : start + batch_size] = _surprise(denoiser, query, x[rows])
        if on_batch is not None:
            on_batch(len(rows))
    return x, length, counts, value


def chain_log_likelihood(
    denoiser: Denoiser,
    x: Tokens,
    *,
    maskable: Bool[Tensor, "batch length"] | None = None,
    seed: int | None = None,
    streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
    batch_size: int = 64,
    schedule: Schedule | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, " batch"]:
    """Returns the log-probability of each sequence if the model samples it one token at a time in a random order.

    This is `Σ_k log p_{σ(k)}(x_{σ(k)} | pinned tokens, x_{σ(1)}, …, x_{σ(k-1)})` in nats, with a random order `σ`. It
    is not an estimate and assumes no independence of tokens: it is the exact log-probability under sampling in the
    order `σ`, and takes one evaluation of the model per maskable token. With exact conditionals it is the
    log-probability of the sequence, whatever the order. With a model, its mean over orders is minus the NELBO, which
    `nelbo` estimates with far fewer evaluations.

    The order comes from the sequence's stream, so two completions of a prompt with the same stream are judged in the
    same order.

    Args:
        denoiser: The model.
        x: Complete sequences.
        maskable: False at pinned tokens, which are given and not scored; default: all tokens.
        seed: Gives row `r` the stream `derive(seed, r)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence.
        batch_size: Masked sequences per evaluation of the model.
        schedule: For denoisers that want the time: at which `n/L` of the tokens are masked.
        on_batch: Called with the number of masked sequences just evaluated.

    Raises:
        ValueError: If a sequence contains a mask or has nothing to score, or an argument is out of range.
        LogitsError: If the denoiser returns NaN, `+inf` or a row without mass.
    """
    _check_counts(batch_size=batch_size)
    x, valid, scored = _to_score(denoiser, x, maskable, schedule)
    ids = stream_ids(seed, streams, len(x), x.device)
    position = torch.arange(x.shape[1], device=x.device)
    noise = uniforms(ids.unsqueeze(-1), position, Purpose.MASK).masked_fill(~scored, torch.inf)
    rank = noise.argsort(-1).argsort(-1)
    length = scored.sum(-1)
    nats = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    sequence, turn = (torch.arange(x.shape[1], device=x.device) < length.unsqueeze(-1)).nonzero().unbind(-1)
    for rows, k in zip(sequence.split(batch_size), turn.split(batch_size), strict=True):
        masked = scored[rows] & (rank[rows] >= k.unsqueeze(-1))
        time = None if schedule is None else schedule.inverse(1 - masked.sum(-1).double() / length[rows])
        query = Query(
            torch.where(masked, denoiser.mask_id, x[rows]), rank[rows] == k.unsqueeze(-1), valid[rows], rows, time
        )
        nats[rows, k] = -_surprise(denoiser, query, x[rows])
        if on_batch is not None:
            on_batch(len(rows))
    return _total(nats)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        whole(name, value)


def _to_score(
    denoiser: Denoiser, x: Tokens, maskable: Tensor | None, schedule: Schedule | None
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"], Bool[Tensor, "batch length"]]:
    """Returns the tokens, where they are not padding, and which are to be scored, all checked."""
    check_denoiser(denoiser)
    x, valid = as_batch(x, denoiser)
    scored = valid if maskable is None else maskable.to(torch.bool) & valid
    if scored.shape != x.shape:
        raise ValueError(f"maskable must have shape {tuple(x.shape)}, got {tuple(scored.shape)}")
    if bool(((x == denoiser.mask_id) & valid).any()):
        raise ValueError("a likelihood needs complete sequences; these contain the mask token")
    nothing = ~scored.any(-1)
    if bool(nothing.any()):
        raise ValueError(f"sequence {int(nothing.nonzero()[0])} has no token to score")
    if getattr(denoiser, "wants_time", False) and schedule is None:
        raise ValueError("this denoiser is conditioned on time; pass the schedule that it was trained with")
    return x, valid, scored


@torch.no_grad()
def causal_likelihood(
    network: Callable[[Int[Tensor, "batch length"], Bool[Tensor, "batch length"]], Float[Tensor, "rows vocab"]],
    x: Int[Tensor, "batch length"],
    maskable: Bool[Tensor, "batch length"],
) -> Likelihood:
    """Returns the exact negative log-likelihood of the maskable tokens under a causal network, in nats.

    Args:
        network: A network that is called with complete sequences and the requested positions, such as a causal
            `unmask.models.networks.transformer.Transformer`: each row of logits depends only on earlier tokens.
        x: Complete sequences.
        maskable: True at the tokens that are scored.
    """
    nats = torch.zeros(x.shape, dtype=torch.float64)
    nats[maskable.cpu()] = F.cross_entropy(network(x, maskable), x[maskable], reduction="none").double().cpu()
    return Likelihood(nats.sum(1), torch.zeros(len(x), dtype=torch.float64), maskable.sum(1).cpu(), 1)


def _total(values: Float[Tensor, "*batch terms"]) -> Float[Tensor, "*batch"]:
    """Returns sums over the last axis, added in order, so that neither batch size nor padding changes a bit."""
    return values.cumsum(-1)[..., -1]


def _masks(
    scored: Tensor, length: Tensor, ids: Tensor, strata: int, replicates: int
) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"], Bool[Tensor, "rows length"]]:
    """Returns the sets of masks of all sequences, in order of sequence, replicate and stratum.

    Returns:
        The index of the sequence of each set, its number of masks, and True at its masks.
    """
    samples = strata * replicates
    index = torch.arange(samples, device=scored.device)
    u = uniforms(ids.unsqueeze(-1), index, Purpose.COUNT)
    share = (index % strata + u) / strata
    counts = (share * length.unsqueeze(-1)).floor().long().clamp(max=length.unsqueeze(-1) - 1) + 1
    # The permutation from which each set of masks takes a part, and where the part begins.
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
    """Returns `Σ_{i∈M} -log p_i(x_i)` of each row, with the mask token excluded from the model's distribution."""
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
