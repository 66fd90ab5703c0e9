"""What the host knows about a batch: how many rows the next step has, without asking the device a second time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

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


def to_host(
    chosen: Bool[Tensor, "rows length"], fine: Sequence[Bool[Tensor, ""]]
) -> tuple[Bool[Tensor, "rows length"], bool]:
    """Fetches what was chosen, and whether all is well, at once: the one time a step waits for the device."""
    if chosen.device.type == "cpu":
        return chosen, all(bool(flag) for flag in fine)
    both = torch.cat([chosen.flatten(), *(flag.reshape(1) for flag in fine)]).cpu()
    return both[: chosen.numel()].view(chosen.shape), bool(both[chosen.numel() :].all())


def where_true(mask: Bool[Tensor, "..."], device: torch.device) -> Int[Tensor, " true"]:
    """Indices into the flattened mask of what is True in it, computed on the host and sent to a device."""
    return mask.flatten().nonzero().squeeze(-1).to(device, non_blocking=True)
