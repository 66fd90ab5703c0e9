"""Token ids that a model has and its tokenizer has not."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FOUND: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int], list[int]]] = WeakKeyDictionary()
"""What was found before, by the number of tokens and of ids: listing a large vocabulary takes a quarter of a second."""


def nameless_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """Returns the ids below `vocab_size` that are not tokens of the tokenizer, in order.

    Vocabularies are padded to sizes that computers like (Qwen and Dream by several hundred ids): what is drawn from the
    padding has no text, and would vanish from an answer.
    """
    found, sizes = _FOUND.setdefault(tokenizer, {}), (len(tokenizer), vocab_size)
    if sizes not in found:
        found[sizes] = _listed(tokenizer, vocab_size)
    return list(found[sizes])


def _listed(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    named = set(tokenizer.get_vocab().values())
    last = max(named, default=-1)
    # Below the last, two ids may share a name, by which the vocabulary knows one of them: the other has a text as well.
    return [
        token for token in range(vocab_size) if token not in named and (token > last or not _text(tokenizer, token))
    ]


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    try:
        text = str(tokenizer.decode([token]))
    except Exception:  # outside the table of a tokenizer written in Python: IndexError, KeyError, ...
        return ""
    return "" if text == getattr(tokenizer, "unk_token", None) else text
