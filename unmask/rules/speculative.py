"""Speculative verification: one position at a time in fewer evaluations, token for token.

One position at a time is a chain of states, each of which names the next position (the order, from the marginals of
that state) and its token (drawn from those marginals by the position's own noise). A turn lays out the states that a
*draft* of positions and tokens leads through, asks for all of them at once, and walks along them. The first state is
the sequence's own. In every state it takes the position and the token which that state names, and goes on to the next
state only if they are the drafted ones: only then is that the state the chain really goes to. So every token is the one
that `One()` would have drawn, whether or not the denoiser's states are consistent with each other, and at least one is
drawn per evaluation. Comparing the token alone is not enough: a position that the order no longer names would stand,
and what is drawn there has another law unless the denoiser is consistent.

The draft costs no evaluation of its own. It is read off the last state that was walked: the positions that follow the
taken one in its ranking, their tokens drawn from its marginals at their own uniforms, one token out of date. Nothing
has been evaluated before the first turn, so that one drafts nothing.

The uniforms are fixed per position, and a comparison involves that of the position being taken only. So the draft says
nothing about tokens that are still to be drawn, and the expected number of evaluations is exactly computable
(`unmask.oracles.speculation`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..sampling.blocks import open_block
from ..sampling.conversation import Answer, Ask, Conversation, LawKind, Move, Situation
from ..sampling.view import View, spread
from .budget import TopK, leading
from .speaker import Speaker

if TYPE_CHECKING:
    from .ranked import Rule


@dataclass(frozen=True)
class Speculative(Speaker):
    """One position at a time, like `One()`, with a draft of the next `draft` positions verified in the same evaluation.

    With the same seed the tokens are those of `One()`, whatever the denoiser, in at most as many evaluations one after
    the other. The price: each evaluation is a batch of up to `draft + 1` states. The memory is the draft: the positions
    that followed the admitted one in the ranking, -1 where there are none, then as many tokens.

    Args:
        draft: Number of positions drafted ahead.
        check_order: Whether a drafted position is kept only if the order, in the state it is taken in, names it too.
            False is for comparison: positions then depend on which drafts were kept. Every token is still drawn in its
            own state, so with exact conditionals the law is that of the data; but it is not the law of `One()`, and
            with an inconsistent denoiser it can be arbitrarily wrong.

    Raises:
        ValueError: If `draft` is not a whole number >= 1.
    """

    draft: int
    check_order: bool = True
    marginal_free: bool = field(default=True, init=False, repr=False)
    asks_once: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole("draft", self.draft)

    @property
    def law(self) -> LawKind:
        """How the exact law is computed: it is the law of one position at a time."""
        return LawKind.ONE if self.check_order else LawKind.NONE

    @property
    def no_law(self) -> str:
        """Why the exact law is not computed (without the order check); empty if it is."""
        if self.check_order:
            return ""
        return "without the order check positions depend on which drafts came true: judge that variant by samples"

    def fits(self, rule: Rule) -> None:
        """Raises `ValueError` if another part of the rule has a conversation of its own."""
        if isinstance(rule.order, Speaker) or rule.predictor is not None:
            other = rule.predictor or rule.order
            raise ValueError(f"{self} verifies draws at fixed uniforms from the marginals, and {other} changes them")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        """Returns an empty draft."""
        return torch.full((len(masked), 2 * self.draft), -1.0, dtype=torch.float64, device=masked.device)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        """Returns the first candidate; the memory holds the positions after it, still without tokens."""
        following = ranked.position.masked_fill(~ranked.candidate, -1)[:, 1 : 1 + self.draft]
        memory = torch.full_like(ranked.memory, -1.0)
        memory[:, : following.shape[1]] = following.to(memory.dtype)
        first = torch.ones_like(ranked.candidate[:, 0], dtype=torch.int64)
        return leading(first, ranked.candidate) & ranked.candidate, memory

    def turn(self, rule: Rule, seen: Situation) -> Conversation:
        """Asks for the states that the draft leads through, and walks along them: one or more tokens each.

        A denoiser whose results change with the size of the batch (as rounding on accelerators may) can change a token
        here as it can for any other rule.
        """
        draft = Draft.read(seen.numbers, seen.pending)
        states = States.of(seen.x, seen.pending, draft)
        row, depth = states.row, states.depth
        candidate = open_block(states.pending, seen.block[row])
        share = states.pending.sum(-1).double() / seen.valid[row].sum(-1)
        time = rule.time_of(seen, seen.noise[row], candidate, share)
        where = candidate
        if rule.order.marginal_free:  # then only what may be taken or drafted next is evaluated
            next_few = replace(rule, budget=TopK(self.draft + 1))
            where, _ = next_few.select(View.blank(candidate, seen.noise[row], seen.numbers[row]))
        answer = yield Ask(where, x=states.x, row=row, time=time, unsure=depth > 0)

        walkable = self._walkable(states, answer)
        view = View.blank(where, seen.noise[row], seen.numbers[row]).measured(answer.stats)
        chosen, memory = rule.select(view)
        taken = chosen.int().argmax(-1)
        guess = depth.clamp(max=self.draft - 1)
        guessed = draft.position[row, guess]
        if not self.check_order:
            stands = (depth < draft.size[row]) & where.gather(1, guessed.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            taken = torch.where(stands, guessed, taken)
        number = spread(torch.arange(len(answer.logits), device=row.device), where, -1)
        picked = number.gather(1, taken.unsqueeze(-1)).squeeze(-1)
        token = seen.draw.tokens(answer.logits, picked, row, seen.token_noise[row, taken])

        # A state goes on to the next one of its row if that is where its own position and token lead.
        follows = (taken == guessed) & (token == draft.token[row, guess])
        follows &= depth + 1 < torch.bincount(row[walkable], minlength=len(seen.x))[row]
        steps = torch.zeros(len(seen.x), self.draft + 1, dtype=torch.bool, device=row.device)
        steps[row, depth] = follows
        walked = 1 + steps.int().cumprod(-1).sum(-1)
        on_path, last = depth < walked[row], depth + 1 == walked[row]
        memory = self._redraft(seen, memory[last], answer, number[last])

        at = row[on_path], taken[on_path]
        unmasked = torch.zeros_like(seen.candidate).index_put(at, torch.ones_like(on_path[on_path]))
        rows = torch.zeros_like(seen.x).index_put(at, picked[on_path])[unmasked]
        tokens = torch.zeros_like(answer.index).index_put((picked[on_path],), token[on_path])
        return Move(unmasked, memory, answer, rows=rows, tokens=tokens, together=False)

    def _walkable(self, states: States, answer: Answer) -> Bool[Tensor, " states"]:
        """Returns which states can be walked: those before the first impossible state of their row.

        A draft may lead to an impossible state, for which a denoiser may return logits that are not a distribution. One
        at a time would never get there, so the draft ends before it.
        """
        assert answer.stats.top is not None
        bad = spread(~answer.stats.top.isfinite(), answer.ask.where, False).any(-1) & (states.depth > 0)
        end = torch.full((len(states.row),), len(states.row), device=states.row.device)
        end = end.scatter_reduce(0, states.row[bad], states.depth[bad], "amin")
        return states.depth < end[states.row]

    def _redraft(
        self,
        seen: Situation,
        memory: Float[Tensor, "batch memory"],
        answer: Answer,
        number: Int[Tensor, "batch length"],
    ) -> Float[Tensor, "batch memory"]:
        """Draws the tokens of the positions noted in memory, from the rows of the answer that `number` gives them."""
        position, token = memory.long().chunk(2, -1)
        row, place = (position >= 0).nonzero().unbind(-1)
        column = position[row, place]
        drawn = seen.draw.tokens(answer.logits, number[row, column], row, seen.token_noise[row, column])
        return torch.cat([position, token.index_put((row, place), drawn)], -1).to(memory.dtype)


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
        """Lays out the states; those without masks are left out, because there is nothing to evaluate."""
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
