"""The subword tokenizer: byte-level byte-pair encoding, trained on the training text of the two novels.

This module imports the package tokenizers, so it is imported only inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

PIECES = 512
"""Size of the vocabulary. The 256 bytes are in it, so any text can be encoded."""


def train(texts: Iterable[str]) -> Tokenizer:
    """Trains the tokenizer; the same texts give the same vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def embedded() -> Tokenizer:
    """Returns the tokenizer that ships with the package."""
    file = resources.files("unmask").joinpath("data/text/tokenizer.json")
    return Tokenizer.from_str(file.read_text(encoding="utf-8"))
