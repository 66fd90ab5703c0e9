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

    pending: Bool[Tensor, "batch length"]
    block: Int[Tensor, "batch length"]
    more: Bool[Tensor, " batch"]

    @staticmethod
    def of(state: State) -> HostMasks:
        """What was noted of a state, or fresh copies."""
        noted = vars(state).get(_NOTE)
        return HostMasks(state.pending.cpu(), state.block.cpu(), state.more.cpu()) if noted is None else noted

    @property
    def alive(self) -> Int[Tensor, " alive"]:
        """The rows that are not finished."""
        return torch.from_numpy(np.flatnonzero(self.pending.numpy().any(-1) | self.more.numpy()))

    @property
    def open(self) -> Bool[Tensor, "batch length"]:
        """The masks of the open block of each sequence: the candidates."""
        return open_block(self.pending, self.block) if self.block.numpy().any() else self.pending

    def of_rows(self, rows: Int[Tensor, " rows"]) -> HostMasks:
        """Those of some sequences, in ascending order."""
        if len(rows) == len(self.pending):
            return self
        return HostMasks(self.pending[rows], self.block[rows], self.more[rows])

    def after(
        self, state: State, rows: Int[Tensor, " rows"], taken: Bool[Tensor, "rows length"], more: Tensor | None
    ) -> State:
        """Notes on a state what is left of these masks after some rows were written, and returns it.

        Unless `more` is `None`, it was changed.

        The note is no field: what `dataclasses.replace` makes of the state comes without it.
        """
        if state.pending.device.type != "cpu":
            left = self.pending.index_copy(0, rows, self.pending[rows] & ~taken)
            object.__setattr__(
                state, _NOTE, HostMasks(left, self.block, self.more if more is None else state.more.cpu())
            )
        return state


_NOTE = "_host"


def all_finite(values: Float[Tensor, " values"]) -> Bool[Tensor, ""] | bool:
    """Whether all values are finite; where they are, so that looking does not wait for a device.

    On a CPU their sum tells, in fewer operations. It may overflow: what is said to be wrong is then looked at again.
    """
    if values.is_cpu:
        return math.isfinite(values.sum(dtype=torch.float64).item())
    return values.isfinite().all()


def to_host(
    chosen: Bool[Tensor, "rows length"], fine: Sequence[Bool[Tensor, ""] | bool]
) -> tuple[Bool[Tensor, "rows length"], bool]:
    """Fetches what was chosen, and whether all is well, at once: the one time a step waits for the device."""
    if chosen.is_cpu:
        return chosen, all(fine)
    flags = [torch.as_tensor(flag, device=chosen.device).reshape(1) for flag in fine]
    both = torch.cat([chosen.flatten(), *flags]).cpu()
    return both[: chosen.numel()].view(chosen.shape), bool(both[chosen.numel() :].all())


def where_true(mask: Bool[Tensor, "..."], device: torch.device) -> Int[Tensor, " true"]:
    """Indices into the flattened mask of what is True in it, computed on the host and sent to a device."""
    return torch.from_numpy(np.flatnonzero(mask.numpy())).to(device, non_blocking=True)


def to_lists(*columns: Shaped[Tensor, " _"]) -> list[list[Any]]:
    """Fetches some columns as lists: from a device all at once, through float64, which holds all that a step tells."""
    if columns[0].is_cpu:
        return [column.tolist() for column in columns]
    together = torch.cat([column.double() for column in columns]).cpu()
    parts = together.split([len(column) for column in columns])
    return [part.to(column.dtype).tolist() for part, column in zip(parts, columns, strict=True)]
