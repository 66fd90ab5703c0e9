"""The exact expected number of evaluations of a speculative rule.

Given the final sequence and the random order, the visited states are known. Whether a step continues from one state to
the next without a new evaluation then depends only on the uniform of the one position taken there: it does if the
draft, made at an earlier state of the path, names that position, and the same uniform gives the same token under the
marginals of both states. The uniform of a position matters only when the position is taken, so these events are
independent. Their probability is the overlap of the token's two intervals of the unit interval, divided by the length
of its interval in the state's own CDF. What remains is a Markov chain over the state at which the current draft was
made.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Query
from ..draws.categorical import RACE_FROM, draw_log_prob, forbid, marginals
from ..rules.ranked import Rule
from ..sampling.blocks import open_block, windows
from ..sampling.loop import Sampler
from ..sampling.view import View

_ROWS = 1 << 12
"""The largest number of (order, completion) pairs followed at once; each needs two numbers per position and step."""


@dataclass(frozen=True)
class Rounds:
    """Expected evaluations of a speculative rule.

    Attributes:
        nfe: Expected number of successive evaluations, under the sampler's own law.
        nfe_data: The same if the sequences are those of the data; NaN if the sampler cannot draw one of them.
        states: Expected number of states evaluated, under the sampler's own law.
    """

    nfe: float
    nfe_data: float
    states: float


def expected_rounds(
    sampler: Sampler,
    x: Int[Tensor, " length"],
    points: Int[Tensor, "points length"],
    log_p: Float[Tensor, " points"],
    orders: Float[Tensor, "orders length"],
    temperature: float,
    blocks: int | None,
) -> Rounds:
    """Computes the expected evaluations by following every completion in every order.

    Args:
        sampler: Denoiser, speculative rule and settings of the draw.
        x: The sequence to complete.
        points: All completions that the sampler can draw.
        log_p: Their log-probabilities under the data; NaN if these are not known.
        orders: The noise of random orders, one row per order; all have equal probability.
        temperature: The temperature of the draw.
        blocks: Window length, as in `sample`.

    Raises:
        ValueError: If the vocabulary is so large that tokens are not drawn by inverting the CDF (see `RACE_FROM`).
    """
    vocab = sampler.denoiser.vocab_size
    if vocab >= RACE_FROM:
        raise ValueError(f"exact evaluations of drafts are for vocabularies below {RACE_FROM} tokens, got {vocab}")
    pending = (x == sampler.denoiser.mask_id).unsqueeze(0)
    block = torch.zeros_like(pending, dtype=torch.int64) if blocks is None else windows(pending, blocks)
    totals = torch.zeros(3, dtype=torch.float64)
    for some in orders.split(max(1, _ROWS // max(1, len(points)))):
        for part in torch.arange(len(points)).split(_ROWS):
            target = points[part].repeat(len(some), 1)
            noise = some.repeat_interleave(len(part), 0)
            q, nfe, states = _follow(sampler, x, target, noise, block, temperature)
            p = log_p[part].exp().repeat(len(some))
            totals += torch.stack([(w * v)[w != 0].sum() for w, v in ((q, nfe), (p, nfe), (q, states))])
    return Rounds(*(totals / len(orders)).tolist())


def _follow(
    sampler: Sampler, x: Tensor, target: Tensor, noise: Tensor, block: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the probability of each target and, given its tokens, the expected evaluations and states evaluated."""
    mask, rule = sampler.denoiser.mask_id, sampler.rule
    assert isinstance(rule, Rule)
    walkers = torch.arange(len(target))
    x = x.expand_as(target)
    steps = int((x[:1] == mask).sum())
    memory = rule.start(torch.full((len(target),), steps))
    assert isinstance(memory, Tensor)
    most = memory.shape[1] // 2
    q, rounds, states = (torch.full((len(target),), value, dtype=torch.float64) for value in (1.0, 1.0, 1.0))
    low, high, drafts = [], [], []  # for every step: the interval of each position's token, and the drafted positions
    # The probability that the current draft was made at each earlier step; first column: there is no draft yet.
    made = torch.zeros(len(target), steps + 1, dtype=torch.float64)
    made[:, 0] = 1.0
    for step in range(steps):
        distinct, inverse = torch.unique(torch.cat([noise, x.double()], -1), dim=0, return_inverse=True)
        of_noise, of_x = distinct[:, : x.shape[1]].contiguous(), distinct[:, x.shape[1] :].long()
        candidate = open_block(of_x == mask, block.expand_as(of_x))
        query = Query(of_x, candidate, torch.ones_like(candidate), torch.arange(len(of_x)))
        logits = sampler.denoiser(query)
        stats = marginals(logits, sampler.settings.forbidden)
        chosen, memory = rule.select(View.blank(candidate, of_noise, memory[: len(of_x)]).measured(stats))
        allowed = forbid(logits, sampler.settings.forbidden)
        settings = {"temperature": temperature, "top_k": sampler.settings.top_k, "top_p": sampler.settings.top_p}
        cdf = torch.zeros(*of_x.shape, logits.shape[1] + 1, dtype=torch.float64)
        cdf[..., 1:][candidate] = draw_log_prob(allowed, **settings).exp().cumsum(-1)
        low.append(cdf[inverse].gather(-1, target.unsqueeze(-1)).squeeze(-1))
        high.append(cdf[inverse].gather(-1, target.unsqueeze(-1) + 1).squeeze(-1))
        drafts.append(memory[inverse, :most].long())
        taken = chosen.int().argmax(-1)[inverse]
        own_low, own_high = low[step][walkers, taken], high[step][walkers, taken]
        q *= own_high - own_low
        x = x.scatter(1, taken.unsqueeze(-1), target.gather(1, taken.unsqueeze(-1)))
        memory = memory.new_full((len(target), 2 * most), -1.0)
        if step == steps - 1:
            break
        goes_on = torch.zeros_like(made)
        for earlier in range(max(0, step - most), step):
            overlap = torch.minimum(own_high, high[earlier][walkers, taken])
            overlap = (overlap - torch.maximum(own_low, low[earlier][walkers, taken])).clamp(min=0)
            named = drafts[earlier][:, step - earlier - 1] == taken
            # For a token of probability 0 this is 0/0, NaN: the sampler cannot draw it.
            goes_on[:, earlier + 1] = torch.where(named, overlap / (own_high - own_low), 0.0)
        stops = (made * (1 - goes_on)).sum(-1)
        drafted = (drafts[step] >= 0).sum(-1)
        rounds += stops
        states += stops * (drafted + 1).clamp(max=steps - step - 1)
        made = made * goes_on
        made[:, step + 1] = stops
    return q, rounds, states
