"""Prompts of any kind as token ids: texts, chats, token ids, and texts with gaps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .arguments import checked_prompts, checked_text, checked_tokens
from .chats import chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GAP = re.compile(r"\[MASK(?::(\d+))?\]")
LARGEST_GAPS = 1 << 20
"""The most tokens that the gaps of one text may have in total."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text and as token ids.

    Attributes:
        text: The prompt for people to read; empty for token ids without a tokenizer.
        tokens: The token ids before the answer. For a text with gaps: the ids of the whole text, with the mask token in
            the gaps.
        suffix: The token ids that the tokenizer puts after a text, such as BERT's `[SEP]`.
    """

    text: str
    tokens: tuple[int, ...]
    suffix: tuple[int, ...] = ()


Chat = Sequence[Mapping[str, Any]]
Prompts = str | Chat | Prompt | Sequence[str | Chat | Sequence[int] | Prompt] | Tensor
"""One prompt or several: texts, chats (`[{"role": "user", "content": "..."}, ...]`), or token ids.

A single prompt may be a text, a chat, a `Prompt`, or a one-dimensional tensor of token ids.
"""


def as_prompts(prompts: Prompts, tokenizer: PreTrainedTokenizerBase | None, mask_id: int) -> list[Prompt]:
    """Encodes prompts; a chat is written with the tokenizer's chat template and ends where the answer begins.

    Args:
        prompts: One prompt or several; a one-dimensional tensor is one prompt.
        tokenizer: The model's tokenizer; `None` if all prompts are token ids.
        mask_id: Id of the mask token, which no prompt may hold.

    Raises:
        ValueError: If a text or chat is given without a tokenizer, the tokenizer has no chat template or the template
            refuses a chat, or a prompt is of another kind or holds the mask token.
    """
    given: Any = prompts
    if isinstance(given, Tensor):
        given = given.tolist() if given.ndim == 2 else [given.tolist()]
    if isinstance(given, (str, Prompt)):
        given = [given]
    checked_prompts(given)
    if len(given) and isinstance(given[0], Mapping):
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
    if is_tokens(prompt):
        return Prompt("" if tokenizer is None else str(tokenizer.decode(list(checked_tokens(prompt)))), tuple(prompt))
    if not isinstance(prompt, str) and not _is_chat(prompt):
        raise ValueError(
            f"a prompt is a text, token ids, or a chat of {{'role': ..., 'content': ...}} messages, got {prompt!r:.80}"
        )
    known = needed(tokenizer)
    if isinstance(prompt, str):
        return encode_text(prompt, known)
    try:
        text = checked_text(chat_text(known, prompt))
    except ValueError as error:
        raise ValueError(f"prompt {index}: {error}") from None
    return Prompt(text, tuple(known(text, add_special_tokens=False)["input_ids"]))


def is_tokens(prompt: Any) -> bool:
    """Returns whether a prompt is a list of whole numbers."""
    whole = isinstance(prompt, Sequence) and not isinstance(prompt, (str, bytes))
    return whole and all(type(token) is int for token in prompt)


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
    """Encodes a text; the special tokens that the tokenizer puts after every text become the suffix.

    Raises:
        ValueError: If the text holds half of a surrogate pair.
    """
    full = tuple(tokenizer(checked_text(text))["input_ids"])
    before, after = surroundings(tokenizer)
    end = len(full) - len(after)
    if end < len(before) or full[end:] != after:  # this tokenizer does not put the same tokens around every text
        end = len(full)
    return Prompt(text, full[:end], full[end:])


def surroundings(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the token ids that a tokenizer puts before every text and after it, such as BERT's `[CLS]` and `[SEP]`.

    They are found by encoding an example text with and without special tokens. The tokens of the example must occur
    exactly once in the encoding, or they would not show where the special tokens end.
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
    """Yields short texts, at least one of which any tokenizer can encode.

    The entries of the vocabulary come last, because a large vocabulary takes long to list.
    """
    yield from ("a", "1", ".")
    yield from sorted(tokenizer.get_vocab())[:100]


def with_gaps(
    text: str,
    tokenizer: PreTrainedTokenizerBase | None,
    mask_id: int,
    spans: Sequence[tuple[int, int, int]] | None = None,
) -> Prompt:
    """Encodes a text with gaps: `[MASK:n]` is a gap of `n` tokens, and `[MASK]` a gap of one token.

    Args:
        text: The text.
        tokenizer: The model's tokenizer. It may name another mask token than the model's, or no mask token.
        mask_id: Id of the model's mask token.
        spans: Further gaps: each `(start, stop, n)` replaces the characters from `start` to `stop` by `n` tokens.

    Raises:
        ValueError: If there is no tokenizer, spans overlap or are outside the text, the text has no gap, a gap has no
            tokens, the gaps have more than `LARGEST_GAPS` tokens, or the tokenizer has no token that can stand for one.
    """
    known = needed(tokenizer)
    shown = checked_text(text)
    for start, stop, size in sorted(spans or (), reverse=True):
        if not 0 <= start <= stop <= len(shown):
            raise ValueError(f"the span ({start}, {stop}, {size}) overlaps another or is outside the text")
        shown, text = shown[:start], f"{text[:start]}[MASK:{size}]{text[stop:]}"
    # Ten digits suffice to see that a number is too large; Python refuses to convert thousands of digits.
    sizes = [int(match[1].lstrip("0")[:10] or 0) if match[1] else 1 for match in _GAP.finditer(text)]
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{text!r:.80} has no gap to fill in: write [MASK:n] where n >= 1 tokens are missing")
    if sum(sizes) > LARGEST_GAPS:
        raise ValueError(f"{text!r:.80} has gaps of more than {LARGEST_GAPS} tokens, which no model takes")
    parts = _GAP.split(text)[::2]
    tokens = _gapped(parts, sizes, known, mask_id)
    if tokens is None:
        raise ValueError(
            f"the tokenizer has no token that can stand for a gap; give token ids instead, with {mask_id} in the gaps"
        )
    return Prompt(text, tokens)


def _gapped(
    parts: Sequence[str], sizes: Sequence[int], tokenizer: PreTrainedTokenizerBase, mask_id: int
) -> tuple[int, ...] | None:
    """Returns the token ids of a text with gaps, or `None` if no special token of the tokenizer can mark the gaps.

    A gap of `n` tokens is written as `n` special tokens, whose ids are then replaced by that of the mask token. The
    special token is the mask token itself if the tokenizer can encode it, and otherwise one that the text does not
    hold.
    """
    known: Any = tokenizer
    own = known.convert_ids_to_tokens(mask_id) if mask_id < len(known) else None
    for mark in dict.fromkeys((own, known.mask_token, *known.all_special_tokens)):
        if mark is None:
            continue
        mark_id = known.convert_tokens_to_ids(mark)
        full = parts[0] + "".join(mark * size + part for size, part in zip(sizes, parts[1:], strict=True))
        tokens: list[int] = known(full)["input_ids"]
        held = known("".join(parts))["input_ids"].count(mark_id)
        if tokens.count(mark_id) == sum(sizes) + held and (mark_id == mask_id or not held):
            return tuple(mask_id if token == mark_id else token for token in tokens)
    return None
