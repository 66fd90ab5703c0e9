"""Speculative verification: the loop's step for `Speculative`, one at a time in fewer evaluations, token for token.

One position at a time is a chain of states, each of which names the next position (the order, from the marginals of
that state) and its token (those marginals, inverted at the position's own uniform). A step lays out the states that a
*draft* of positions and tokens leads through, evaluates all of them as one batch, and walks along them. The first
state is the sequence's own. In every state it takes the position and the token which that state names, and goes on to
the next state only if they are the drafted ones: only then is that the state the chain really goes to. So every token
is the one that `One()` would have drawn, whether or not the denoiser's states are consistent with each other, and at
least one is drawn per evaluation. Comparing the token alone is not enough: a position that the order no longer names
would stand, and what is drawn there has another law unless the denoiser is consistent.

The draft costs no evaluation of its own. It is read off the last state that was walked: the positions that follow the
taken one in its ranking, their tokens drawn from its marginals at their own uniforms, one token out of date. Nothing
has been evaluated before the first step, so that one drafts nothing.

The uniforms are fixed per position, and a comparison involves that of the position being taken only. So the draft
says nothing about tokens that are still to be drawn, and the expected number of evaluations is exactly computable
(`unmask.oracles.speculation`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .denoiser import Query
from .draws.categorical import Marginals, forbid, log_prob, most_probable
from .errors import LogitsError
from .rules.budget import TopK
from .rules.rule import Rule
from .rules.speculative import Speculative
from .sampling.blocks import open_block
from .sampling.result import StepInfo
from .sampling.view import View, spread

if TYPE_CHECKING:
    from .sampling.loop import Sampler, State


@dataclass(frozen=True)
class Draft:
    """The positions and tokens guessed for each sequence, in order; only the first `size` of a row count."""

    position: Int[Tensor, "batch draft"]
    token: Int[Tensor, "batch draft"]
    size: Int[Tensor, " batch"]

    @staticmethod
    def read(memory: Float[Tensor, "batch memory"], pending: Bool[Tensor, "batch length"]) -> Draft:
        """Unpacks the rule's memory, leaving out what is not masked (a state may have been edited since)."""
        position, token = memory.long().chunk(2, -1)
        usable = (position >= 0) & pending.gather(1, position.clamp(min=0))
        order = (~usable).to(torch.int8).argsort(dim=-1, stable=True)
        return Draft(position.gather(1, order), token.gather(1, order), usable.sum(-1))


@dataclass(frozen=True)
class States:
    """The states that drafts lead through, those of one sequence together, from its own state on.

    Attributes:
        row: The sequence each belongs to, as a row of the draft.
        depth: How many drafted tokens it holds.
        x: Its tokens.
        pending: Its masks.
    """

    row: Int[Tensor, " states"]
    depth: Int[Tensor, " states"]
    x: Int[Tensor, "states length"]
    pending: Bool[Tensor, "states length"]

    @staticmethod
    def of(x: Int[Tensor, "batch length"], pending: Bool[Tensor, "batch length"], draft: Draft) -> States:
        """Lays them out; a state without masks is left out, as there is nothing to evaluate."""
        batch, length = x.shape
        most = draft.position.shape[1]
        number = torch.arange(most + 1, device=x.device)
        count = torch.minimum(draft.size + 1, pending.sum(-1))
        row, depth = (number < count.unsqueeze(-1)).nonzero().unbind(-1)
        # The number of each position in the draft, `most` if it is not in it; unused entries go to a spare column.
        place = torch.where(number[:-1] < draft.size.unsqueeze(-1), draft.position, length)
        rank = torch.full((batch, length + 1), most, device=x.device).scatter(1, place, number[:-1].expand(batch, -1))
        rank = rank[:, :length]
        token = draft.token.gather(1, rank.clamp(max=most - 1))
        filled = rank[row] < depth.unsqueeze(-1)
        return States(row, depth, torch.where(filled, token[row], x[row]), pending[row] & ~filled)

    def keep(self, which: Bool[Tensor, " states"]) -> States:
        """Some of them."""
        return States(self.row[which], self.depth[which], self.x[which], self.pending[which])


@torch.no_grad()
def advance(sampler: Sampler, state: State, live: Int[Tensor, " rows"], candidates: int = 0) -> tuple[State, StepInfo]:
    """Makes one step of the sequences `live`: one evaluation of a batch of states, one or more tokens each.

    With `candidates`, the information also has so many of the most probable tokens of each position unmasked.

    A denoiser whose results change with the size of the batch (as rounding on accelerators may) can change a token
    here as it can for any other rule.
    """
    rule, budget = sampler.rule, sampler.rule.budget
    assert isinstance(budget, Speculative)
    x, pending, valid = state.x[live], state.pending[live], state.valid[live]
    draft = Draft.read(state.memory[live], pending)
    states = States.of(x, pending, draft)
    evaluations = torch.bincount(states.row, minlength=len(live))
    noise, row = state.order_noise[live], states.row
    candidate = open_block(states.pending, state.block[live][row])
    time = sampler._time(noise[row], candidate, states.pending, valid[row])
    where = candidate
    if rule.order.marginal_free:  # then only what may be taken or drafted next is evaluated
        next_few = Rule(rule.order, TopK(budget.draft + 1))
        where, _ = next_few.select(View.blank(candidate, noise[row], state.memory[live][row]))
    kept, logits, stats = _evaluate(sampler, Query(states.x, where, valid[row], live[row], time), states)
    states, where, candidate = states.keep(kept), where[kept], candidate[kept]
    row, depth = states.row, states.depth

    chosen, memory = rule.select(View.blank(where, noise[row], state.memory[live][row]).measured(stats))
    taken = chosen.int().argmax(-1)
    guess = depth.clamp(max=budget.draft - 1)
    guessed = draft.position[row, guess]
    if not budget.check_order:
        stands = (depth < draft.size[row]) & where.gather(1, guessed.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        taken = torch.where(stands, guessed, taken)
    number = spread(torch.arange(len(logits), device=x.device), where, -1)
    picked = number.gather(1, taken.unsqueeze(-1)).squeeze(-1)
    token_noise, temperature = state.token_noise[live], state.temperature[live]
    token = sampler._draw(logits, picked, token_noise[row, taken], temperature[row])

    # A state goes on to the next one of its row if that is where its own position and token lead.
    follows = (taken == guessed) & (token == draft.token[row, guess])
    follows &= depth + 1 < torch.bincount(row, minlength=len(live))[row]
    steps = torch.zeros(len(live), budget.draft + 1, dtype=torch.bool, device=x.device)
    steps[row, depth] = follows
    walked = 1 + steps.int().cumprod(-1).sum(-1)
    on_path, last = depth < walked[row], depth + 1 == walked[row]
    memory = _redraft(sampler, memory[last], logits, number[last], token_noise, temperature)

    at = row[on_path], taken[on_path]

    def dense(values: Tensor) -> Tensor:
        """Values of the states on the path, at the position each took."""
        values = values[on_path]
        return torch.zeros(x.shape, dtype=values.dtype, device=x.device).index_put(at, values)

    unmasked = dense(torch.ones_like(on_path))
    seen = torch.zeros(x.shape, dtype=torch.int64, device=x.device).index_add(0, at[0], candidate[on_path].long())
    info = StepInfo(
        sequence=live,
        candidate=seen > 0,
        chosen=unmasked,
        tokens=dense(token)[unmasked],
        log_prob=dense(log_prob(logits[picked], stats.log_norm[picked], token))[unmasked],
        entropy=dense(stats.entropy[picked])[unmasked],
        bound=torch.zeros(len(live), dtype=torch.float64, device=x.device),  # nothing is drawn together
        forward_passes=1,
        evaluations=evaluations,
    )
    if candidates:
        of_chosen = dense(picked)[unmasked]
        top = most_probable(logits[of_chosen], stats.log_norm[of_chosen], candidates, sampler.forbidden)
        info = replace(info, top_tokens=top[0], top_log_prob=top[1])
    return replace(
        state,
        x=state.x.index_copy(0, live, torch.where(unmasked, dense(token), x)),
        pending=state.pending.index_copy(0, live, pending & ~unmasked),
        memory=state.memory.index_copy(0, live, memory),
        nfe=state.nfe.index_add(0, live, torch.ones_like(live)),
        evaluations=state.evaluations.index_add(0, live, evaluations),
    ), info


def _redraft(
    sampler: Sampler,
    memory: Float[Tensor, "batch memory"],
    logits: Float[Tensor, "rows vocab"],
    number: Int[Tensor, "batch length"],
    token_noise: Float[Tensor, "batch length"],
    temperature: Float[Tensor, " batch"],
) -> Float[Tensor, "batch memory"]:
    """Draws the tokens of the positions noted in memory, from the rows of the logits that `number` gives them."""
    position, token = memory.long().chunk(2, -1)
    row, place = (position >= 0).nonzero().unbind(-1)
    column = position[row, place]
    drawn = sampler._draw(logits, number[row, column], token_noise[row, column], temperature[row])
    return torch.cat([position, token.index_put((row, place), drawn)], -1).to(memory.dtype)


def _evaluate(
    sampler: Sampler, query: Query, states: States
) -> tuple[Bool[Tensor, " states"], Float[Tensor, "rows vocab"], Marginals]:
    """Evaluates the states; returns which can be walked, and the logits and statistics of those.

    A draft may lead to a state that cannot be, and of which a denoiser says so with logits that are no distribution.
    One at a time would never be there, so the row's draft ends before it. A sequence's own state is an error as ever.
    """
    logits = sampler._logits(query)
    kept = torch.ones_like(states.row, dtype=torch.bool)
    try:
        return kept, logits, sampler._statistics(query, logits)
    except LogitsError:
        broken = ~forbid(logits, sampler.forbidden).amax(-1).isfinite()
    bad = spread(broken, query.where, False).any(-1)
    end = torch.full((len(states.row),), len(states.row), device=states.row.device)  # of each row's draft
    end = end.scatter_reduce(0, states.row[bad], states.depth[bad], "amin").clamp(min=1)
    kept = states.depth < end[states.row]
    logits = logits[kept[query.where.nonzero()[:, 0]]]
    query = replace(query, x=query.x[kept], where=query.where[kept], sequence=query.sequence[kept])
    return kept, logits, sampler._statistics(query, logits)
