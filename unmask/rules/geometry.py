"""The geometries of the package's tasks: which pairs of positions are alike."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol, runtime_checkable

import torch

from .profile import Line, Relations


def relations(length: int, relation: Callable[[int, int], str]) -> Relations:
    """Numbers the relations of all pairs, in order of appearance.

    Args:
        length: Number of positions.
        relation: Names the relation of two positions `i < j`.
    """
    numbers: dict[Hashable, int] = {}
    matrix = torch.zeros(length, length, dtype=torch.int64)
    for i in range(length):
        for j in range(i + 1, length):
            matrix[i, j] = matrix[j, i] = numbers.setdefault(relation(i, j), len(numbers))
    return Relations(matrix, tuple(map(str, numbers)) or ("none",))


def sudoku(order: int) -> Relations:
    """Cells of a Sudoku with boxes of `order × order`: in one line and box, in one line, in one box, or in none."""
    side = order * order

    def relation(i: int, j: int) -> str:
        (r, c), (s, d) = divmod(i, side), divmod(j, side)
        line, box = r == s or c == d, (r // order, c // order) == (s // order, d // order)
        return "line and box" if line and box else "line" if line else "box" if box else "none"

    return relations(side**2, relation)


def maze(size: int) -> Relations:
    """Cells of a square maze, by how far apart they are along each side; the shown half is a class of its own."""

    def relation(i: int, j: int) -> str:
        if i < size**2:
            return "shown"
        (r, c), (s, d) = divmod(i - size**2, size), divmod(j - size**2, size)
        far, near = sorted((abs(r - s), abs(c - d)), reverse=True)
        return f"{far},{near}"

    return relations(2 * size**2, relation)


def music(voices: int, steps: int) -> Relations:
    """Notes of a piece, voice by voice, by their distance in time, in the same voice or in different ones."""
    line = Line.of(steps)

    def relation(i: int, j: int) -> str:
        (v, s), (w, t) = divmod(i, steps), divmod(j, steps)
        apart = line.label(int(line.pairs(torch.tensor(s), torch.tensor(t)))) if s != t else "0"
        return f"{'same' if v == w else 'other'} voice, {apart}"

    return relations(voices * steps, relation)


@runtime_checkable
class Placed(Protocol):
    """A task that says how its positions lie; those of any other lie on a line."""

    def geometry(self) -> Line | Relations:
        """Returns which pairs of positions are alike."""
        ...


@runtime_checkable
class Long(Protocol):
    """A task whose sequences have one length."""

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        ...


def geometry_of(task: Long) -> Line | Relations:
    """Returns the geometry of a task: its own, or else a line."""
    return task.geometry() if isinstance(task, Placed) else Line.of(task.length)
