"""Arguments of a language model, checked before an inner library meets them: each refusal names what was given."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any

from ..sampling.conversation import AnyRule

LARGEST_TOKEN = 2**31 - 1
"""Token ids beyond are no model's."""


def check_answer(
    *,
    rule: AnyRule | str | None,
    seed: int,
    forbidden: Iterable[int],
    streams: Sequence[int] | None,
    guidance: float | None = None,
) -> tuple[int, ...]:
    """Checks what `generate` and `infill` have in common; returns the forbidden tokens.

    Args:
        rule: A rule or its name; `None` stands for the default.
        seed: An integer.
        forbidden: Token ids.
        streams: 64-bit integers, or `None`.
        guidance: A finite number, or `None`.

    Raises:
        ValueError: If one of them is something else.
    """
    if not isinstance(rule, (str, AnyRule, NoneType)):
        raise ValueError(f"rule is a Rule or its name, such as 'entropy-bound:gamma=0.1', got {rule!r:.80}")
    whole_number("seed", seed)
    try:
        tokens = None if isinstance(forbidden, (str, bytes)) else tuple(forbidden)
    except TypeError:
        tokens = None
    if tokens is None:
        raise ValueError(f"forbidden is a list of token ids, got {forbidden!r:.80}")
    if streams is not None and (isinstance(streams, (str, bytes)) or not isinstance(streams, Sequence)):
        raise ValueError(f"streams is a list of integers, one a prompt, got {streams!r:.80}")
    if guidance is not None and (
        isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not abs(guidance) < 1e6
    ):
        raise ValueError(f"guidance is a number, or None for none, got {guidance!r:.80}")
    return tuple(whole_number("a forbidden token", token) for token in tokens)


def check_watch(on_step: Callable[..., None] | None) -> None:
    """Raises `ValueError` if what is to be called after each step is no function."""
    if on_step is not None and not callable(on_step):
        raise ValueError(f"on_step is a function of the state and the step's information, got {on_step!r:.80}")


def whole_number(name: str, value: Any) -> int:
    """Returns an integer.

    Raises:
        ValueError: If it is not one; `name` says what it was to be.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is an integer, got {value!r:.80}") from None


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """Returns stop strings as a tuple; `None` stands for none.

    Raises:
        ValueError: If one is not a text, or empty.
    """
    stops = (stop,) if isinstance(stop, str) else () if stop is None else stop
    if not isinstance(stops, (tuple, list)) or not all(isinstance(one, str) for one in stops):
        raise ValueError(f"stop is a text or a list of texts, got {stop!r:.80}")
    if not all(stops):
        raise ValueError("a stop string must not be empty")
    return tuple(checked_text(one) for one in stops)


def checked_text(text: str) -> str:
    """Returns a text.

    Raises:
        ValueError: If it holds half of a surrogate pair, which no encoding of text has.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text {text[:60]!r} holds half of a surrogate pair at character {error.start}: it was cut inside a"
            " character, or decoded with errors='surrogateescape'"
        ) from None
    return text


def checked_tokens(tokens: Sequence[int]) -> tuple[int, ...]:
    """Returns token ids; which of them the model has is checked where they are put together.

    Raises:
        ValueError: If one is no token id of any model.
    """
    for place, token in enumerate(tokens):
        if not 0 <= token <= LARGEST_TOKEN:
            raise ValueError(f"the token id at place {place} is {token}; token ids are whole numbers >= 0")
    return tuple(tokens)


def checked_prompts(prompts: Any) -> None:
    """Refuses what is no list of prompts.

    Raises:
        ValueError: If it is a single message, or of another kind.
    """
    if isinstance(prompts, Mapping):
        raise ValueError(f"a chat is a list of messages, and this is one message: give [{prompts!r:.80}]")
    if isinstance(prompts, bytes) or not (hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__")):
        raise ValueError(f"prompts are texts, chats or lists of token ids, or a list of these, got {prompts!r:.80}")


def checked_spans(spans: Any, texts: int) -> None:
    """Refuses what is no list of spans for each text.

    Raises:
        ValueError: If a span is not `(start, stop, n)`, three whole numbers, or their lists do not go with the texts.
    """
    if isinstance(spans, (str, bytes)) or not isinstance(spans, Sequence):
        raise ValueError(f"spans is a list with the spans of each text, got {spans!r:.80}")
    if len(spans) != texts:
        raise ValueError(f"{len(spans)} lists of spans for {texts} texts")
    for index, own in enumerate(spans):
        whole = isinstance(own, Sequence) and all(
            isinstance(span, (tuple, list)) and len(span) == 3 and all(type(number) is int for number in span)
            for span in own
        )
        if not whole:
            raise ValueError(f"the spans of text {index} are (start, stop, n) each, whole numbers, got {own!r:.80}")
