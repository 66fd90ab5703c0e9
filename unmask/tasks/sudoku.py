"""9×9 Sudoku: reading puzzles, checking the rules, scoring.

Tokens are 0 for an empty (masked) cell and 1..9 for digits, 81 a puzzle, row by row.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import DataError

CELLS = 81
MASK = 0
VOCAB = 10


def _units() -> Int[Tensor, "27 9"]:
    cell = torch.arange(CELLS).reshape(9, 9)
    boxes = cell.reshape(3, 3, 3, 3).transpose(1, 2).reshape(9, 9)
    return torch.cat([cell, cell.T, boxes])


UNITS = _units()
"""Cells of the nine rows, nine columns and nine boxes."""


@dataclass(frozen=True)
class Puzzle:
    """One puzzle of a file.

    Attributes:
        cells: 81 tokens, 0 where empty.
        solution: 81 digits, or `None` if the file gives none.
        line: Line number in its file.
        columns: The file's other columns.
    """

    cells: tuple[int, ...]
    solution: tuple[int, ...] | None
    line: int
    columns: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rejected:
    """A line that holds no usable puzzle, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class PuzzleFile:
    """The puzzles of a CSV file, and the lines that were left out."""

    puzzles: list[Puzzle]
    rejected: list[Rejected]


def parse_cells(text: str) -> tuple[int, ...]:
    """Reads 81 characters, `1`-`9` for clues and `0` or `.` for empty cells.

    Raises:
        DataError: If there are not 81 of them, one is something else, or two clues contradict each other.
    """
    text = text.strip()
    if len(text) != CELLS:
        raise DataError(f"a puzzle has 81 characters, got {len(text)}: {text[:20]!r}")
    strange = sorted(set(text) - set("0123456789."))
    if strange:
        raise DataError(f"cells are the digits 1-9, and 0 or . where empty; got {' '.join(map(repr, strange))}")
    cells = tuple(0 if char == "." else int(char) for char in text)
    for index, unit in enumerate(UNITS.tolist()):
        digits = [cells[cell] for cell in unit if cells[cell]]
        twice = {digit for digit in digits if digits.count(digit) > 1}
        if twice:
            name = ("row", "column", "box")[index // 9]
            raise DataError(f"contradictory clues: {min(twice)} occurs twice in {name} {index % 9 + 1}")
    return cells


def read_csv(source: Path | Iterable[str], limit: int | None = None) -> PuzzleFile:
    """Reads a CSV file with a column `puzzle`, perhaps `solution`, and any others.

    A line that cannot be used is reported with its number and does not stop the rest.

    Args:
        source: A path, or the lines themselves.
        limit: Stop after so many puzzles.

    Raises:
        DataError: If there is no column `puzzle`.
        OSError: If the file cannot be read.
    """
    if isinstance(source, Path):
        with source.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            return _read(stream, limit, str(source))
    return _read(iter(source), limit, "the input")


def _read(stream: Iterable[str], limit: int | None, name: str) -> PuzzleFile:
    # One line, one puzzle: a stray quote must not swallow the lines after it, as it would in a CSV of many-line fields.
    lines = enumerate(stream, start=1)
    header = _fields(next(lines, (1, ""))[1])
    if "puzzle" not in header:
        shown = ",".join(header)[:60]
        raise DataError(f"{name} needs a header line with a column 'puzzle' (and perhaps 'solution'), got {shown!r}")
    file = PuzzleFile([], [])
    for number, line in lines:
        if limit is not None and len(file.puzzles) >= limit:
            break
        if not line.strip():
            continue
        try:
            file.puzzles.append(_puzzle(dict(zip(header, _fields(line, len(header)), strict=True)), number))
        except (DataError, csv.Error) as error:
            file.rejected.append(Rejected(number, str(error)))
    return file


def _fields(line: str, expected: int | None = None) -> list[str]:
    fields = next(csv.reader([line.rstrip("\r\n")], strict=True), [])
    if expected is not None and len(fields) != expected:
        raise DataError(f"{len(fields)} fields where the header has {expected}")
    return fields


def _puzzle(row: dict[str, str], line: int) -> Puzzle:
    cells = parse_cells(row.pop("puzzle"))
    text = row.pop("solution", "").strip()
    solution = parse_cells(text) if text else None
    if solution is not None and 0 in solution:
        raise DataError("the solution has empty cells")
    if solution is not None and any(c not in (0, s) for c, s in zip(cells, solution, strict=True)):
        raise DataError("the solution contradicts the clues")
    return Puzzle(cells, solution, line, row)


def demo_puzzles() -> list[Puzzle]:
    """Returns the real puzzles that ship with the package, graded in their column `source`."""
    text = resources.files("unmask").joinpath("data/sudoku/demo.csv").read_text(encoding="utf-8")
    return read_csv(text.splitlines()).puzzles


def as_tensor(puzzles: Iterable[Puzzle]) -> Int[Tensor, "puzzles 81"]:
    """Stacks the cells of puzzles."""
    return torch.tensor([puzzle.cells for puzzle in puzzles], dtype=torch.int64).reshape(-1, CELLS)


def solved(grids: Int[Tensor, "grids 81"]) -> Bool[Tensor, " grids"]:
    """True where every row, column and box holds the digits 1 to 9."""
    digits = torch.arange(1, 10)
    return (grids[:, UNITS].sort(-1).values == digits).all(-1).all(-1)


def cells_correct(grids: Int[Tensor, "grids 81"], puzzles: list[Puzzle]) -> tuple[int, int]:
    """Counts, over puzzles with a known solution, the cells that had to be filled in: (right, all)."""
    right = total = 0
    for grid, puzzle in zip(grids.tolist(), puzzles, strict=True):
        if puzzle.solution is None:
            continue
        empty = [cell for cell in range(CELLS) if puzzle.cells[cell] == MASK]
        right += sum(grid[cell] == puzzle.solution[cell] for cell in empty)
        total += len(empty)
    return right, total
