"""9×9 Sudoku: reading puzzles, checking the rules, scoring.

Tokens are 0 for an empty (masked) cell and 1..9 for digits, 81 a puzzle, row by row.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.streams import derive
from ..errors import DataError
from ..viewing.layout import Layout
from ._common import ENDLESS, check_index, check_split, check_whole, stack
from .task import Prompts

CELLS = 81
MASK = 0
VOCAB = 10


def _units() -> Int[Tensor, "27 9"]:
    cell = torch.arange(CELLS).reshape(9, 9)
    boxes = cell.reshape(3, 3, 3, 3).transpose(1, 2).reshape(9, 9)
    return torch.cat([cell, cell.T, boxes])


UNITS = _units()
"""Cells of the nine rows, nine columns and nine boxes."""

_UNIT_LISTS = UNITS.tolist()


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

    @property
    def digest(self) -> int:
        """SHA-256 of the puzzle's 81 digits, as a number. Real puzzles validate where it is even, test where odd."""
        return int(hashlib.sha256("".join(map(str, self.cells)).encode()).hexdigest(), 16)

    @property
    def grades(self) -> set[str]:
        """What the file calls its difficulty: column `grade`, column `source`, and the end of that after a `/`."""
        source = self.columns.get("source", "")
        return {self.columns.get("grade", ""), source, source.rpartition("/")[2]} - {""}


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
    for index, unit in enumerate(_UNIT_LISTS):
        digits = [cells[cell] for cell in unit if cells[cell]]
        if len(set(digits)) < len(digits):
            twice = {digit for digit in digits if digits.count(digit) > 1}
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


class SudokuExamples:
    """Puzzles with their solutions: those given, or generated ones, each a function of (seed, index)."""

    def __init__(self, puzzles: list[Puzzle] | None, seed: int, length: int, whole: int) -> None:
        self.puzzles, self.seed, self.length, self.whole = puzzles, seed, length, whole

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Int[Tensor, "81"], Bool[Tensor, "81"]]:
        index = check_index(index, self.length)
        if self.puzzles is not None:
            puzzle = self.puzzles[index]
            return torch.tensor(puzzle.solution), torch.tensor(puzzle.cells) == MASK
        from .sudoku_puzzles import make_pool

        pool = make_pool(self.seed, 1, index)
        maskable = torch.from_numpy(pool.kinds[0] != 2)
        if derive(self.seed, "sudoku whole", index) % 100 < self.whole:
            maskable = torch.ones_like(maskable)
        return torch.from_numpy(pool.solutions[0]).long(), maskable


class SudokuTask:
    """9×9 Sudoku: fill in the empty cells of a puzzle that has one solution.

    Training examples are generated: in 35 % of them every cell may be masked, in the others all but the clues of a
    minimal puzzle. Puzzles of a file validate where their SHA-256 is even and test where it is odd, in the order of
    that number, so that the first few are of all grades; all but their clues may be masked. Without a file, 200 real
    puzzles that ship with the package test, and 1,000 generated minimal ones validate.

    The score is 1 where every row, column and box holds each digit once and the clues are kept, else 0.

    Args:
        data: A CSV file with columns `puzzle` and `solution`.
        grade: Only real puzzles that the file gives this `grade` or `source` (`easy` also stands for
            `sudoku-exchange/easy`).
        seed: Of the training puzzles.

    Raises:
        ImportError: If examples are generated and numba is not installed.
        ValueError: If a setting is out of range.
        DataError: If the file cannot be read, a line of it cannot be used or gives no solution, or it has no puzzle
            of that grade.
    """

    name = "sudoku"
    quality = "share of puzzles solved"
    vocab_size = VOCAB
    mask_id = MASK
    length = CELLS

    def __init__(self, *, data: Path | str | None = None, grade: str | None = None, seed: int = 0) -> None:
        self.seed = check_whole("seed", seed, 0)
        name = "the shipped file" if data is None else str(data)
        puzzles = demo_puzzles() if data is None else _read_solved(Path(data))
        if grade is not None:
            known = sorted(set().union(*(puzzle.grades for puzzle in puzzles)))
            puzzles = [puzzle for puzzle in puzzles if grade in puzzle.grades]
            if not puzzles:
                raise DataError(
                    f"{name} has no puzzle of the grade {grade!r}; it has {', '.join(known) or 'no grades'}"
                )
        ordered = sorted((puzzle.digest, place, puzzle) for place, puzzle in enumerate(puzzles))
        self.puzzles: dict[str, list[Puzzle] | None] = {
            "train": None,
            "validation": None if data is None else [puzzle for digest, _, puzzle in ordered if digest % 2 == 0],
            "test": [puzzle for digest, _, puzzle in ordered if digest % 2 == 1],
        }

    def examples(self, split: str) -> SudokuExamples:
        """Returns the puzzles of a split, `2**31` for training.

        Raises:
            ValueError: If there is no such split.
            DataError: If the file has no puzzle of the split.
        """
        puzzles = self.puzzles[check_split(split)]
        if puzzles is not None:
            if not puzzles:
                raise DataError(f"the file has no puzzle of the {split} split; give a larger one")
            return SudokuExamples(puzzles, 0, len(puzzles), 0)
        if split == "train":
            return SudokuExamples(None, derive(self.seed, "sudoku train") >> 1, ENDLESS, 35)
        return SudokuExamples(None, derive(0, "sudoku validation") >> 1, 1000, 0)

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns the first `limit` puzzles of a split."""
        examples = self.examples(split)
        if split == "train":
            examples.whole = 0
        answers, masked = stack(examples, limit)
        return Prompts.of(answers, masked, self.mask_id)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts 81"]) -> Float[Tensor, " prompts"]:
        """Returns 1 for each solved puzzle, else 0."""
        kept = ((prompts.tokens == MASK) | (tokens == prompts.tokens)).all(1)
        return (solved(tokens) & kept).double()

    def show(self, tokens: Int[Tensor, "81"]) -> str:
        """Returns nine lines of digits, `.` where masked."""
        text = "".join("." if token == MASK else str(token) for token in tokens.tolist())
        rows = [" | ".join(text[9 * row + 3 * box :][:3] for box in range(3)) for row in range(9)]
        return "\n------+-----+------\n".join("\n".join(rows[3 * band :][:3]) for band in range(3))

    def symbol(self, token: int) -> str:
        """Returns the digit."""
        return str(token)

    def layout(self, tokens: Int[Tensor, "81"]) -> Layout:
        """Returns nine rows of nine cells, with thick lines around the boxes, of whatever puzzle."""
        return Layout.grid(9, 9, box=(3, 3))


def _read_solved(path: Path) -> list[Puzzle]:
    try:
        file = read_csv(path)
    except OSError as error:
        raise DataError(f"cannot read the puzzles {path}: {error.strerror or error}") from error
    if file.rejected:
        raise DataError(f"{path}, line {file.rejected[0].line}: {file.rejected[0].reason}")
    if not file.puzzles:
        raise DataError(f"{path} holds no puzzle")
    for puzzle in file.puzzles:
        if puzzle.solution is None:
            raise DataError(f"{path}, line {puzzle.line}: no solution; a task needs a column 'solution'")
    return file.puzzles
