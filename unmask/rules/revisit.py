"""What rules that mask again or edit have in common: a clock per block, and what is likely where a token stands.

A masked diffusion model knows nothing of a position that has its token: it was never trained to. What it can say is
what it would write there if it were masked, given everything else. `Plan.shadows` asks that: one more state per token
that is looked at, all in the same evaluation (they count as states evaluated, not as an evaluation). WINO's shadow
masks are the same in one row, by an attention mask.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.streams import Purpose
from ..sampling.conversation import Answer, Ask, Conversation, LawKind, Move, Situation
from ..sampling.state import Memory
from .speaker import Alone

_NEVER = torch.iinfo(torch.int64).max


def lowest_block(seen: Situation) -> Int[Tensor, " rows"]:
    """The number of the lowest block with masks."""
    return seen.block.masked_fill(~seen.pending, _NEVER).amin(-1)


def running(
    seen: Situation, clock: Float[Tensor, "rows 2"], steps: int
) -> tuple[Float[Tensor, " rows"], Int[Tensor, " rows"], Bool[Tensor, "rows length"]]:
    """Returns the current block of each sequence: the one whose clock runs, or else the lowest with masks.

    Args:
        seen: The situation.
        clock: How many steps are done, and of which block.
        steps: The number of steps of a whole clock.

    Returns:
        How many steps of the clock are done, the block, and its positions.
    """
    done, block = clock.unbind(-1)
    runs = (done > 0) & (done < steps)
    block = torch.where(runs, block.long(), lowest_block(seen))
    return torch.where(runs, done, 0.0), block, (seen.block == block.unsqueeze(-1)) & seen.valid


@dataclass(frozen=True)
class Noted:
    """A memory of some numbers per sequence and one number per position.

    Attributes:
        numbers: The numbers remembered of each sequence.
        note: The number noted for each position.
    """

    numbers: Float[Tensor, "rows memory"]
    note: Float[Tensor, "rows length"] | None = None

    def notes(self, like: Tensor) -> Float[Tensor, "rows length"]:
        """The notes; zeros before there are any."""
        return torch.zeros(like.shape, dtype=torch.float64, device=like.device) if self.note is None else self.note

    def select(self, rows: Int[Tensor, " kept"]) -> Noted:
        """Some of the rows, in the given order."""
        return Noted(self.numbers[rows], None if self.note is None else self.note[rows])

    def put(self, rows: Int[Tensor, " part"], part: Noted) -> Noted:
        """Returns this memory with some rows replaced."""
        numbers, note = self.numbers.index_copy(0, rows, part.numbers), self.note
        if part.note is not None:
            note = part.note.new_zeros(len(numbers), part.note.shape[1]) if note is None else note
            note = note.index_copy(0, rows, part.note)
        return Noted(numbers, note)

    def resize(self, length: int) -> Noted:
        """Returns this memory for sequences with more padding, or with less."""
        note = self.note
        return self if note is None else Noted(self.numbers, _padded(note, length))

    def join(self, others: Sequence[Noted]) -> Noted:
        """These rows, then those of the others."""
        parts = [self, *others]
        numbers = torch.cat([part.numbers for part in parts])
        length = next((part.note.shape[1] for part in parts if part.note is not None), None)
        if length is None:
            return Noted(numbers)
        blank = numbers.new_zeros(len(numbers), length)
        notes = [blank[: len(part.numbers)] if part.note is None else part.note for part in parts]
        return Noted(numbers, torch.cat(notes))


def _padded(note: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(note, (0, length - note.shape[1]))


@dataclass(frozen=True)
class Plan:
    """What a turn looks at: masks that may be written, and tokens that may be masked again or replaced.

    Attributes:
        seen: The situation.
        masks: Masks whose marginals are wanted.
        tokens: Positions with a token that are looked at.
        numbers: What the rule remembers, brought up to date for this turn.
    """

    seen: Situation
    masks: Bool[Tensor, "rows length"]
    tokens: Bool[Tensor, "rows length"]
    numbers: Float[Tensor, "rows memory"]

    def left(self, chosen: Bool[Tensor, "rows length"]) -> Bool[Tensor, " rows"]:
        """Where masks are left, of later blocks perhaps: a turn that changes nothing is then not the last."""
        return (self.seen.pending & ~chosen).any(-1)

    @cached_property
    def shadows(self) -> Ask:
        """Asks for the masks of each sequence as it stands, then for each token as if it were masked."""
        seen = self.seen
        main = self.masks.any(-1).nonzero().squeeze(-1)
        row, position = self.tokens.nonzero(as_tuple=True)
        one = torch.zeros_like(seen.x[row], dtype=torch.bool).scatter(1, position.unsqueeze(-1), True)
        return Ask(
            torch.cat([self.masks[main], one]),
            x=torch.cat([seen.x[main], seen.x[row].masked_fill(one, seen.mask_id)]),
            row=torch.cat([main, row]),
            # What was drawn together may be impossible, and then so is what is left of it.
            unsure=torch.cat([torch.zeros_like(main), torch.ones_like(row)]).bool(),
        )

    @cached_property
    def visible(self) -> Ask:
        """Asks for masks and tokens of each sequence as it stands, for networks that were trained to edit."""
        row = (self.masks | self.tokens).any(-1).nonzero().squeeze(-1)
        return Ask((self.masks | self.tokens)[row], x=self.seen.x[row], row=row)

    def place(self, answer: Answer) -> Int[Tensor, " positions"]:
        """Where each row of an answer belongs, as an index into the flattened situation."""
        length = self.seen.x.shape[1]
        return answer.row * length + answer.index % length

    def spread(self, answer: Answer, values: Tensor, fill: float | int) -> Tensor:
        """Puts a value per row of an answer at its place."""
        flat = torch.full((self.seen.x.numel(),), fill, dtype=values.dtype, device=values.device)
        return flat.index_copy(0, self.place(answer), values).view(self.seen.x.shape)

    def rows(self, answer: Answer, chosen: Bool[Tensor, "rows length"]) -> Int[Tensor, " chosen"]:
        """The row of an answer that belongs to each chosen position."""
        number = torch.arange(len(answer.index), device=chosen.device)
        return self.spread(answer, number, -1)[chosen]

    def likelihood(self, answer: Answer, tokens: Int[Tensor, "rows length"]) -> Float[Tensor, "rows length"]:
        """The log-probability of a token at each place that was looked at; `-inf` where that is impossible."""
        token = tokens.flatten()[self.place(answer)].unsqueeze(-1)
        norm = answer.stats.log_norm.double()
        log_p = answer.logits.gather(1, token).squeeze(-1).double() - norm
        return self.spread(answer, log_p.nan_to_num(nan=-torch.inf), 0.0)


class Revisits(Alone):
    """A rule whose turn is a plan, a question, a token for each mask, and a move that follows from them.

    Exact laws follow all tokens that may be drawn (`unmask.oracles.visits`), and need the move to be a function of
    situation, answer and tokens.
    """

    @property
    def law(self) -> LawKind:
        """How the exact law is computed: by following the rule's turns."""
        return LawKind.VISITS

    @property
    def no_law(self) -> str:
        """Why the exact law is not computed; empty if it is."""
        return ""

    @abstractmethod
    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        """Returns the initial memory."""

    @abstractmethod
    def plan(self, seen: Situation) -> Plan:
        """Returns what the turn looks at."""

    def question(self, plan: Plan) -> Ask:
        """Returns the question that the turn asks."""
        return plan.shadows

    def draw(self, plan: Plan, answer: Answer) -> Int[Tensor, "rows length"]:
        """Returns the token that each mask would take; 0 elsewhere."""
        seen, masked = plan.seen, plan.masks.flatten()[plan.place(answer)]
        rows = masked.nonzero().squeeze(-1)
        uniform = seen.fresh(Purpose.TOKEN).flatten()[plan.place(answer)[rows]]
        tokens = torch.zeros_like(answer.index)
        tokens[rows] = seen.draw.tokens(answer.logits, rows, answer.row[rows], uniform, answer.stats)
        return plan.spread(answer, tokens, 0)

    @abstractmethod
    def move(self, plan: Plan, answer: Answer, tokens: Int[Tensor, "rows length"]) -> Move:
        """Returns the move, given the token that each mask would take."""

    def turn(self, seen: Situation) -> Conversation:
        """Holds one turn.

        Raises:
            ValueError: If the denoiser wants the time: a sequence that is masked again is at none.
        """
        if seen.wants_time:
            raise ValueError(f"{self} goes back and forth, so it is at no time; give a denoiser that ignores the time")
        plan = self.plan(seen)
        if not bool((plan.masks | plan.tokens).any()):  # what was left has been let go of
            nothing = torch.zeros_like(seen.candidate)
            return Move(nothing, plan.numbers, None, more=plan.left(nothing))
        answer = yield self.question(plan)
        return self.move(plan, answer, self.draw(plan, answer))


def write(plan: Plan, answer: Answer, tokens: Int[Tensor, "rows length"]) -> Int[Tensor, " positions"]:
    """Tokens at their places as tokens per row of an answer, as a `Move` takes them."""
    return tokens.flatten()[plan.place(answer)]
