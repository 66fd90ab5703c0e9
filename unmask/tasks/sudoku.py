"""9×9 Sudoku: puzzles, a check of the rules, and the task.

A puzzle has 81 tokens, row by row: 0 for an empty (masked) cell and 1..9 for digits.
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
    """Returns the real puzzles that ship with the package, whose column `source` gives their difficulty."""
    text = resources.files("unmask").joinpath("data/sudoku/demo.csv").read_text(encoding="utf-8")
    return read_puzzles(text.splitlines()).puzzles


def as_tensor(puzzles: Iterable[Puzzle]) -> Int[Tensor, "puzzles 81"]:
    """Returns the cells of puzzles as one tensor."""
    return torch.tensor([puzzle.cells for puzzle in puzzles], dtype=torch.int64).reshape(-1, CELLS)


def solved(grids: Int[Tensor, "grids 81"]) -> Bool[Tensor, " grids"]:
    """Returns which grids hold the digits 1 to 9 in every row, column and box."""
    digits = torch.arange(1, 10)
    return (grids[:, UNITS].sort(-1).values == digits).all(-1).all(-1)


def cells_correct(grids: Int[Tensor, "grids 81"], puzzles: list[Puzzle]) -> tuple[int, int]:
    """Counts the cells that had to be filled in, over puzzles with a known solution.

    Args:
        grids: The completed grids.
        puzzles: Their puzzles; those without a solution are skipped.

    Returns:
        The number of these cells that are right, and the number of all of them.
    """
    right = total = 0
    for grid, puzzle in zip(grids.tolist(), puzzles, strict=True):
        if puzzle.solution is None:
            continue
        empty = [cell for cell in range(CELLS) if puzzle.cells[cell] == MASK]
        right += sum(grid[cell] == puzzle.solution[cell] for cell in empty)
        total += len(empty)
    return right, total


class SudokuExamples:
    """Puzzles with their solutions: given ones, or generated ones, each a function of (seed, index).

    Args:
        puzzles: The puzzles; `None`: they are generated.
        seed: The seed of generated puzzles.
        length: Number of puzzles.
        whole: The percentage of generated puzzles all of whose cells may be masked, the clues included.
    """

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
    minimal puzzle. The puzzles of a file are in the validation split if their SHA-256 is even, and in the test split if
    it is odd. They are ordered by that number, so that the first few have all difficulties; all cells but the clues may
    be masked. Without a file, 200 real puzzles that ship with the package are the test split, and 1,000 generated
    minimal puzzles are the validation split.

    The score is 1 if every row, column and box holds each digit once and the clues are kept, and 0 if not.

    Args:
        data: A file of puzzles with their solutions, in any format that `read_puzzles` reads.
        grade: Use only puzzles to which the file gives this `grade` or `source` (`easy` also stands for
            `sudoku-exchange/easy`). It does not apply to generated puzzles.
        seed: The seed of the training puzzles.
        encoding: The encoding of the file; default: the one that it declares, or else UTF-8.

    Raises:
        ImportError: When an example is generated, if numba is not installed.
        ValueError: If a setting is out of range.
        DataError: If the file cannot be read, one of its lines cannot be used or gives no solution, or it has no puzzle
            of the grade.
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
        """Returns the first `limit` puzzles of a split, with all cells but the clues masked."""
        examples = self.examples(split)
        if split == "train":
            examples.whole = 0
        answers, masked = stack(examples, limit)
        return Prompts.of(answers, masked, self.mask_id)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts 81"]) -> Float[Tensor, " prompts"]:
        """Returns 1 for each puzzle that is solved with its clues kept, and 0 for the others."""
        kept = ((prompts.tokens == MASK) | (tokens == prompts.tokens)).all(1)
        return (solved(tokens) & kept).double()

    def geometry(self) -> Relations:
        """Returns which pairs of positions are alike: pairs of cells that share a row, a column, a box, or none."""
        return geometry.sudoku(3)

    def show(self, tokens: Int[Tensor, "81"]) -> str:
        """Returns the grid as text: nine rows of digits with lines between the boxes, and `.` for a mask."""
        text = "".join("." if token == MASK else str(token) for token in tokens.tolist())
        rows = [" | ".join(text[9 * row + 3 * box :][:3] for box in range(3)) for row in range(9)]
        return "\n------+-----+------\n".join("\n".join(rows[3 * band :][:3]) for band in range(3))

    def symbol(self, token: int) -> str:
        """Returns the digit of a token as text."""
        return str(token)

    def layout(self, tokens: Int[Tensor, "81"]) -> Layout:
        """Returns a grid of nine by nine cells with thick lines around the boxes, the same for all puzzles."""
        return Layout.grid(9, 9, box=(3, 3))


def _read_solved(path: Path, encoding: str | None) -> list[Puzzle]:
    file = read_puzzles(path, encoding=encoding)
    if file.rejected:
        raise DataError(f"{path}, line {file.rejected[0].line}: {file.rejected[0].reason}")
    if not file.puzzles:
        raise DataError(f"{path} does not hold any puzzle")
    for puzzle in file.puzzles:
        if puzzle.solution is None:
            raise DataError(f"{path}, line {puzzle.line}: no solution; a task needs a column 'solution'")
    return file.puzzles
