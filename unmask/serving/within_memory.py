"""Keys and values of as many sequences as a limit of memory has room for; the others are computed as a whole."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoiser import Query
from ..models.pretrained.cache import Cached


class WithinMemory:
    """A model that keeps keys and values, within a limit.

    A sequence that has a place keeps it until it leaves, so that no two take it from each other in turns. One that has
    none is computed as a whole, and gets a place as soon as there is room. Places are as wide as the longest sequence
    that has one. Where those that are free are in the way of one that would fit, everything is evicted and computed
    anew. The answers are the same whoever has a place, but for rounding.

    Args:
        cached: The model with kept keys and values.
        memory: Bytes that they may take.
    """

    def __init__(self, cached: Cached, memory: int) -> None:
        self.cached, self.memory = cached, memory
        self.vocab_size, self.mask_id, self.device = cached.vocab_size, cached.mask_id, cached.device
        self.max_length = cached.max_length
        self._length: dict[int, int] = {}  # of each sequence that has a place

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        slots, lengths = query.sequence.tolist(), query.valid.sum(-1).tolist()
        self._choose(dict(zip(slots, lengths, strict=True)))
        kept = torch.tensor([slot in self._length for slot in slots], device=query.x.device)
        if bool(kept.all()):
            return self.cached(query)
        if not bool(kept.any()):
            return self.cached.denoiser(query)
        state = query.rows.div(query.x.shape[1], rounding_mode="floor")
        logits = None
        for mine, model in ((kept, self.cached), (~kept, self.cached.denoiser)):
            rows = mine.nonzero().squeeze(-1)
            part = model(query.narrow(rows, int(query.valid[rows].sum(-1).max())))
            logits = part.new_empty(len(state), part.shape[1]) if logits is None else logits
            logits[mine[state]] = part.to(logits.dtype)
        assert logits is not None
        return logits

    def forget(self, slots: Iterable[int]) -> None:
        """Frees the places of sequences that have left."""
        gone = list(slots)
        self.cached.forget(gone)
        for slot in gone:
            self._length.pop(slot, None)
        if not self._length:
            self.cached.clear()

    def _choose(self, lengths: dict[int, int]) -> None:
        """Gives places to sequences that have none, in the order in which they are asked about, as long as they fit."""
        for slot, length in lengths.items():
            width = max([length, *self._length.values()])
            if slot not in self._length and self._fits(len(self._length) + 1, width):
                self._length[slot] = length
        places = max(len(self.cached.opened), len(self._length))
        if not self._fits(places, max([self.cached.tokens.shape[1], *self._length.values()])):
            self.cached.clear()

    def _fits(self, places: int, width: int) -> bool:
        # One column more is where what fills up a batch goes.
        return places <= self.cached.most and places * (width + 1) * self.cached.position_bytes <= self.memory
