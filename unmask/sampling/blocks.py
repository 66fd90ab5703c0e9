"""Windows over a sequence, for semi-autoregressive sampling: a block opens when the one before it is full."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def windows(pending: Bool[Tensor, "batch length"], size: int) -> Int[Tensor, "batch length"]:
    """Numbers windows of `size` positions, counted from each sequence's first mask.

    Pinned tokens inside a window take up room in it, as in the published semi-autoregressive samplers.

    Raises:
        ValueError: If `size` is not an integer >= 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"a block is a whole number of positions >= 1, got {size!r}")
    position = torch.arange(pending.shape[1], device=pending.device).expand_as(pending)
    first = pending.to(torch.int8).argmax(-1, keepdim=True)  # 0 where nothing is masked
    return (position - first).div(size, rounding_mode="floor")


def block_numbers(
    x: Int[Tensor, "batch length"],
    pending: Bool[Tensor, "batch length"],
    blocks: int | Int[Tensor, "batch length"] | None,
) -> Int[Tensor, "batch length"]:
    """The number of the block of each position: all one, windows of a length, or as given.

    Raises:
        ValueError: If they are neither a length nor integers of the shape of the tokens.
    """
    if blocks is None:
        return torch.zeros_like(x)
    if isinstance(blocks, Tensor):
        if blocks.shape != x.shape or blocks.dtype.is_floating_point:
            raise ValueError(f"block numbers must be integers of shape {tuple(x.shape)}, got {tuple(blocks.shape)}")
        return blocks.to(device=x.device, dtype=torch.int64)
    return windows(pending, blocks)


def open_block(
    pending: Bool[Tensor, "batch length"], block: Int[Tensor, "batch length"]
) -> Bool[Tensor, "batch length"]:
    """Returns the masked positions of each sequence's lowest-numbered unfinished block: the candidates."""
    last = torch.iinfo(block.dtype).max
    lowest = block.masked_fill(~pending, last).amin(-1, keepdim=True)
    return pending & (block == lowest)
