"""Gibbs correction: after a rule has written everything, positions are masked one at a time and drawn again."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sampling.conversation import Ask, Conversation, LawKind, Move, Situation
from ..sampling.state import Memory
from ..sampling.view import spread
from .ranked import Rule
from .scored import Noisy
from .speaker import Alone, Speaker


@dataclass(frozen=True)
class Gibbs(Alone):
    """Writes everything by `rule`, then draws `⌈sweeps · n⌉` positions again, each given all others.

    Whether a position is chosen depends on nothing that was drawn: they come from left to right, every `1/sweeps`-th of
    them if there is less than one sweep. So with exact conditionals a correction leaves the law of the data alone, and
    takes any other law nearer to it: `KL(data ‖ sampler)` never grows, because both go through the same channel. Each
    costs one evaluation.

    It ends as the corrections are counted. With blocks all blocks are written first.

    Args:
        rule: Writes everything. Its budget must not count what it has admitted, as it admits positions again.
        sweeps: Corrections per position, above 0.

    Raises:
        ValueError: If `sweeps` is not a finite number > 0, or the rule does not draw single positions from their
            marginals.

    References:
        Geman and Geman (1984), the Gibbs sampler in systematic scan.
    """

    rule: Rule
    sweeps: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sweeps < math.inf:
            raise ValueError(f"sweeps must be a finite number > 0, got {self.sweeps}")
        rule = self.rule
        plain = not isinstance(rule.order, Speaker) or isinstance(rule.order, Noisy)
        counts = getattr(rule.budget, "counts", False) or isinstance(rule.budget, Speaker)
        if not plain or counts or rule.predictor is not None:
            raise ValueError(
                f"corrections go with a rule that draws from marginals and keeps no count of what it has admitted, such"
                f" as Rule(Entropy(), EntropyBound(gamma)); got {rule}"
            )

    @property
    def law(self) -> LawKind:
        """That of the rule, through one channel per correction."""
        return LawKind.CORRECTED

    @property
    def no_law(self) -> str:
        """Why the exact law is not computed; empty if it is."""
        return self.rule.no_law

    def visits(self, positions: int) -> int:
        """How many corrections sequences with so many positions get."""
        return math.ceil(self.sweeps * positions - 1e-9)

    def position(self, visit: Tensor, positions: Tensor) -> Int[Tensor, "..."]:
        """Which position a correction is about, counted from the left: the first visit is number 0."""
        return (visit * max(1.0, 1 / self.sweeps) + 1e-9).floor().long() % positions.clamp(min=1)

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        """How many corrections have begun, and what the rule remembers."""
        inner = self.rule.start(masked)
        assert isinstance(inner, Tensor)
        return torch.cat([inner.new_zeros(len(inner), 1), inner], -1)

    def turn(self, seen: Situation) -> Conversation:
        """A turn of the rule; if then everything is written, the next position is masked again."""
        begun, masked = seen.numbers[:, 0], seen.candidate.any(-1)
        move = Move(torch.zeros_like(seen.candidate), seen.numbers[:, 1:], None)
        if bool(masked.any()):
            move = yield from self.written(replace(seen, memory=seen.numbers[:, 1:]), masked)
        assert isinstance(move.memory, Tensor)
        full = ~(seen.pending & ~move.chosen).any(-1)
        stands = seen.editable & (~seen.masked | move.chosen)
        count = stands.sum(-1)
        most = (self.sweeps * count.double() - 1e-9).ceil()
        erase = self.pick(seen, stands, begun, count) & (full & (begun < most)).unsqueeze(-1)
        begun = begun + erase.any(-1)
        memory = torch.cat([begun.unsqueeze(-1), move.memory], -1)
        # Masks that are left may be let go of before they are written (text after its end): that is not the end here.
        return replace(move, memory=memory, erase=erase, more=~full | (begun < most))

    def written(self, seen: Situation, masked: Bool[Tensor, " rows"]) -> Conversation:
        """The turn of the rule, about sequences with masks only."""
        talk = self.rule.turn(seen)
        ask = next(talk)
        row = masked.nonzero().squeeze(-1)
        time = None if ask.time is None else ask.time[row]
        answer = yield ask if len(row) == len(masked) else Ask(ask.where[row], x=seen.x[row], row=row, time=time)
        try:
            talk.send(answer)
        except StopIteration as end:
            move: Move = end.value
            number = spread(torch.arange(len(answer.index), device=row.device), ask.where, -1)
            return replace(move, rows=number[move.chosen])
        raise AssertionError(f"{self.rule} asked twice")

    def pick(
        self, seen: Situation, stands: Bool[Tensor, "rows length"], begun: Float[Tensor, " rows"], count: Tensor
    ) -> Bool[Tensor, "rows length"]:
        """The position of each row that is drawn again, of those that have a token or get one in this turn."""
        number = self.position(begun, count).unsqueeze(-1)
        return stands & (stands.cumsum(-1) - 1 == number)
