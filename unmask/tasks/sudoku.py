"""9×9 Sudoku: reading puzzles, checking the rules, scoring.

Tokens are 0 for an empty (masked) cell and 1..9 for digits, 81 a puzzle, row by row.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..draws.streams import derive
from ..errors import DataError
from ..rules import geometry
from ..rules.profile import Relations
from ..viewing.layout import Layout
from ._common import ENDLESS, check_index, check_split, stack
from .sudoku_files import CELLS, UNIT_LISTS, Puzzle, read_puzzles
from .task import Prompts

MASK = 0
VOCAB = 10


UNITS = torch.tensor(UNIT_LISTS)
"""Cells of the nine rows, nine columns and nine boxes."""


def demo_puzzles() -> list[Puzzle]:
    """Returns the real puzzles that ship with the package, graded in their column `source`."""
    text = resources.files("unmask").joinpath("data/sudoku/demo.csv").read_text(encoding="utf-8")
    return read_puzzles(text.splitlines()).puzzles


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
        data: A file of puzzles with their solutions, of any kind that `read_puzzles` reads.
        grade: Only real puzzles that the file gives this `grade` or `source` (`easy` also stands for
            `sudoku-exchange/easy`).
        seed: The seed of the training puzzles.
        encoding: The encoding of the file; default: the one it declares, else UTF-8.

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

    def __init__(
        self,
        *,
        data: Path | str | None = None,
        grade: str | None = None,
        seed: int = 0,
        encoding: str | None = None,
    ) -> None:
        self.seed = whole("seed", seed, 0)
        name = "the shipped file" if data is None else str(data)
        puzzles = demo_puzzles() if data is None else _read_solved(Path(data), encoding)
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

    def geometry(self) -> Relations:
        """Returns which pairs of positions are alike: cells of one row, column or box, or of none."""
        return geometry.sudoku(3)

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


def _read_solved(path: Path, encoding: str | None) -> list[Puzzle]:
    file = read_puzzles(path, encoding=encoding)
    if file.rejected:
        raise DataError(f"{path}, line {file.rejected[0].line}: {file.rejected[0].reason}")
    if not file.puzzles:
        raise DataError(f"{path} holds no puzzle")
    for puzzle in file.puzzles:
        if puzzle.solution is None:
            raise DataError(f"{path}, line {puzzle.line}: no solution; a task needs a column 'solution'")
    return file.puzzles
