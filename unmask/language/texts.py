"""Tokens as the continuation of a text: what they add to it, and where a stop string ends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Continuation:
    """Reads tokens as what comes after others.

    Tokens have no text of their own: a decoder drops the space at the beginning of a text (SentencePiece), joins pieces
    to what is before them (`##` of WordPiece), or makes a character of several tokens (bytes). So their text is what
    they add: the decoded whole without the decoded beginning. Where they change the end of that, as when they complete
    a character, they add what follows the last character that stays.

    Args:
        tokenizer: The tokenizer; without one, every text is empty.
        before: The tokens that come before, such as the prompt's.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, before: Sequence[int] = ()) -> None:
        self.tokenizer, self.before = tokenizer, list(before)
        self._known: dict[bool, str] = {}

    def text(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Returns what tokens add to the text before them.

        Args:
            tokens: The tokens.
            special: Whether special tokens are part of a text.
        """
        if self.tokenizer is None or not len(tokens):
            return ""
        if special not in self._known:
            self._known[special] = self._decoded(self.before, special)
        known, whole = self._known[special], self._decoded([*self.before, *tokens], special)
        return whole[len(known) if whole.startswith(known) else shared(known, whole) :]

    def stop(self, tokens: Sequence[int], stops: Sequence[str]) -> tuple[int, str] | None:
        """Looks for stop strings in the text of tokens, in which special tokens are written out.

        Args:
            tokens: The tokens.
            stops: The stop strings.

        Returns:
            How many tokens hold the first stop string, and their text before it, without special tokens; `None` if
            there is none.
        """
        if not _found(self.text(tokens, special=True), stops):
            return None
        without, count = 0, len(tokens)  # the shortest beginning that holds one
        while count - without > 1:
            middle = (without + count) // 2
            if _found(self.text(tokens[:middle], special=True), stops):
                count = middle
            else:
                without = middle
        written = self.text(tokens[:count], special=True)
        cut = min(_found(written, stops))
        kept = count - 1  # the tokens before the one that the stop string begins in
        while kept and not written[:cut].startswith(self.text(tokens[:kept], special=True)):
            kept -= 1
        text = self.text(tokens[:kept])
        last = self.text(tokens[: kept + 1])[len(text) :]  # nothing, if it is a special token
        return count, text + last[: max(0, len(last) - len(self.text(tokens[: kept + 1], special=True)) + cut)]

    def _decoded(self, tokens: list[int], special: bool) -> str:
        assert self.tokenizer is not None
        return str(self.tokenizer.decode(tokens, skip_special_tokens=not special)) if tokens else ""


def shared(one: Sequence[object], other: Sequence[object]) -> int:
    """How many characters, or tokens, two texts begin alike with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _found(text: str, stops: Sequence[str]) -> list[int]:
    return [text.index(stop) for stop in stops if stop in text]
