"""Infilling for models that others trained: sequences of their own lengths between two tokens that are never masked."""

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
    """Complete sequences of a split, filled up to one length; the special tokens are never masked."""

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
    """What the tasks of models that others trained share: masks at random or in spans, and the share recovered.

    There is nothing to train on: the data are in two halves, `validation` to choose settings on and `test` to report.
    Masks are a function of (split, index).

    Args:
        kind: `random` masks single tokens, `spans` stretches of `span`; a subclass may know more.
        share: The share of a sequence that these two mask, rounded to whole tokens or spans, at least one.
        span: Tokens per span.
        length: The largest number of tokens of a sequence.

    Attributes:
        special_ids: Tokens of the vocabulary that stand for nothing: they never fill a mask.
        fill_id: The one of them that fills sequences up to one length; a model is not shown it (see `Foreign`).

    Raises:
        ValueError: If a setting is out of range.
        DataError: If no sequence is that short.
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
        """Returns the sequences of a half, in an order that makes the first few a fair sample.

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
        """Returns which tokens of a sequence, special ones left out, are masked."""
        length = len(tokens)
        if self.kind == "spans":
            most = (length + 1) // (self.span + 1)
            return gaps(length, min(most, max(1, round(self.share * length / self.span))), self.span, draws)
        masked = torch.zeros(length, dtype=torch.bool)
        masked[draws.sample(length, max(1, round(self.share * length)))] = True
        return masked

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Returns the share of the masked tokens of each prompt that came back; a mask that is left counts as wrong."""
        return recovered(prompts, tokens, self.mask_id)
