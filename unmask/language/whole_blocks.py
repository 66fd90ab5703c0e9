"""Block-causal models, shown their whole last block, where a text is judged that ends within one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoiser import Query

if TYPE_CHECKING:
    from .model import LanguageModel


class WholeBlocks:
    """A block-causal model that sees masks behind each sequence, up to the end of its block, as in generation.

    Args:
        model: The model.

    Raises:
        ValueError: If its attention is not block-causal.
    """

    def __init__(self, model: LanguageModel) -> None:
        if model.block_causal is None:
            raise ValueError("the attention of this model has no blocks")
        self.model, self.size, self.max_length = model, model.block_causal, model.max_length
        self.vocab_size, self.mask_id, self.device = model.vocab_size, model.mask_id, model.device

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        length = query.valid.sum(-1, keepdim=True)
        whole = (length + self.size - 1).div(self.size, rounding_mode="floor") * self.size
        whole = whole if self.max_length is None else whole.clamp(max=self.max_length)
        more = max(0, int(whole.max()) - query.x.shape[1])
        pad = torch.nn.functional.pad
        x, where, valid = (pad(part, (0, more)) for part in (query.x, query.where, query.valid))
        position = torch.arange(x.shape[1], device=x.device)
        behind = (position >= length) & (position < whole)
        block = None if query.block is None else pad(query.block, (0, more))
        x = x.masked_fill(position >= length, self.mask_id)
        return self.model(replace(query, x=x, where=where, valid=valid | behind, index=None, block=block))


def in_blocks(context: Sequence[int], scored: Sequence[int], size: int | None) -> Iterator[tuple[list[int], list[int]]]:
    """Cuts a continuation where blocks of the attention end; each part has all before it as its context.

    Args:
        context: Tokens that come before.
        scored: The continuation.
        size: Length of the blocks, counted from the first token of the context; `None`: one part.
    """
    tokens, start = [*context, *scored], len(context)
    while start < len(tokens):
        end = len(tokens) if size is None else min(len(tokens), (start // size + 1) * size)
        yield tokens[:start], tokens[start:end]
        start = end
