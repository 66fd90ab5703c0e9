"""Measuring a model's dependence profile: two evaluations that differ in one drawn token, many times."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..checks import whole
from ..denoiser import Denoiser, Query, check_denoiser
from ..draws.categorical import divergence, draw, forbid, marginals
from ..draws.streams import Purpose, derive, uniforms
from ..oracles.oracle import Oracle
from ..oracles.table import Sudoku4Denoiser
from ..rules.geometry import sudoku
from ..rules.named import named_rule
from ..rules.profile import SUMS, Line, Profile, share_bin
from ..sampling.batch import Tokens, as_batch, stream_ids
from ..sampling.sample import sample
from ..sampling.view import spread


@torch.no_grad()
def measure_profile(
    denoiser: Denoiser,
    x: Tokens,
    profile: Profile,
    *,
    maskable: Bool[Tensor, "batch length"] | None = None,
    draws: int = 4,
    repeats: int = 1,
    seed: int | None = None,
    streams: Iterable[int] | Int[Tensor, " batch"] | None = None,
    batch_size: int = 64,
    on_batch: Callable[[Profile], None] | None = None,
) -> Profile:
    """Adds movements of a model on complete sequences to a profile.

    Of each sequence `n ~ U{2..L}` of its `L` maskable tokens are masked at random; the model is evaluated on that
    context and then, for each of `draws` random masked positions `j`, on the context with `x_j ~ p_j` drawn. Then
    `KL(p_i(· | x_j) ‖ p_i)` of every other masked `i` is an unbiased estimate of `I(x_i; x_j | context)` under the
    model. The context is the data's, the token drawn the model's own: its temperature is 1. Every evaluation of a
    masked sequence counts as one; a context costs `1 + min(draws, n)`.

    Args:
        denoiser: The model; it must not want the time.
        x: Complete sequences.
        profile: What to add to; `Profile.empty(geometry)` to begin with.
        maskable: False at tokens that are always given, such as clues; default: all may be masked.
        draws: Positions drawn in each context, one at a time.
        repeats: Contexts per sequence.
        seed: Gives row `r` the stream `derive(seed, r)`. Pass either this or `streams`.
        streams: One 64-bit integer per sequence. A sequence's movements depend on nothing else.
        batch_size: Contexts per batch; the model sees as many sequences at once.
        on_batch: Called after each batch with the profile so far.

    Raises:
        ValueError: If a sequence contains a mask or has fewer than two maskable tokens, the geometry does not fit, or
            an argument is out of range.
        LogitsError: If the denoiser returns NaN, `+inf` or a row without mass.
    """
    check_denoiser(denoiser)
    if getattr(denoiser, "wants_time", False):
        raise ValueError("a dependence profile is by masked share, not time: give a denoiser that ignores the time")
    for name, value in (("draws", draws), ("repeats", repeats), ("batch_size", batch_size)):
        whole(name, value)
    x, valid = as_batch(x, denoiser)
    if maskable is not None and maskable.shape != x.shape:
        raise ValueError(f"maskable must have shape {tuple(x.shape)}, got {tuple(maskable.shape)}")
    free = valid if maskable is None else maskable.to(torch.bool) & valid
    if bool(((x == denoiser.mask_id) & valid).any()):
        raise ValueError("a profile is measured on complete sequences; these contain the mask token")
    if bool((free.sum(-1) < 2).any()):
        raise ValueError(
            f"sequence {int((free.sum(-1) < 2).nonzero()[0])} has fewer than two tokens that may be masked"
        )
    profile.geometry.check(x.shape[1])
    ids = stream_ids(seed, streams, len(x), x.device)
    rows = torch.arange(len(x), device=x.device).repeat(repeats)
    visits = torch.arange(repeats, device=x.device).repeat_interleave(len(x))
    for part in torch.arange(len(rows), device=x.device).split(batch_size):
        row, visit = rows[part], visits[part]
        profile = profile + _contexts(denoiser, x[row], valid[row], free[row], ids[row], visit, draws, profile)
        if on_batch is not None:
            on_batch(profile)
    return profile


def _contexts(
    denoiser: Denoiser, x: Tensor, valid: Tensor, free: Tensor, ids: Tensor, visit: Tensor, draws: int, like: Profile
) -> Profile:
    """The movements of one batch of contexts."""
    batch = torch.arange(len(x), device=x.device)
    position = torch.arange(x.shape[1], device=x.device)
    limit = free.sum(-1)
    share = uniforms(ids, torch.zeros_like(ids), Purpose.COUNT, visit)
    masks = 2 + (share * (limit - 1)).long().clamp(max=limit - 2)
    noise = uniforms(ids.unsqueeze(-1), position, Purpose.MASK, visit.unsqueeze(-1))
    token_noise = uniforms(ids.unsqueeze(-1), position, Purpose.TOKEN, visit.unsqueeze(-1))
    # The first of a random permutation are masked, and of those the first are drawn: a random one, and so on.
    rank = noise.masked_fill(~free, torch.inf).argsort(-1).argsort(-1)
    masked = rank < masks.unsqueeze(-1)
    context = torch.where(masked, denoiser.mask_id, x)
    before = denoiser(Query(context, masked, valid, batch))
    stats = marginals(before, [denoiser.mask_id])
    entropy = spread(stats.entropy.double(), masked, 0.0)
    level, fraction = like.level(entropy), like.fraction(masks, valid.sum(-1))
    known = (valid & ~masked).cumsum(-1)
    found = _Sums(like, len(x))
    evaluations = len(x)
    for turn in range(draws):
        drawn = masked & (rank == turn)
        live = drawn.any(-1)
        rest = masked & ~drawn & live.unsqueeze(-1)
        token = draw(forbid(before[drawn[masked]], [denoiser.mask_id]), token_noise[drawn])
        filled = context.masked_scatter(drawn, token)
        after = denoiser(Query(filled[live], rest[live], valid[live], batch[live]))
        evaluations += int(live.sum())
        movement = divergence(after, before[rest[masked]], [denoiser.mask_id])
        row, i = rest.nonzero().unbind(-1)
        j = drawn.to(torch.uint8).argmax(-1)[row]
        cell = like.geometry.pairs(i, j) * like.fractions + fraction[row]
        screened = known[row, i] != known[row, j] if like.geometry.screens == 2 else 0
        fine = (cell * like.geometry.screens + screened) * (len(like.levels) + 1)
        fine = fine + torch.minimum(level[row, i], level[row, j])
        found.add(cell, fine, row, movement, torch.minimum(entropy[row, i], entropy[row, j]))
    return found.profile(evaluations)


class _Sums:
    """Adds up the movements of a batch."""

    def __init__(self, like: Profile, contexts: int) -> None:
        self.like = like
        self.sums = {name: torch.zeros_like(getattr(like, name)) for name in SUMS}
        self.seen = torch.zeros(contexts, like.pairs.numel(), dtype=torch.bool)
        self.own = torch.zeros(2, contexts, like.squares[0].numel(), dtype=torch.float64)

    def add(self, cell: Tensor, fine: Tensor, context: Tensor, movement: Tensor, smaller: Tensor) -> None:
        """Adds movements, given their coarse and fine cells, their contexts and smaller entropies."""
        cell, fine, context, movement, smaller = (t.cpu() for t in (cell, fine, context, movement, smaller))
        one = torch.ones_like(movement)
        for name, values in (("pairs", one), ("total", movement), ("smaller", smaller)):
            self.sums[name].view(-1).index_add_(0, fine, values)
        share = (movement / smaller).nan_to_num(0.0, torch.inf)  # 0/0 where the answer is certain
        bins = self.sums["moves"].shape[-1]
        self.sums["moves"].view(-1).index_add_(0, fine * bins + share_bin(share), one)
        self.seen[context, fine] = True
        flat = context * self.own.shape[2] + cell
        self.own[0].view(-1).index_add_(0, flat, movement)
        self.own[1].view(-1).index_add_(0, flat, one)

    def profile(self, evaluations: int) -> Profile:
        """What was added, as a profile."""
        s, n = self.own
        squares = torch.stack([(s * s).sum(0), (s * n).sum(0), (n * n).sum(0)])
        self.sums["squares"] = squares.view_as(self.like.squares)
        self.sums["contexts"] = self.seen.sum(0).double().view_as(self.like.contexts)
        return replace(self.like, **self.sums, measured=len(self.seen), evaluations=evaluations)


def oracle_samples(oracle: Oracle, length: int, numbers: Iterable[int], seed: int) -> Int[Tensor, "samples length"]:
    """Draws samples of an oracle, exactly: one token at a time. Each number names one, whatever the others are."""
    streams = [derive(seed, "data", number) for number in numbers]
    blank = torch.full((len(streams), length), oracle.mask_id)
    return sample(oracle, blank, named_rule("left-to-right").rule, streams=streams).tokens


def oracle_profile(oracle: Oracle, length: int, *, contexts: int = 400, draws: int = 4, seed: int = 0) -> Profile:
    """Measures the profile of an oracle on samples of its own.

    Args:
        oracle: Any; the 4×4 Sudoku gets its relations, the others a line.
        length: The length of its sequences.
        contexts: How many samples, one context each.
        draws: See `measure_profile`.
        seed: The seed of samples and contexts.
    """
    geometry = sudoku(2) if isinstance(oracle, Sudoku4Denoiser) else Line.of(length)
    x = oracle_samples(oracle, length, range(contexts), seed)
    streams = [derive(seed, number) for number in range(contexts)]
    return measure_profile(oracle, x, Profile.empty(geometry), draws=draws, streams=streams)
