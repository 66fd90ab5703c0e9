"""Parts of a rule that hold a conversation of their own, instead of the one question that most rules ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float
from torch import Tensor

from ..sampling.conversation import LawKind

if TYPE_CHECKING:
    from ..sampling.conversation import Conversation, Situation
    from ..sampling.state import Memory
    from .ranked import Rule


class Speaker:
    """A budget, an order or a predictor that holds the rule's conversation.

    Attributes:
        asks_once: See `AnyRule`.
        waits: See `AnyRule`.
    """

    asks_once: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    @property
    def law(self) -> LawKind:
        """How the exact law of a rule with this part is found."""
        return LawKind.PATH

    @property
    def no_law(self) -> str:
        """Why the exact law is not computed; empty if it is."""
        return ""

    def turn(self, rule: Rule, seen: Situation) -> Conversation:
        """Holds one turn of a rule with this part."""
        raise NotImplementedError

    def remember(self, numbers: Float[Tensor, "batch memory"]) -> Memory:
        """What a rule with this part remembers, given what its budget does."""
        return numbers
