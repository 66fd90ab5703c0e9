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


class Alone:
    """A rule that other libraries' loops and caches cannot serve, as it asks about states of its own or takes back."""

    @property
    def asks_once(self) -> bool:
        """False: a turn asks about several states of a sequence, or masks again or overwrites."""
        return False

    @property
    def waits(self) -> bool:
        """False: the rule cannot let some tokens wait, because drafts do not know them, or tokens may be replaced."""
        return False


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
