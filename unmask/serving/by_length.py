"""Sequences of very different lengths in parts: on a processor, padding costs what tokens cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Denoiser, Query, device_of

SHARE = 8
"""Of all positions, padding included, a further call must save at least one in so many."""

WORTH = 96
"""Positions of padding that a further call must save: it costs about what they do."""


class ByLength:
    """A denoiser that is asked about short sequences and about long ones separately, if that saves much padding.

    The answers are the same but for rounding. On an accelerator one call is better than two.

    Args:
        denoiser: The model; it must know what padding is.
    """

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.vocab_size, self.mask_id, self.device = denoiser.vocab_size, denoiser.mask_id, device_of(denoiser)
        self.max_length: int | None = getattr(denoiser, "max_length", None)
        self.tokenizer, self.block_causal = (
            getattr(denoiser, "tokenizer", None),
            getattr(denoiser, "block_causal", None),
        )

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        length, order = query.valid.sum(-1).sort()
        parts = parted(length.tolist())
        if len(parts) == 1:
            return self.denoiser(query)
        state = query.rows.div(query.x.shape[1], rounding_mode="floor")
        logits = None
        for start, stop in parts:
            mine = torch.zeros_like(query.sequence, dtype=torch.bool).index_fill(0, order[start:stop], True)
            part = self.denoiser(narrowed(query, mine.nonzero().squeeze(-1), int(length[stop - 1])))
            logits = part.new_empty(len(state), part.shape[1]) if logits is None else logits
            logits[mine[state]] = part
        assert logits is not None
        return logits


def parted(length: Sequence[int], start: int = 0) -> list[tuple[int, int]]:
    """Which sequences, of ascending lengths, to ask about together: from which to which.

    Args:
        length: Their lengths.
        start: The number of the first.
    """
    saved = [count * (length[-1] - length[count - 1]) for count in range(1, len(length))]
    most = max(saved, default=0)
    if most < max(WORTH, len(length) * length[-1] // SHARE):
        return [(start, start + len(length))]
    cut = saved.index(most) + 1
    return [*parted(length[:cut], start), *parted(length[cut:], start + cut)]


def narrowed(query: Query, rows: Int[Tensor, " part"], width: int) -> Query:
    """Some states of a query, without the columns that none of them has."""
    names = ("x", "where", "valid", "block")
    wide = {name: value[rows, :width] for name in names if (value := getattr(query, name)) is not None}
    time = None if query.time is None else query.time[rows]
    return replace(query, **wide, sequence=query.sequence[rows], time=time, index=None)
