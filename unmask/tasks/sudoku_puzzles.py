"""Generates Sudoku puzzles: random grids, minimal puzzles, cells that singles determine, and states for training.

Everything depends only on a seed: puzzle number `i` of a seed is the same whether it is made alone or among a million.
The work is done by compiled kernels, which need numba.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Int, UInt8


def _kernels() -> ModuleType:
    try:
        from unmask.tasks import _sudoku_kernels
    except ImportError as error:
        raise ImportError(
            f"making Sudoku puzzles needs numba, which could not be imported ({error}): pip install numba"
        ) from error
    return _sudoku_kernels


@dataclass(frozen=True)
class PuzzlePool:
    """Many minimal puzzles with their solutions.

    Attributes:
        solutions: Complete grids, one per row, as digits 1..9.
        kinds: For each cell 2 if it is a clue of the minimal puzzle, 1 if naked and hidden singles determine it from
            the clues, and 0 if they do not.
    """

    solutions: UInt8[np.ndarray, "puzzles 81"]
    kinds: UInt8[np.ndarray, "puzzles 81"]

    @property
    def puzzles(self) -> UInt8[np.ndarray, "puzzles 81"]:
        """The minimal puzzles, with 0 where there is no clue."""
        return np.where(self.kinds == 2, self.solutions, 0).astype(np.uint8)

    @property
    def hard(self) -> Int[np.ndarray, "hard"]:
        """The row numbers of the puzzles that singles do not solve."""
        return np.flatnonzero((self.kinds == 0).any(1))

    def few(self, clues: int) -> Int[np.ndarray, "few"]:
        """Returns the row numbers of the puzzles with at most `clues` clues."""
        return np.flatnonzero((self.kinds == 2).sum(1) <= clues)


@dataclass(frozen=True)
class StateMix:
    """The mixture of training states: percentages of four kinds, which sum to 100.

    The last three kinds are states of puzzles with one solution: the clues and a random part of the other cells (none,
    some of those that singles determine, all of those, or these and more). As the solution is unique, the right
    prediction for such a state is certain, so these states do not bias the network.

    Attributes:
        random: Percentage of states with n ~ U{1..81} uniformly random masks on a random grid, the masked-diffusion
            objective itself.
        any: Percentage of states of any minimal puzzle.
        few: Percentage of states of minimal puzzles with at most `few_clues` clues.
        hard: Percentage of states of minimal puzzles that naked and hidden singles do not solve.
        few_clues: The largest number of clues for `few`.

    Raises:
        ValueError: If a percentage is negative, or they do not sum to 100.
    """

    random: int = 35
    any: int = 15
    few: int = 15
    hard: int = 35
    few_clues: int = 22

    def __post_init__(self) -> None:
        parts = (self.random, self.any, self.few, self.hard)
        if min(parts) < 0 or sum(parts) != 100:
            raise ValueError(f"the percentages of a StateMix must be >= 0 and sum to 100, got {parts}")


def make_pool(seed: int, count: int, start: int = 0) -> PuzzlePool:
    """Makes the minimal puzzles with the numbers `start` to `start + count - 1` of a seed, in about 0.4 ms each.

    From a random complete grid, digits are removed in random order unless the solution would no longer be unique. So no
    clue of the result can be removed. The grids come from randomised backtracking: all grids are possible, but their
    distribution is not exactly uniform.

    Args:
        seed: The seed, an integer from 0 to 2^63 - 1.
        count: Number of puzzles.
        start: Number of the first puzzle.

    Raises:
        ImportError: If numba is not installed.
        ValueError: If an argument is negative.
    """
    if seed < 0 or count < 0 or start < 0:
        raise ValueError(f"seed, count and start must be >= 0, got {seed}, {count}, {start}")
    solutions = np.empty((count, 81), np.uint8)
    kinds = np.empty((count, 81), np.uint8)
    _kernels().make_pool(seed, start, solutions, kinds)
    return PuzzlePool(solutions, kinds)


def count_solutions(
    puzzles: Int[np.ndarray, "puzzles 81"], limit: int = 2
) -> tuple[Int[np.ndarray, "puzzles"], UInt8[np.ndarray, "puzzles 81"]]:
    """Counts the solutions of each puzzle.

    Args:
        puzzles: The puzzles, with 0 for empty cells.
        limit: The count stops at this number.

    Returns:
        The counts, and one solution of each puzzle (zeros if it has none).

    Raises:
        ImportError: If numba is not installed.
    """
    puzzles = np.ascontiguousarray(puzzles, np.int64)
    counts = np.zeros(len(puzzles), np.int64)
    solutions = np.zeros((len(puzzles), 81), np.uint8)
    _kernels().count_many(puzzles, limit, counts, solutions)
    return counts, solutions


def close_under_singles(puzzle: Int[np.ndarray, "81"]) -> Int[np.ndarray, "81"]:
    """Fills in all cells that naked and hidden singles determine; a contradictory puzzle is returned unchanged.

    Raises:
        ImportError: If numba is not installed.
    """
    closed = np.empty(81, np.int64)
    _kernels().closure(np.ascontiguousarray(puzzle, np.int64), closed)
    return closed


def shuffle_symmetries(grids: Int[np.ndarray, "*grids 81"], seed: int) -> Int[np.ndarray, "*grids 81"]:
    """Applies the same random symmetry of Sudoku to all grids: it permutes cells and relabels digits; 0 stays 0.

    Args:
        grids: The grids.
        seed: The seed, which determines the symmetry.
    """
    rng = np.random.default_rng(seed)

    def lines() -> np.ndarray:
        return np.concatenate([3 * band + rng.permutation(3) for band in rng.permutation(3)])

    cells = np.arange(81).reshape(9, 9)[lines()][:, lines()]
    if rng.integers(2):
        cells = cells.T
    digits = np.concatenate([[0], 1 + rng.permutation(9)])
    return digits[grids[..., cells.ravel()]].astype(grids.dtype)


def training_batch(
    pool: PuzzlePool, seed: int, step: int, batch_size: int, mix: StateMix
) -> tuple[Int[np.ndarray, "batch 81"], Int[np.ndarray, "batch 81"]]:
    """Returns partly masked grids and their solutions.

    Args:
        pool: The puzzles.
        seed: The seed. With the pool, the step and the mixture it determines the batch.
        step: The training step.
        batch_size: Number of grids.
        mix: The mixture of the kinds of states.

    Raises:
        ImportError: If numba is not installed.
        ValueError: If the pool has no puzzle of a kind in the mixture.
    """
    hard, few = pool.hard, pool.few(mix.few_clues)
    if (mix.hard and not len(hard)) or (mix.few and not len(few)):
        raise ValueError(
            f"the pool of {len(pool.solutions)} puzzles holds {len(hard)} that singles do not solve and {len(few)} "
            f"with at most {mix.few_clues} clues; the mix needs both: make a larger pool"
        )
    return _batch(pool, hard, few, seed, step, batch_size, mix)


def _batch(
    pool: PuzzlePool, hard: np.ndarray, few: np.ndarray, seed: int, step: int, batch_size: int, mix: StateMix
) -> tuple[np.ndarray, np.ndarray]:
    x = np.empty((batch_size, 81), np.int64)
    target = np.empty((batch_size, 81), np.int64)
    weights = np.cumsum([mix.random, mix.any, mix.few, mix.hard])
    _kernels().training_states(seed, step, pool.solutions, pool.kinds, hard, few, weights, x, target)
    return x, target
