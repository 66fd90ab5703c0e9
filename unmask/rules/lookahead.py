"""Looking ahead: the steps that a rule is likely to make next, verified together, token for token.

A rule that unmasks several positions at once is a chain of states too: each names the next set of positions and, at
their own uniforms, its tokens. A turn lays out the states that a *draft* of sets leads through, asks for all of them at
once, and walks along while the rule does in each state what was drafted. So the tokens are those of the rule alone,
with the same seed and any denoiser, in at most as many evaluations one after the other. `Speculative` is the same for
one position at a time.

The draft costs no evaluation of its own: the rule is applied to the marginals of the last state again and again, each
time to the candidates that are left, and their tokens are drawn from those marginals, some steps out of date.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..sampling.blocks import open_block
from ..sampling.conversation import Answer, Ask, Conversation, LawKind, Move, Situation
from ..sampling.state import Memory
from ..sampling.view import View, spread
from .ranked import Rule
from .speaker import Alone, Speaker


@dataclass(frozen=True)
class Drafted:
    """The steps that are expected next.

    Attributes:
        numbers: The memory of the rule's budget.
        step: The step, counted from 1, in which each position is expected to be unmasked; 0 for none.
        token: The token that each position is expected to take.
    """

    numbers: Float[Tensor, "rows memory"]
    step: Int[Tensor, "rows length"] | None = None
    token: Int[Tensor, "rows length"] | None = None

    def steps(self, like: Int[Tensor, "rows length"]) -> tuple[Tensor, Tensor]:
        """Returns steps and tokens, which are empty before there is a draft."""
        nothing = torch.zeros_like(like)
        return (nothing, nothing) if self.step is None or self.token is None else (self.step, self.token)

    def select(self, rows: Int[Tensor, " kept"]) -> Drafted:
        """Some of the rows, in the given order."""
        if self.step is None or self.token is None:
            return Drafted(self.numbers[rows])
        return Drafted(self.numbers[rows], self.step[rows], self.token[rows])

    def put(self, rows: Int[Tensor, " part"], part: Drafted) -> Drafted:
        """Returns this memory with some rows replaced."""
        numbers = self.numbers.index_copy(0, rows, part.numbers)
        if part.step is None or part.token is None:
            return replace(self, numbers=numbers)
        step, token = self.steps(part.step.new_zeros(len(numbers), part.step.shape[1]))
        return Drafted(numbers, step.index_copy(0, rows, part.step), token.index_copy(0, rows, part.token))

    def resize(self, length: int) -> Drafted:
        """Returns this memory for sequences with more padding, or with less."""
        if self.step is None or self.token is None:
            return self
        more = (0, length - self.step.shape[1])
        pad = torch.nn.functional.pad
        return Drafted(self.numbers, pad(self.step, more), pad(self.token, more))

    def join(self, others: Sequence[Drafted]) -> Drafted:
        """These rows, then those of the others."""
        parts = [self, *others]
        numbers = torch.cat([part.numbers for part in parts])
        like = next((part.step for part in parts if part.step is not None), None)
        if like is None:
            return Drafted(numbers)
        pairs = [part.steps(like.new_zeros(len(part.numbers), like.shape[1])) for part in parts]
        return Drafted(numbers, torch.cat([step for step, _ in pairs]), torch.cat([token for _, token in pairs]))


@dataclass(frozen=True)
class Lookahead(Alone):
    """A rule, with up to `depth` of its next steps verified in the same evaluation: the same tokens, fewer evaluations.

    The price: each evaluation computes up to `depth + 1` states. The bound that a step reports is that of all its
    positions at once, which is at least the sum over the rule's own steps.

    Args:
        rule: A rule made of an order and a budget without conversations of their own.
        depth: The number of steps drafted ahead.

    Raises:
        ValueError: If the depth is not a whole number >= 1, or a part of the rule has a conversation of its own.

    References:
        Sun, Li et al. (2026), arXiv:2605.15609, parallel speculative decoding: sets of positions by any policy, several
        steps deep, from one forward pass. It keeps the deepest draft that agrees with the new predictions; here a step
        stands only if the rule itself, in that state, makes it. Read from the abstract; no code was found.
    """

    rule: Rule
    depth: int = 2

    def __post_init__(self) -> None:
        whole("depth", self.depth)
        parts = (self.rule.order, self.rule.budget, self.rule.predictor)
        if any(isinstance(part, Speaker) for part in parts) or self.rule.predictor is not None:
            raise ValueError(f"looking ahead goes with rules that hold no conversation of their own, got {self.rule}")

    @property
    def law(self) -> LawKind:
        """How the exact law is computed: it is the law of the rule inside, whose tokens it draws."""
        return LawKind.SAME

    @property
    def no_law(self) -> str:
        """Why the exact law is not computed; empty if it is."""
        return self.rule.no_law

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        """Returns the initial memory of the rule inside, with no draft yet."""
        numbers = self.rule.start(masked)
        assert isinstance(numbers, Tensor)
        return Drafted(numbers)

    def turn(self, seen: Situation) -> Conversation:
        """Asks for the states that the draft leads through, and walks along them."""
        assert isinstance(seen.memory, Drafted)
        step, token = seen.memory.steps(seen.x)
        step = torch.where(seen.pending, step, 0)
        deep = [step.amax(-1) >= d for d in range(self.depth + 1)]  # which rows have a state so many steps ahead
        states = []
        for d in range(self.depth + 1):
            ahead = (step > 0) & (step <= d)
            pending = seen.pending & ~ahead
            row = (deep[d] & pending.any(-1)).nonzero().squeeze(-1)
            states.append((row, torch.where(ahead, token, seen.x)[row], open_block(pending, seen.block)[row]))
        row, x, where = (torch.cat(column) for column in zip(*states, strict=True))
        share = (x == seen.mask_id).sum(-1).double() / seen.valid[row].sum(-1)
        time = self.rule.time_of(seen, seen.noise[row], where, share)
        # A draft may lead to a state that cannot be, whose marginals are then not looked at.
        unsure = torch.arange(len(row), device=row.device) >= len(states[0][0])
        answer = yield Ask(where, x=x, row=row, time=time, unsure=unsure)
        return self._walk(seen, answer, [len(rows) for rows, _, _ in states], step, token)

    def _walk(self, seen: Situation, answer: Answer, counts: list[int], step: Tensor, token: Tensor) -> Move:
        """Takes the steps that the rule makes in the states that were evaluated."""
        assert isinstance(seen.memory, Drafted)
        numbers, going = seen.memory.numbers, torch.ones_like(seen.pending[:, 0])
        chosen = torch.zeros_like(seen.pending)
        tokens, number = torch.zeros_like(seen.x), torch.zeros_like(seen.x)
        draft_view: tuple[View, Tensor] | None = None
        assert answer.stats.top is not None
        # The rule alone would not get to a state that cannot be, and so the draft ends before it.
        impossible = answer.state[~answer.stats.top.isfinite()]
        sound = torch.ones(len(answer.ask.where), dtype=torch.bool, device=seen.x.device)
        sound = sound.index_fill(0, impossible, False)
        starts = [sum(counts[:d]) for d in range(len(counts))]
        for d, count in enumerate(counts):
            of = answer.ask.row[starts[d] : starts[d] + count] if answer.ask.row is not None else None
            assert of is not None
            here = torch.zeros_like(going).index_copy(0, of, sound[starts[d] : starts[d] + count]) & going
            if not bool(here.any()):
                break
            view, place = self._view(seen, answer, starts[d], count, of, here, numbers)
            picked, after = self.rule.choose(view)
            drawn = self._tokens(seen, answer, place, picked)
            chosen, number = chosen | picked, torch.where(picked, place, number)
            tokens = torch.where(picked, drawn, tokens)
            numbers = torch.where(here.unsqueeze(-1), after, numbers)
            draft_view = (view, place) if draft_view is None else _merge(draft_view, (view, place), here)
            expected = step == d + 1
            same = ~((picked != expected) | (picked & (drawn != token))).any(-1)
            going = here & same
        assert draft_view is not None
        memory = Drafted(numbers, *self._draft(seen, answer, draft_view, chosen, numbers))
        flat = torch.zeros_like(answer.index).index_copy(0, number[chosen], tokens[chosen])
        return Move(chosen, memory, answer, rows=number[chosen], tokens=flat)

    def _view(
        self, seen: Situation, answer: Answer, start: int, count: int, of: Tensor, here: Tensor, numbers: Tensor
    ) -> tuple[View, Int[Tensor, "rows length"]]:
        """What the rule sees of the states of one depth, and the row of the answer of each candidate."""
        where = torch.zeros_like(seen.candidate).index_copy(0, of, answer.ask.where[start : start + count])
        mine = (answer.state >= start) & (answer.state < start + count)
        candidate = where & here.unsqueeze(-1)
        number = spread(mine.nonzero().squeeze(-1), where, -1)
        masked = torch.zeros_like(where).index_copy(0, of, self._masked(seen, answer, start, count))
        view = View.blank(candidate, seen.noise, numbers, masked, seen.valid & ~masked)
        columns = {
            name: spread(getattr(answer.stats, name)[mine], where).masked_fill(~candidate, torch.inf)
            for name in ("entropy", "doubt", "closeness")
        }
        return replace(view, **columns), number

    def _masked(self, seen: Situation, answer: Answer, start: int, count: int) -> Bool[Tensor, "states length"]:
        assert answer.ask.x is not None
        assert answer.ask.row is not None
        x, row = answer.ask.x[start : start + count], answer.ask.row[start : start + count]
        return (x == seen.mask_id) & seen.valid[row]

    def _tokens(
        self, seen: Situation, answer: Answer, place: Tensor, picked: Bool[Tensor, "rows length"]
    ) -> Int[Tensor, "rows length"]:
        """The token that each position takes by its own uniform; 0 elsewhere."""
        row = picked.nonzero()[:, 0]
        drawn = seen.draw.tokens(answer.logits, place[picked], row, seen.token_noise[picked], answer.stats)
        return torch.zeros_like(seen.x).masked_scatter(picked, drawn)

    def _draft(
        self, seen: Situation, answer: Answer, view: tuple[View, Tensor], chosen: Tensor, numbers: Tensor
    ) -> tuple[Int[Tensor, "rows length"], Int[Tensor, "rows length"]]:
        """The next steps as the last marginals have them: the rule on what is left, again and again."""
        known, place = view
        step, token, left = torch.zeros_like(seen.x), torch.zeros_like(seen.x), known.candidate & ~chosen
        for d in range(1, self.depth + 1):
            if not bool(left.any()):
                break
            columns = {
                name: getattr(known, name).masked_fill(~left, torch.inf) for name in ("entropy", "doubt", "closeness")
            }
            masked = None if known.masked is None else known.masked & (left | ~known.candidate)
            some = replace(
                known,
                **columns,
                candidate=left,
                memory=numbers,
                masked=masked,
                known=None if masked is None else seen.valid & ~masked,
            )
            picked, numbers = self.rule.choose(some)
            step = torch.where(picked, d, step)
            token = torch.where(picked, self._tokens(seen, answer, place, picked), token)
            left = left & ~picked
        return step, token


def _merge(
    before: tuple[View, Tensor], now: tuple[View, Tensor], here: Bool[Tensor, " rows"]
) -> tuple[View, Int[Tensor, "rows length"]]:
    """The rows of the later one where it went on."""
    columns = {}
    for name in (column.name for column in fields(View)):
        values = getattr(now[0], name)
        if values is not None:
            columns[name] = torch.where(here.unsqueeze(-1), values, getattr(before[0], name))
    return replace(now[0], **columns), torch.where(here.unsqueeze(-1), now[1], before[1])
