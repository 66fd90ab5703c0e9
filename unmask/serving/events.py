"""What an engine tells of a request while it is worked on. Events are values: they cross from thread to thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..language.asked import Asked
from ..language.completion import Completion
from ..language.turns import Change


@dataclass(frozen=True)
class Admitted:
    """A sequence is worked on from now on.

    Attributes:
        index: Which of the request's.
        waited: Seconds in the queue.
    """

    index: int
    waited: float


@dataclass(frozen=True)
class Written:
    """A turn has written or erased something.

    Attributes:
        index: Which of the request's sequences.
        change: What.
        seconds: Since it was admitted.
        text: What has become final of its text; always empty for rules that may take back what they have written.
        final: How many tokens of the answer stand without a gap before them.
    """

    index: int
    change: Change
    seconds: float
    text: str
    final: int


@dataclass(frozen=True)
class Finished:
    """A sequence is finished.

    Attributes:
        index: Which of the request's.
        completion: What became of it; its seconds count from when it was admitted.
        evaluations: States of it that were evaluated.
        text: What is left of its text: all that no `Written` has had.
        waited: Seconds it was in the queue.
    """

    index: int
    completion: Completion
    evaluations: int
    text: str
    waited: float


@dataclass(frozen=True)
class Failed:
    """The request has failed; nothing comes after that.

    Attributes:
        kind: `"request"` (it cannot be answered), `"timeout"`, `"model"` or `"shutdown"`.
        message: For whoever asked.
    """

    kind: str
    message: str


Event = Admitted | Written | Finished | Failed


@dataclass(frozen=True)
class Request:
    """Answers that are wanted together.

    Attributes:
        name: A name that no other request has.
        model: The model that answers.
        asked: The answers.
        tell: Is called with events, from the engine's thread.
        watch: Whether it is told of every turn.
        candidates: How many of the most probable tokens are wanted with each that is written.
    """

    name: str
    model: str
    asked: Sequence[Asked]
    tell: Callable[[Sequence[Event]], None]
    watch: bool = False
    candidates: int = 0
