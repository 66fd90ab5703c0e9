"""Prompts of any kind as token ids: texts, chats, token ids, and texts with gaps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .chats import chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GAP = re.compile(r"\[MASK(?::(\d+))?\]")


@dataclass(frozen=True)
class Prompt:
    """What is shown to the model.

    Attributes:
        text: For people to read.
        tokens: The token ids before the answer; of a text with gaps, all, the mask token in the gaps.
        suffix: Those that the tokenizer puts after a text, such as BERT's `[SEP]`.
    """

    text: str
    tokens: tuple[int, ...]
    suffix: tuple[int, ...] = ()


Chat = Sequence[Mapping[str, Any]]
Prompts = str | Chat | Prompt | Sequence[str | Chat | Sequence[int] | Prompt] | Tensor
"""A text, a chat (`[{"role": "user", "content": "..."}, ...]`), or several: texts, chats, lists of token ids."""


def as_prompts(prompts: Prompts, tokenizer: PreTrainedTokenizerBase | None, mask_id: int) -> list[Prompt]:
    """Encodes prompts; chats go through the tokenizer's chat template and end where the answer begins.

    Raises:
        ValueError: If there is no tokenizer for a text, no template for a chat or it refuses the chat, a prompt is of
            another kind or holds the mask token.
    """
    given: Any = prompts
    if isinstance(given, Tensor):
        given = given.tolist() if given.ndim == 2 else [given.tolist()]
    if isinstance(given, (str, Prompt)) or (len(given) and isinstance(given[0], Mapping)):
        given = [given]
    encoded = [_prompt(prompt, index, tokenizer) for index, prompt in enumerate(given)]
    for index, prompt in enumerate(encoded):
        if mask_id in prompt.tokens:
            raise ValueError(f"prompt {index} holds the mask token; infill(...) fills gaps in a text")
    return encoded


def _prompt(prompt: Any, index: int, tokenizer: PreTrainedTokenizerBase | None) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, Tensor):
        prompt = prompt.tolist()
    if isinstance(prompt, Sequence) and not isinstance(prompt, str) and all(type(token) is int for token in prompt):
        return Prompt("" if tokenizer is None else str(tokenizer.decode(list(prompt))), tuple(prompt))
    if not isinstance(prompt, str) and not _is_chat(prompt):
        raise ValueError(
            f"a prompt is a text, token ids, or a chat of {{'role': ..., 'content': ...}} messages, got {prompt!r:.80}"
        )
    known = needed(tokenizer)
    if isinstance(prompt, str):
        return encode_text(prompt, known)
    try:
        text = chat_text(known, prompt)
    except ValueError as error:
        raise ValueError(f"prompt {index}: {error}") from None
    return Prompt(text, tuple(known(text, add_special_tokens=False)["input_ids"]))


def _is_chat(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and all(isinstance(one, Mapping) for one in prompt)


def needed(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """Returns the tokenizer.

    Raises:
        ValueError: If there is none.
    """
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: give lists of token ids instead of text")
    return tokenizer


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Encodes a text, with the token ids that the tokenizer puts before every text, and those that it puts after."""
    full = tuple(tokenizer(text)["input_ids"])
    before, after = surroundings(tokenizer)
    end = len(full) - len(after)
    if end < len(before) or full[end:] != after:  # not a tokenizer that puts the same around every text
        end = len(full)
    return Prompt(text, full[:end], full[end:])


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the token ids that a tokenizer puts before every text and after it, such as BERT's `[CLS]` and `[SEP]`.

    They are told from a text whose own tokens occur but once: one that is empty, or a special token, would not tell.
    """
    for text in _examples(tokenizer):
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        full = tokenizer(text)["input_ids"]
        size = len(plain)
        found = [at for at in range(len(full) - size + 1) if full[at : at + size] == plain]
        if size and len(found) == 1:
            return tuple(full[: found[0]]), tuple(full[found[0] + size :])
    return tuple(tokenizer("")["input_ids"]), ()


def _examples(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Texts, of which any tokenizer has tokens for one; those of its vocabulary take long to list, and so come last."""
    yield from ("a", "1", ".")
    yield from sorted(tokenizer.get_vocab())[:100]


def with_gaps(
    text: str, tokenizer: PreTrainedTokenizerBase | None, spans: Sequence[tuple[int, int, int]] | None = None
) -> Prompt:
    """Encodes a text with gaps: `[MASK:n]` is one of `n` tokens, `[MASK]` one of one.

    Args:
        text: The text.
        tokenizer: Its tokenizer, with a mask token.
        spans: Replace the characters from `start` to `stop` by `n` tokens, for each `(start, stop, n)`.

    Raises:
        ValueError: If spans overlap or are outside the text, a gap is of no token, or there is none.
    """
    known = needed(tokenizer)
    mark = known.mask_token
    if mark is None:
        raise ValueError("the tokenizer has no mask token; give token ids with the mask's instead of text")
    shown = text
    for start, stop, size in sorted(spans or (), reverse=True):
        if not 0 <= start <= stop <= len(shown):
            raise ValueError(f"the span ({start}, {stop}, {size}) overlaps another or is outside the text")
        shown, text = shown[:start], f"{text[:start]}[MASK:{size}]{text[stop:]}"
    sizes = [int(match[1] or 1) for match in _GAP.finditer(text)]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{text!r:.80} has no gap to fill in: write [MASK:n] where n >= 1 tokens are missing")
    parts = _GAP.split(text)[::2]
    full = parts[0] + "".join(str(mark) * size + part for size, part in zip(sizes, parts[1:], strict=True))
    tokens = tuple(known(full)["input_ids"])
    return Prompt(text, tokens)
