"""Token ids of a model for which its tokenizer has no token."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FOUND: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int], list[int]]] = WeakKeyDictionary()
"""Results of each tokenizer, by its size and `vocab_size`: listing a large vocabulary takes a quarter of a second."""


def nameless_ids(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    """Returns the ids below `vocab_size` that are not tokens of the tokenizer, in order.

    Vocabularies are padded to sizes that suit the hardware (Qwen's and Dream's by several hundred ids). A token drawn
    from this padding has no text, and would be missing from an answer without notice.

    Args:
        tokenizer: The model's tokenizer.
        vocab_size: Number of the model's token ids.
    """
    found, sizes = _FOUND.setdefault(tokenizer, {}), (len(tokenizer), vocab_size)
    if sizes not in found:
        found[sizes] = _listed(tokenizer, vocab_size)
    return list(found[sizes])


def _listed(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[int]:
    named = set(tokenizer.get_vocab().values())
    last = max(named, default=-1)
    # Below the last named id, two ids may share a name, and the vocabulary lists one of them; the other has text, too.
    return [
        token for token in range(vocab_size) if token not in named and (token > last or not _text(tokenizer, token))
    ]


def _text(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    try:
        text = str(tokenizer.decode([token]))
    except Exception:  # an id outside the vocabulary of a tokenizer written in Python: IndexError, KeyError, ...
        return ""
    return "" if text == getattr(tokenizer, "unk_token", None) else text
