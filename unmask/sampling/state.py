"""The state of a batch of sequences: tensors with one row per sequence, which can be selected and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.streams import Purpose, uniforms
from .draw import Draw
from .host import NOTE

_Self = TypeVar("_Self", bound="Rows")


@runtime_checkable
class Rows(Protocol):
    """A memory that holds more than numbers: it has a row for each sequence, and can be split and joined."""

    def select(self: _Self, rows: Int[Tensor, " kept"]) -> _Self:
        """Returns some of the rows, in the given order."""
        ...

    def put(self: _Self, rows: Int[Tensor, " part"], part: _Self) -> _Self:
        """Returns this memory with some rows replaced: those whose indices are given, in ascending order."""
        ...

    def resize(self: _Self, length: int) -> _Self:
        """Returns this memory for sequences with more padding, or with less."""
        ...

    def join(self: _Self, others: Sequence[_Self]) -> _Self:
        """Returns these rows, then those of the others, all of one length."""
        ...


Memory = Float[Tensor, "_ _"] | Rows
"""What a rule remembers of each sequence: a few numbers, or an object of rows."""


def select_memory(memory: Memory, rows: Int[Tensor, " kept"]) -> Memory:
    """Some rows of a memory."""
    return memory[rows] if isinstance(memory, Tensor) else memory.select(rows)


def put_memory(memory: Memory, rows: Int[Tensor, " part"], part: Memory) -> Memory:
    """A memory with some rows replaced."""
    if isinstance(memory, Tensor):
        assert isinstance(part, Tensor)
        return memory.index_copy(0, rows, part)
    assert not isinstance(part, Tensor)
    return memory.put(rows, part)


@dataclass(frozen=True)
class State:
    """The state of a batch: everything the next step depends on. A step returns a new state and leaves the old one.

    Attributes:
        slot: The number that identifies each sequence. It stays the same when others leave, so caches can use it.
        x: Tokens, right-padded with the mask token.
        valid: False at padding.
        pending: Positions still to unmask.
        editable: Positions that were masked at the start: those that a rule may mask again or overwrite.
        block: Number of the block of each position; the lowest unfinished one is open.
        visits: How often each position was masked again: the key of its uniform.
        streams: The random stream of each sequence.
        token_noise: The uniform random number that draws the next token of each position.
        order_noise: A uniform random number per position, for random orders and clocks.
        memory: What the rule remembers of each sequence.
        draw: How tokens are drawn.
        nfe: Evaluations each sequence took part in.
        evaluations: States of each sequence that were evaluated: more than `nfe` if a rule evaluates ahead.
        more: True where the rule has not finished, even if no mask remains.
        mask_id: Id of the mask token.
    """

    slot: Int[Tensor, " batch"]
    x: Int[Tensor, "batch length"]
    valid: Bool[Tensor, "batch length"]
    pending: Bool[Tensor, "batch length"]
    editable: Bool[Tensor, "batch length"]
    block: Int[Tensor, "batch length"]
    visits: Int[Tensor, "batch length"]
    streams: Int[Tensor, " batch"]
    token_noise: Float[Tensor, "batch length"]
    order_noise: Float[Tensor, "batch length"]
    memory: Memory
    draw: Draw
    nfe: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    more: Bool[Tensor, " batch"]
    mask_id: int

    @property
    def finished(self) -> Bool[Tensor, " batch"]:
        """True where no mask remains and the rule has nothing more to do."""
        return ~(self.pending.any(-1) | self.more)

    @property
    def temperature(self) -> Float[Tensor, " batch"]:
        """The temperature of the draw of each sequence."""
        return self.draw.temperature

    def changed(self, **columns: Any) -> State:
        """Returns this state with some columns replaced: `dataclasses.replace` in a quarter of the time."""
        new = object.__new__(State)
        vars(new).update(vars(self), **columns)
        vars(new).pop(NOTE, None)  # it says what the masks were
        return new

    def select(self, rows: Int[Tensor, " kept"]) -> State:
        """Returns some of the sequences, in the given order, with everything remembered of them."""
        kept: dict[str, Any] = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return State(**kept, memory=select_memory(self.memory, rows), draw=self.draw.select(rows), mask_id=self.mask_id)

    def split(self) -> list[State]:
        """Returns one state per sequence."""
        return [self.select(torch.tensor([row], device=self.x.device)) for row in range(len(self.x))]

    def narrow(self, length: int) -> State:
        """Returns this state without the columns from `length` on, which must be padding."""
        assert not bool(self.valid[:, length:].any())
        memory = self.memory if isinstance(self.memory, Tensor) else self.memory.resize(length)
        return replace(self, memory=memory, **{name: getattr(self, name)[:, :length] for name in _WIDE})

    def mask(self, where: Bool[Tensor, "batch length"]) -> State:
        """Masks positions again. The next token there is drawn with a new uniform random number.

        Raises:
            ValueError: If a position is padding.
        """
        if bool((where & ~self.valid).any()):
            raise ValueError("positions to mask again must lie inside their sequences")
        visits = self.visits + where
        row, position = where.nonzero(as_tuple=True)
        again = uniforms(self.streams[row], position, Purpose.AGAIN, visits[row, position])
        return replace(
            self,
            x=self.x.masked_fill(where, self.mask_id),
            pending=self.pending | where,
            visits=visits,
            token_noise=self.token_noise.index_put((row, position), again),
        )

    @staticmethod
    def join(states: Sequence[State]) -> State:
        """Puts the sequences of several states into one, right-padded to a common length.

        All must be states of one rule, because the memories of different rules cannot be joined.

        Raises:
            ValueError: If there are no states, or their mask tokens differ.
        """
        if len({state.mask_id for state in states}) != 1:
            raise ValueError("at least one state is needed, and all must have one mask token")
        length = max(state.x.shape[1] for state in states)
        columns: dict[str, Any] = {}
        for name in _COLUMNS:
            parts = [getattr(state, name) for state in states]
            if name in _WIDE:
                fill = states[0].mask_id if name == "x" else 0
                parts = [torch.nn.functional.pad(part, (0, length - part.shape[1]), value=fill) for part in parts]
            columns[name] = torch.cat(parts)
        memories: list[Any] = [state.memory for state in states]
        if isinstance(memories[0], Tensor):
            memory = torch.cat(memories)
        else:
            memory = memories[0].resize(length).join([other.resize(length) for other in memories[1:]])
        draw = Draw.join([state.draw for state in states])
        return State(**columns, memory=memory, draw=draw, mask_id=states[0].mask_id)


_COLUMNS = tuple(field.name for field in fields(State) if field.name not in ("memory", "draw", "mask_id"))
_WIDE = ("x", "valid", "pending", "editable", "block", "visits", "token_noise", "order_noise")
"""The columns with a number for each position."""
