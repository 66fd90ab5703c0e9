"""Infilling for models that others trained, with sequences of different lengths between two special tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..errors import DataError
from ._common import HALVES, Draws, check_index, check_split, gaps, recovered, stack
from .task import Prompts


class Sequences:
    """The sequences of a split, padded to one length; the special tokens are never masked.

    Args:
        rows: The token ids of each sequence.
        length: The length that sequences are padded to.
        special_ids: Tokens that are never masked.
        fill_id: The padding token.
    """

    def __init__(self, rows: Sequence[Sequence[int]], length: int, special_ids: tuple[int, ...], fill_id: int) -> None:
        self.rows, self.length, self.fill_id = rows, length, fill_id
        self.special = torch.tensor(special_ids)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        row = torch.tensor(self.rows[check_index(index, len(self))])
        tokens = torch.nn.functional.pad(row, (0, self.length - len(row)), value=self.fill_id)
        return tokens, ~torch.isin(tokens, self.special)


class Infilling:
    """Base of the tasks for models that others trained: random masks or spans, scored by the share recovered.

    There is no training split: the data are in two halves, `validation` for choosing settings and `test` for reporting.
    The masks are a function of (split, index).

    Args:
        rows: The token ids of the sequences of each half.
        kind: `random` masks single tokens, `spans` masks spans of `span` tokens; a subclass may have more kinds.
        share: The share of a sequence that these two mask, rounded to whole tokens or spans, but at least one.
        span: Tokens per span.
        length: The maximum number of tokens of a sequence; longer ones are left out.

    Attributes:
        special_ids: Special tokens of the vocabulary: no mask is ever filled with one of them.
        fill_id: The padding token, which is one of them; no model is given it (see `Foreign`).

    Raises:
        ValueError: If a setting is out of range.
        DataError: If all sequences of a half are longer than `length`.
    """

    name: str
    quality = "share of masked tokens recovered"
    vocab_size: int
    mask_id: int
    fill_id: int
    special_ids: tuple[int, ...]

    def __init__(self, rows: dict[str, list[list[int]]], kind: str, share: float, span: int, length: int) -> None:
        if not 0 < share < 1:
            raise ValueError(f"share must be above 0 and below 1, got {share!r}")
        self.kind, self.share, self.span = kind, share, whole("span", span, 1)
        self.length = whole("length", length, 3)
        self.rows = {split: [row for row in rows[split] if len(row) <= length] for split in HALVES}
        for split, kept in self.rows.items():
            if not kept:
                raise DataError(f"no sequence of the {split} half of {self.name} has at most {length} tokens")

    def examples(self, split: str) -> Sequences:
        """Returns the sequences of a half, in a random order, so that the first few are a fair sample.

        Raises:
            ValueError: If the split is neither `validation` nor `test`.
        """
        return Sequences(self.rows[check_split(split, HALVES)], self.length, self.special_ids, self.fill_id)

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns the first `limit` sequences of a half with masks.

        Raises:
            ValueError: If there is no such split, or `limit` is below 1.
        """
        answers, maskable = stack(self.examples(split), limit)
        masked = torch.zeros_like(maskable)
        for index, (row, free) in enumerate(zip(answers, maskable, strict=True)):
            masked[index, free] = self.chosen(row[free], Draws(0, f"{self.name} masks", self.kind, split, index))
        return Prompts.of(answers, masked, self.mask_id)

    def chosen(self, tokens: Int[Tensor, " tokens"], draws: Draws) -> Bool[Tensor, " tokens"]:
        """Returns which tokens of a sequence are masked.

        Args:
            tokens: The sequence without its special tokens.
            draws: The random numbers.
        """
        length = len(tokens)
        if self.kind == "spans":
            most = (length + 1) // (self.span + 1)
            return gaps(length, min(most, max(1, round(self.share * length / self.span))), self.span, draws)
        masked = torch.zeros(length, dtype=torch.bool)
        masked[draws.sample(length, max(1, round(self.share * length)))] = True
        return masked

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Returns the share of each prompt's masked tokens that were recovered; a remaining mask counts as wrong."""
        return recovered(prompts, tokens, self.mask_id)
