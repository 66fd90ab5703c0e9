"""An unmasking rule = clock + order + budget (+ predictor). A published sampler is a composition of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import RuleError
from ..sampling.view import View
from .blind import Dilated
from .budget import Budget
from .independence import IndependenceTest
from .order import Order
from .scored import Scored, ScoredOrder
from .speculative import Speculative

if TYPE_CHECKING:
    from .clock import Clock
    from .predictor import Predictor


@dataclass(frozen=True)
class Rule:
    """Chooses which positions to unmask: ranks the candidates by `order`, takes what `budget` admits.

    It is a function of what it sees, so one object serves any number of batches, threads and exact laws.

    Attributes:
        order: Which positions first.
        budget: How many at once.
        clock: What time it is, for denoisers that want to know; `None` suits all others.
        predictor: What to draw from instead of the marginals; `None` draws from them.
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
        if isinstance(self.budget, Dilated) and isinstance(self.order, ScoredOrder):
            raise ValueError(f"{self.budget} takes positions by their place; {self.order} would have no say")
        if self.speculates and (isinstance(self.order, ScoredOrder) or self.predictor is not None):
            other = self.predictor or self.order
            raise ValueError(
                f"{self.budget} verifies draws at fixed uniforms from the marginals, and {other} changes them"
            )
        if self.tests and (isinstance(self.order, ScoredOrder) or self.predictor is not None):
            raise ValueError(f"{self.budget} drafts from the marginals in an order of its own, not with {self.order}")

    @property
    def blind(self) -> bool:
        """True if neither order nor budget looks at the marginals: it can choose before anything is evaluated."""
        return self.order.marginal_free and self.budget.marginal_free and not self.history

    @property
    def history(self) -> int:
        """How many comparisons with the evaluation before it wants to see (see `rules.history`): 0 for most rules."""
        return max(getattr(self.budget, "history", 0), int(self.predictor is not None))

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        """Returns the rule memory of sequences that begin with so many masks."""
        return self.budget.start(masked)

    @property
    def speculates(self) -> bool:
        """True if several states are evaluated at once, to verify a draft (see `unmask.verification`)."""
        return isinstance(self.budget, Speculative)

    @property
    def tests(self) -> bool:
        """True if drafts are evaluated to find what is independent (see `unmask.independence`)."""
        return isinstance(self.budget, IndependenceTest)

    def select(
        self, view: View, scored: Scored | None = None
    ) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        """Returns the positions to unmask and the memory after it.

        Args:
            view: What every rule sees.
            scored: The scores, for a rule whose order ranks by them (`unmask.rules.scored`).

        Raises:
            RuleError: If the rule leaves a sequence without progress or takes a position that is no candidate.
        """
        chosen, memory = self.choose(view, scored)
        self.check(chosen, view.candidate)
        return chosen, memory

    def choose(
        self, view: View, scored: Scored | None = None
    ) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        """`select` for a caller who checks what was chosen himself, once it is on the host."""
        key = self.order.key(view) if scored is None else self.order.scored_key(scored)  # pyright: ignore
        key = key.masked_fill(~view.candidate, float("inf"))
        order = key.argsort(dim=-1, stable=True)  # stable: ties go to the lower position
        if view.last is not None:  # behind the other candidates, before what is none
            place = torch.where(view.candidate, view.last.int(), 2).gather(1, order)
            order = order.gather(1, place.argsort(dim=-1, stable=True))
        admitted, memory = self.budget.admit(view.ranked(order))
        chosen = admitted.new_zeros(admitted.shape).scatter_(1, order, admitted)
        if view.last is not None:
            left = (view.candidate & ~view.last & ~chosen).any(-1, keepdim=True)
            chosen = chosen & ~(view.last & left)
        return chosen, memory

    def check(self, chosen: Bool[Tensor, "batch length"], candidate: Bool[Tensor, "batch length"]) -> None:
        """Raises `RuleError` if a sequence is left without progress or a position was taken that is no candidate."""
        stuck = candidate.any(-1) > chosen.any(-1)
        if bool(stuck.any() | (chosen > candidate).any()):
            raise RuleError(f"{self} must unmask at least one candidate of every sequence, and candidates only")
