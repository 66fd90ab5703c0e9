"""A rule made of parts: order + budget (+ clock, predictor). Most published samplers are a composition of these.

Such a rule asks one question: about all candidates if the order or the budget looks at marginals, and otherwise about
the positions it has chosen. A part that needs another conversation (a budget that verifies a draft, an order that sees
draws) brings its own, which replaces this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import RuleError
from ..sampling.conversation import Ask, Conversation, LawKind, Move, Situation
from ..sampling.state import Memory
from ..sampling.view import View
from .budget import Budget
from .history import history_of
from .order import Order
from .planning import planned
from .speaker import Speaker
from .ties import settled

if TYPE_CHECKING:
    from .clock import Clock
    from .predictor import Predictor


@dataclass(frozen=True)
class Rule:
    """Chooses which positions to unmask: ranks the candidates by `order` and takes as many as `budget` admits.

    It keeps no state of its own, so one object serves any number of batches, threads and exact laws.

    Attributes:
        order: Which positions to unmask first.
        budget: How many to unmask at once. An order or a budget that does not go with every rule has a method
            `fits(rule)`.
        clock: Says the diffusion time, for denoisers that are conditioned on it; `None` for all others.
        predictor: What to draw from instead of the marginals; `None` draws from the marginals.
    """

    order: Order
    budget: Budget
    clock: Clock | None = None
    predictor: Predictor | None = None

    def __post_init__(self) -> None:
        for part in (self.order, self.budget, self.clock, self.predictor):
            if isinstance(part, type):
                raise TypeError(
                    f"a rule is made of objects, not classes: {part.__name__}(...) instead of {part.__name__}"
                )
        uniform = self.order.random and self.order.marginal_free
        for part in (self.budget, self.predictor):
            if (part is self.predictor is not None or getattr(part, "needs_random_order", False)) and not uniform:
                raise ValueError(f"{part} goes with the uniform order, got {self.order}")
        for part in (self.order, self.budget):
            if (fits := getattr(part, "fits", None)) is not None:
                fits(self)

    @cached_property
    def _speakers(self) -> list[Speaker]:
        """The parts with a conversation of their own; that of the first one is used."""
        return [part for part in (self.budget, self.order, self.predictor) if isinstance(part, Speaker)]

    @cached_property
    def blind(self) -> bool:
        """True if neither order nor budget looks at the marginals: it can choose before anything is evaluated."""
        return not self._speakers and self.order.marginal_free and self.budget.marginal_free

    @property
    def asks_once(self) -> bool:
        """True if a turn asks one question, about the sequences as they are."""
        return all(part.asks_once for part in self._speakers)

    @property
    def waits(self) -> bool:
        """True if it looks at the marginals of all candidates before it chooses."""
        return not self.blind and all(part.waits for part in self._speakers)

    @property
    def law(self) -> LawKind:
        """How the exact law is computed."""
        return next((part.law for part in self._speakers), LawKind.PATH)

    @property
    def no_law(self) -> str:
        """Why the exact law is not computed; empty if it is."""
        return next((part.no_law for part in self._speakers if part.no_law), "")

    @property
    def history(self) -> int:
        """How many earlier evaluations each evaluation is compared with: 0 for most rules."""
        return history_of(self)

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        """Returns the initial memory of sequences that start with this many masks each."""
        numbers = self.budget.start(masked)
        return self._speakers[0].remember(numbers) if self._speakers else numbers

    def turn(self, seen: Situation) -> Conversation:
        """Asks once and chooses; a part with a conversation of its own takes the turn instead."""
        if self._speakers:
            return (yield from self._speakers[0].turn(self, seen))
        time = self.time(seen)
        if self.blind:
            chosen, memory = self.choose(seen.view())
            return Move(chosen, memory, (yield Ask(chosen, time=time)))
        answer = yield Ask(seen.candidate, time=time)
        late = seen.late(answer)
        chosen = planned(self, seen, answer.stats) if late is None else None
        if chosen is not None:
            return Move(chosen, seen.memory, answer)
        chosen, memory = self.choose(seen.view().measured(answer.stats, late))
        return Move(chosen, memory, answer)

    def time(self, seen: Situation) -> Float[Tensor, " rows"] | None:
        """Returns the diffusion time of each sequence, or `None` if the denoiser is not conditioned on it.

        Raises:
            ValueError: If the denoiser is conditioned on time and the rule has no clock.
        """
        return self.time_of(seen, seen.noise, seen.candidate, seen.share) if seen.wants_time else None

    def time_of(
        self, seen: Situation, noise: Tensor, candidate: Tensor, share: Tensor
    ) -> Float[Tensor, " states"] | None:
        """Returns the diffusion time of any states of the sequences (see `Clock.time`)."""
        if not seen.wants_time:
            return None
        if self.clock is None:
            raise ValueError(
                "this denoiser wants to know the time, and the rule has no clock: add one, as in"
                " Rule(order, budget, MaskedFraction(schedule)), or use first_hitting() or ancestral(steps)"
            )
        return self.clock.time(noise, candidate, share)

    def select(
        self, view: View, key: Float[Tensor, "batch length"] | None = None
    ) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        """Returns the positions to unmask and the budget's memory after this step.

        Args:
            view: What the order and the budget look at.
            key: The key to rank by, lowest first; default: the key that the order computes from the view.

        Raises:
            RuleError: If the rule leaves a sequence without progress or takes a position that is not a candidate.
        """
        chosen, memory = self.choose(view, key)
        stuck = view.candidate.any(-1) > chosen.any(-1)
        if bool(stuck.any() | (chosen > view.candidate).any()):
            raise RuleError(f"{self} must unmask at least one candidate of every sequence, and candidates only")
        return chosen, memory

    def choose(
        self, view: View, key: Float[Tensor, "batch length"] | None = None
    ) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        """Does what `select` does, but leaves it to the caller to check the choice, once it is on the host."""
        key = self.order.key(view) if key is None else key
        key = key.masked_fill(~view.candidate, float("inf"))
        order = (key if self.order.marginal_free else settled(key)).argsort(
            dim=-1, stable=True
        )  # ties go to the lower position
        if view.last is not None:  # behind the other candidates, before what is none
            place = view.last.int().masked_fill_(~view.candidate, 2).gather(1, order)
            order = order.gather(1, place.argsort(dim=-1, stable=True))
        admitted, memory = self.budget.admit(view.ranked(order))
        chosen = torch.zeros_like(admitted).scatter_(1, order, admitted)
        if view.last is not None:
            others = view.candidate > view.last
            left = (others > chosen).any(-1, keepdim=True)
            chosen = chosen > (view.last & left)
            # A budget need not take the first of the ranking. If all that it took has to wait, the first one is taken.
            stuck = view.candidate.any(-1, keepdim=True) > chosen.any(-1, keepdim=True)
            chosen = chosen.scatter_add(1, order[:, :1], stuck)
        return chosen, memory
