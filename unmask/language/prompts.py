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
"""Gaps of more tokens, all together, are no model's."""


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
    """Encodes a text, with the token ids that the tokenizer puts before every text, and those that it puts after.

    Raises:
        ValueError: If the text holds half of a surrogate pair.
    """
    full = tuple(tokenizer(checked_text(text))["input_ids"])
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
    text: str,
    tokenizer: PreTrainedTokenizerBase | None,
    mask_id: int,
    spans: Sequence[tuple[int, int, int]] | None = None,
) -> Prompt:
    """Encodes a text with gaps: `[MASK:n]` is one of `n` tokens, `[MASK]` one of one.

    Args:
        text: The text.
        tokenizer: Its tokenizer. The model's mask token need not be the one it names, nor need it name one.
        mask_id: Id of the model's mask token.
        spans: Replace the characters from `start` to `stop` by `n` tokens, for each `(start, stop, n)`.

    Raises:
        ValueError: If spans overlap or are outside the text, a gap is of no token or of far too many, or there is none.
    """
    known = needed(tokenizer)
    shown = checked_text(text)
    for start, stop, size in sorted(spans or (), reverse=True):
        if not 0 <= start <= stop <= len(shown):
            raise ValueError(f"the span ({start}, {stop}, {size}) overlaps another or is outside the text")
        shown, text = shown[:start], f"{text[:start]}[MASK:{size}]{text[stop:]}"
    # The first digits tell that a number is too large; Python reads no integer of thousands of them.
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
    """The token ids of a text with gaps: each is written as so many special tokens, which then become the mask.

    The special token is the mask itself if the tokenizer can write it, or else one that the text does not hold.
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
