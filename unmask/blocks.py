"""Windows over a sequence, for semi-autoregressive sampling: a block opens when the one before it is full."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .checks import whole


def windows(pending: Bool[Tensor, "batch length"], size: int) -> Int[Tensor, "batch length"]:
    """Numbers windows of `size` positions, counted from each sequence's first mask.

    Pinned tokens inside a window take up room in it, as in the published semi-autoregressive samplers.

    Raises:
        ValueError: If `size` is not a whole number >= 1.
    """
    whole("the length of a block", size)
    position = torch.arange(pending.shape[1], device=pending.device).expand_as(pending)
    first = pending.to(torch.int8).argmax(-1, keepdim=True)  # 0 where nothing is masked
    return (position - first).div(size, rounding_mode="floor")


def open_block(
    pending: Bool[Tensor, "batch length"], block: Int[Tensor, "batch length"]
) -> Bool[Tensor, "batch length"]:
    """Returns the masked positions of each sequence's lowest-numbered unfinished block: the candidates."""
    last = torch.iinfo(block.dtype).max
    lowest = block.masked_fill(~pending, last).amin(-1, keepdim=True)
    return pending & (block == lowest)
