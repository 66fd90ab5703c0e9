"""Fused kernels for rows of logits: statistics in one pass and draws by a race, one kernel call each, by device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

_WIDE = 256
"""The smallest vocabulary that is worth loading a compiler on a CPU. No row may depend on how many rows there are."""


@runtime_checkable
class RowKernel(Protocol):
    """What a device's module of kernels does, for logits in float32, bfloat16 and float16."""

    def statistics(
        self, logits: Tensor, forbidden: Sequence[int], power: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Returns top, token, entropy, doubt, closeness, log_norm and with a power log_moment, each `[rows]`.

        And the largest logits of parts of each row, if the kernel wants to know them again when it draws.
        """
        ...

    def draw(
        self,
        logits: Tensor,
        rows: Tensor,
        uniform: Tensor,
        temperature: Tensor,
        forbidden: Sequence[int],
        tops: Tensor | None = None,
    ) -> Tensor:
        """Returns one token for each of `rows` by a race (see `draws.race`), given float64 uniforms and temperatures.

        `tops` is what `statistics` returned besides, if it was something, with the same tokens forbidden.
        """
        ...


def row_kernel(logits: Tensor) -> RowKernel | None:
    """The kernels for these logits, or `None` where plain PyTorch has to do: float64, or a device without kernels."""
    if logits.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return None
    if logits.device.type == "cpu" and logits.shape[1] < _WIDE:
        return None
    return _load(logits.device.type)


@runtime_checkable
class ComparingKernel(Protocol):
    """What a device's module of kernels does besides, where it compares rows with earlier ones."""

    def compared(
        self, logits: Tensor, old: Tensor, index: Tensor, old_norms: Tensor, forbidden: Sequence[int]
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor, Tensor]:
        """Returns what `statistics` does, the normalisers of the rows, and their divergences from earlier ones."""
        ...


def comparing_kernel(logits: Tensor) -> ComparingKernel | None:
    """The kernel that compares these logits with earlier ones, or `None` where plain PyTorch has to do."""
    if logits.device.type != "cpu" or row_kernel(logits) is None:
        return None
    from . import numba_compare

    return numba_compare


@cache
def _load(device: str) -> RowKernel | None:
    if device == "cuda":
        try:
            from . import triton_rows
        except ImportError:  # PyTorch was built without Triton
            return None
        return triton_rows
    if device == "cpu":
        try:
            from . import numba_rows
        except ImportError:  # no Numba for this platform
            return None
        return numba_rows
    return None
