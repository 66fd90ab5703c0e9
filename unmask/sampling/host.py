"""What the host knows about a batch: how many rows the next step has, without asking the device a second time.

Masks on the host are small, and a step of a small model is mostly the time it takes to start operations on them: NumPy
starts one in a third of the time that PyTorch takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from .blocks import open_block

if TYPE_CHECKING:
    from .state import State


@dataclass(frozen=True)
class HostMasks:
    """A state's masks and blocks on the host.

    A step has to wait for the device once: to learn which positions the rule chose. From there on the host follows the
    masks itself. On a CPU there is nothing to copy.

    Attributes:
        pending: Positions still to unmask.
        block: Number of the block of each position.
        more: True where the rule has more to do even if no mask remains.
    """

    pending: Bool[np.ndarray, "batch length"]
    block: Int[np.ndarray, "batch length"]
    more: Bool[np.ndarray, " batch"]

    @staticmethod
    def of(state: State) -> HostMasks:
        """What was noted of a state, or fresh copies."""
        noted = vars(state).get(NOTE)
        if noted is not None:
            return noted
        return HostMasks(state.pending.cpu().numpy(), state.block.cpu().numpy(), state.more.cpu().numpy())

    @property
    def alive(self) -> Int[np.ndarray, " alive"]:
        """The rows that are not finished."""
        return (any_true(self.pending) | self.more).nonzero()[0]

    @property
    def open(self) -> Bool[np.ndarray, "batch length"]:
        """The masks of the open block of each sequence: the candidates."""
        if not np.count_nonzero(self.block):
            return self.pending
        return open_block(torch.from_numpy(self.pending), torch.from_numpy(self.block)).numpy()

    def of_rows(self, rows: Int[np.ndarray, " rows"]) -> HostMasks:
        """Those of some sequences, in ascending order."""
        if len(rows) == len(self.pending):
            return self
        return HostMasks(self.pending[rows], self.block[rows], self.more[rows])

    def after(
        self, state: State, rows: Int[np.ndarray, " rows"], taken: Bool[np.ndarray, "rows length"], more: Tensor | None
    ) -> State:
        """Notes on a state what is left of these masks after some rows were written, and returns it.

        Unless `more` is `None`, it was changed.

        The note is no field: what `dataclasses.replace` or `State.changed` makes of the state comes without it.
        """
        if state.pending.is_cpu:
            left = state.pending.numpy()
        else:
            left = self.pending.copy()
            left[rows] &= ~taken
        now = self.more if more is None else state.more.cpu().numpy()
        object.__setattr__(state, NOTE, HostMasks(left, self.block, now))
        return state


NOTE = "_host"
"""The attribute of a state that holds what is noted of it."""

FEW = 1 << 12
"""Positions of a batch up to which NumPy, quicker to start, has gone through short rows before PyTorch has."""


def all_finite(values: Float[Tensor, " values"]) -> Bool[Tensor, ""] | bool:
    """Whether all values are finite; where they are, so that looking does not wait for a device.

    On a CPU their sum tells, in fewer operations. It may overflow: what is said to be wrong is then looked at again.
    """
    if values.is_cpu:
        return math.isfinite(values.sum(dtype=torch.float64).item())
    return values.isfinite().all()


def to_host(
    chosen: Bool[Tensor, "rows length"], fine: Sequence[Bool[Tensor, ""] | bool]
) -> tuple[Bool[np.ndarray, "rows length"], bool]:
    """Fetches what was chosen, and whether all is well, at once: the one time a step waits for the device."""
    if chosen.is_cpu:
        return chosen.numpy(), all(fine)
    flags = [torch.as_tensor(flag, device=chosen.device).reshape(1) for flag in fine]
    both = torch.cat([chosen.flatten(), *flags]).cpu().numpy()
    return both[: chosen.numel()].reshape(chosen.shape), bool(both[chosen.numel() :].all())


def sent(array: Shaped[np.ndarray, "*shape"], device: torch.device) -> Shaped[Tensor, "*shape"]:
    """An array as a tensor on a device, without waiting for it; on a CPU they share memory."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


def any_true(mask: Bool[np.ndarray, "rows length"]) -> Bool[np.ndarray, " rows"]:
    """Whether anything is True in each row."""
    if mask.size <= FEW:
        return np.logical_or.reduce(mask, axis=-1)
    return torch.from_numpy(mask).any(-1).numpy()


def true_places(mask: Bool[np.ndarray, "..."]) -> Int[np.ndarray, " true"]:
    """Indices into the flattened mask of what is True in it."""
    return mask.ravel().nonzero()[0]


def to_lists(*columns: Shaped[Tensor, " _"]) -> list[list[Any]]:
    """Fetches some columns as lists: from a device all at once, through float64, which holds all that a step tells."""
    if columns[0].is_cpu:
        return [column.tolist() for column in columns]
    together = torch.cat([column.double() for column in columns]).cpu()
    parts = together.split([len(column) for column in columns])
    return [part.to(column.dtype).tolist() for part, column in zip(parts, columns, strict=True)]
