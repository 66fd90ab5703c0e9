"""Mazes: given walls, start and end, predict for each cell where the shortest path goes next.

A sequence has two halves of `size²` tokens, one per cell, row by row: the *maze*, which is always shown, and the
*answer*, which is masked. A token of the maze says which of the four sides are open (16 sets) and whether the cell is
plain, the start or the end. A token of the answer is the direction from the cell to the next cell of the path (north,
east, south, west), or none for the end and for cells that are not on the path. So a prompt has `size²` masks.

There are two kinds. `tree`: a depth-first maze, in which exactly one path joins any two cells. The generator follows
`gen_dfs` of maze-dataset: it starts in a random cell that is in neither the last row nor the last column, and moves to
a random unvisited neighbour, or back if there is none. `loops`: the same with some of the walls removed, so that there
may be several shortest paths; the answer of an example is one of them, uniformly drawn. In both kinds, start and end
are two different cells, and all pairs have equal probability.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..draws.streams import derive
from ..errors import DataError
from ..files.tables import read_table
from ..rules import geometry
from ..rules.profile import Relations
from ..viewing.layout import EAST, NORTH, SOUTH, WEST, Layout
from ._common import ENDLESS, Draws, check_index, check_split, stack
from .task import Prompts

CONDITIONS = 48
"""Number of token ids of the maze: `16 · role + open sides`, with the roles 0 (plain), 1 (start) and 2 (end)."""

ANSWERS = {0: CONDITIONS, NORTH: CONDITIONS + 1, EAST: CONDITIONS + 2, SOUTH: CONDITIONS + 3, WEST: CONDITIONS + 4}
"""Token ids of the answer, by direction; 0 is no direction."""

MASK = CONDITIONS + len(ANSWERS)

_DIRECTIONS = {token: side for side, token in ANSWERS.items()}
_ARROWS = {NORTH: "^", EAST: ">", SOUTH: "v", WEST: "<"}
_VALIDATION, _TEST, _BUCKETS = 2_000, 10_000, 16


@dataclass(frozen=True)
class Maze:
    """A square maze.

    Attributes:
        size: Cells per side.
        sides: For each cell, row by row, the set of its open sides: a sum of `NORTH`, `EAST`, `SOUTH` and `WEST`.
        start: Number of the cell in which the path starts.
        end: Number of the cell in which the path ends.
    """

    size: int
    sides: tuple[int, ...]
    start: int
    end: int


@cache
def _neighbours(size: int) -> list[list[tuple[int, int, int]]]:
    # For each cell: (side, the same wall seen from the other cell, the other cell).
    table = []
    for cell in range(size * size):
        row, column = divmod(cell, size)
        found = []
        if row:
            found.append((NORTH, SOUTH, cell - size))
        if column < size - 1:
            found.append((EAST, WEST, cell + 1))
        if row < size - 1:
            found.append((SOUTH, NORTH, cell + size))
        if column:
            found.append((WEST, EAST, cell - 1))
        table.append(found)
    return table


def random_maze(size: int, removed: float, draws: Draws) -> Maze:
    """Makes a depth-first maze, and opens a share of its inner walls.

    Args:
        size: Cells per side, at least 2.
        removed: The share of the remaining walls between cells that is opened, rounded to whole walls.
        draws: The random numbers.
    """
    table = _neighbours(size)
    sides = [0] * (size * size)
    cell = size * draws.below(size - 1) + draws.below(size - 1)
    visited = bytearray(size * size)
    visited[cell] = 1
    trail = [cell]
    while trail:
        cell = trail[-1]
        choices = [one for one in table[cell] if not visited[one[2]]]
        if not choices:
            trail.pop()
            continue
        side, opposite, other = choices[draws.below(len(choices))] if len(choices) > 1 else choices[0]
        sides[cell] |= side
        sides[other] |= opposite
        visited[other] = 1
        trail.append(other)
    if removed:
        walls = [
            (cell, *one)
            for cell in range(size * size)
            for one in table[cell]
            if one[2] > cell and not sides[cell] & one[0]
        ]
        for number in draws.sample(len(walls), round(removed * len(walls))):
            cell, side, opposite, other = walls[number]
            sides[cell] |= side
            sides[other] |= opposite
    start, end = draws.sample(size * size, 2)
    return Maze(size, tuple(sides), start, end)


def distances(maze: Maze) -> list[int]:
    """Returns the number of steps from each cell to the end, and -1 for cells from which it cannot be reached."""
    table = _neighbours(maze.size)
    steps = [-1] * len(maze.sides)
    steps[maze.end] = 0
    reached = [maze.end]
    for cell in reached:  # the list grows during the loop: a breadth-first search
        for side, _, other in table[cell]:
            if maze.sides[cell] & side and steps[other] < 0:
                steps[other] = steps[cell] + 1
                reached.append(other)
    return steps


def path_counts(maze: Maze) -> list[int]:
    """Returns the number of shortest paths from each cell to the end."""
    table = _neighbours(maze.size)
    steps = distances(maze)
    counts = [0] * len(steps)
    counts[maze.end] = 1
    for cell in sorted(range(len(steps)), key=steps.__getitem__):
        if steps[cell] > 0:
            counts[cell] = sum(
                counts[other]
                for side, _, other in table[cell]
                if maze.sides[cell] & side and steps[other] < steps[cell]
            )
    return counts


def shortest_path(maze: Maze, draws: Draws) -> list[int]:
    """Returns the answer for a uniformly random shortest path: for each cell the side by which it is left, 0 for none.

    At each step, the probability of a neighbour is its share of the remaining shortest paths.

    Args:
        maze: The maze, in which the end can be reached from the start.
        draws: The random numbers.
    """
    table = _neighbours(maze.size)
    counts, steps = path_counts(maze), distances(maze)
    answer = [0] * len(maze.sides)
    cell = maze.start
    while cell != maze.end:
        nearer = [
            (side, other)
            for side, _, other in table[cell]
            if maze.sides[cell] & side and steps[other] == steps[cell] - 1
        ]
        number = draws.below(counts[cell]) if len(nearer) > 1 else 0
        for side, other in nearer:
            if number < counts[other]:
                answer[cell] = side
                cell = other
                break
            number -= counts[other]
    return answer


def is_shortest_path(maze: Maze, answer: Sequence[int | None]) -> bool:
    """Returns whether an answer is exactly a shortest path.

    The directions must lead from start to end through open sides in as few steps as possible, and all other cells must
    have no direction.

    Args:
        maze: The maze.
        answer: For each cell the side by which the path leaves it, 0 for none; `None` if its token is not of an answer.
    """
    table = _neighbours(maze.size)
    cell, used = maze.start, 0
    while cell != maze.end:
        side = answer[cell]
        onward = [other for one, _, other in table[cell] if one == side and maze.sides[cell] & one]
        if not onward or used == len(answer):
            return False
        cell = onward[0]
        used += 1
    return used == distances(maze)[maze.start] and sum(side != 0 for side in answer) == used


def encode(maze: Maze, answer: Sequence[int]) -> Int[Tensor, " length"]:
    """Returns the tokens of a maze and its answer."""
    tokens = list(maze.sides)
    tokens[maze.start] += 16
    tokens[maze.end] += 32
    return torch.tensor(tokens + [ANSWERS[side] for side in answer])


def decode(tokens: Int[Tensor, " length"]) -> tuple[Maze, list[int | None]]:
    """Returns the maze and the answer of a sequence; `None` for cells that are masked or have a token of the maze.

    Raises:
        ValueError: If the first half is not a maze with one start and one end.
    """
    half = len(tokens) // 2
    cells, answer = tokens[:half].tolist(), tokens[half:].tolist()
    roles = [cell // 16 for cell in cells]
    if sorted(roles) != [0] * (half - 2) + [1, 2]:
        raise ValueError("the first half of the tokens is not a maze with one start and one end")
    maze = Maze(round(half**0.5), tuple(cell % 16 for cell in cells), roles.index(1), roles.index(2))
    return maze, [_DIRECTIONS.get(token) for token in answer]


def draw(maze: Maze, answer: Sequence[int | None]) -> str:
    """Draws a maze as text: `#` is a wall, `S` the start, `E` the end, arrows are the answer, `?` is a mask."""
    wide = 2 * maze.size + 1
    canvas = [["#"] * wide for _ in range(wide)]
    shift = {NORTH: (-1, 0), EAST: (0, 1), SOUTH: (1, 0), WEST: (0, -1)}
    for cell, sides in enumerate(maze.sides):
        row, column = (2 * place + 1 for place in divmod(cell, maze.size))
        canvas[row][column] = " "
        for side, (down, right) in shift.items():
            if sides & side:
                canvas[row + down][column + right] = " "
    for cell, side in enumerate(answer):
        row, column = (2 * place + 1 for place in divmod(cell, maze.size))
        if side:
            down, right = shift[side]
            canvas[row][column] = canvas[row + down][column + right] = _ARROWS[side]
        elif side is None:
            canvas[row][column] = "?"
    for cell, name in ((maze.start, "S"), (maze.end, "E")):
        row, column = (2 * place + 1 for place in divmod(cell, maze.size))
        canvas[row][column] = name
    return "\n".join("".join(line) for line in canvas)


def parse_drawing(text: str) -> Maze:
    """Reads a maze drawn as `(2 size + 1)²` characters, row by row: `#` wall, `.` open, `S` start, `E` end.

    Raises:
        DataError: If the text is not such a drawing.
    """
    wide = round(len(text) ** 0.5)
    if wide * wide != len(text) or wide % 2 == 0 or wide < 5:
        raise DataError(f"a drawn maze has (2n + 1)² characters, got {len(text)}")
    if set(text) - set("#.SE") or text.count("S") != 1 or text.count("E") != 1:
        raise DataError("a drawn maze has one S and one E; all other characters are # and .")
    size = wide // 2
    ends = {text[wide * row + column]: (row, column) for row in range(wide) for column in range(wide)}
    if any(place % 2 == 0 for name in "SE" for place in ends[name]):
        raise DataError("start and end must be cells, not walls")
    sides = []
    for cell in range(size * size):
        row, column = (2 * place + 1 for place in divmod(cell, size))
        at = wide * row + column
        if text[at] == "#":
            raise DataError(f"the cell in row {row // 2 + 1}, column {column // 2 + 1} is drawn as a wall")
        around = {NORTH: at - wide, EAST: at + 1, SOUTH: at + wide, WEST: at - 1}
        sides.append(sum(side for side, there in around.items() if text[there] != "#"))
        if any(sides[-1] & side and not _inside(there, wide) for side, there in around.items()):
            raise DataError("the outer wall is open")
    start, end = (size * (ends[name][0] // 2) + ends[name][1] // 2 for name in "SE")
    return Maze(size, tuple(sides), start, end)


def _inside(at: int, wide: int) -> bool:
    return 0 < at // wide < wide - 1 and 0 < at % wide < wide - 1


def is_tree(maze: Maze) -> bool:
    """Returns whether exactly one path joins any two cells."""
    return sum(side.bit_count() for side in maze.sides) == 2 * (len(maze.sides) - 1) and min(distances(maze)) >= 0


def read_csv(path: Path, encoding: str | None = None) -> list[Maze]:
    """Reads drawn mazes from a CSV file with a column `maze` (see `parse_drawing`); other columns are ignored.

    Args:
        path: The file; see `unmask.files.tables.read_table`.
        encoding: The encoding of the file; default: the one that it declares, or else UTF-8.

    Raises:
        DataError: If the file cannot be read, has no such column or no row, or a row does not hold a maze. The message
            names the line.
    """
    mazes = []
    for line, row in read_table(path, ("maze",), "the mazes", encoding):
        try:
            mazes.append(parse_drawing(row["maze"]))
        except DataError as error:
            raise DataError(f"{path}, line {line}: {error}") from error
    if not mazes:
        raise DataError(f"{path} does not hold any maze")
    return mazes


@cache
def embedded_mazes() -> tuple[Maze, ...]:
    """Returns 10,000 depth-first mazes of 6×6 cells made by others, the test set of the kind `tree`."""
    file = resources.files("unmask").joinpath("data/mazes/mazes6.txt.gz")
    lines = gzip.decompress(file.read_bytes()).decode("ascii").split()
    return tuple(
        Maze(6, tuple(int(digit, 16) for digit in line[:36]), int(line[36], 36), int(line[37], 36)) for line in lines
    )


class MazeExamples:
    """The mazes of a split: given mazes, or generated ones, each a function of (seed, index).

    Args:
        task: The task.
        split: The split.
        mazes: The mazes; `None`: they are generated.
    """

    def __init__(self, task: MazeTask, split: str, mazes: Sequence[Maze] | None) -> None:
        self.task, self.split, self.mazes = task, split, mazes

    def __len__(self) -> int:
        if self.mazes is not None:
            return len(self.mazes)
        return {"train": ENDLESS, "validation": _VALIDATION, "test": _TEST}[self.split]

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        index = check_index(index, len(self))
        task = self.task
        draws = Draws(task.seed if self.split == "train" else 0, "maze", task.kind, self.split, index)
        if self.mazes is None:
            maze = random_maze(task.size, task.removed, draws)
            while task.split_of(maze) != self.split:
                maze = random_maze(task.size, task.removed, draws)
        else:
            maze = self.mazes[index]
        maskable = torch.zeros(task.length, dtype=torch.bool)
        maskable[task.size**2 :] = True
        return encode(maze, shortest_path(maze, draws)), maskable


class MazeTask:
    """Mazes: find the shortest path (see the module for the tokens).

    Only answers are masked, also in training. A hash of a maze's walls determines its split, whatever its start and
    end. The validation split has 2,000 mazes, the test split 10,000. For trees of 6×6 cells the test mazes are those of
    an embedded file made by others, and none of them is in another split. (There are so few 6×6 trees that among 10,000
    some occur twice.)

    The score is 1 if the answer is exactly a shortest path from start to end, and 0 if not. In a tree there is only one
    path.

    Args:
        kind: `"tree"` or `"loops"`.
        size: Cells per side, at least 4 (there are only 42 trees of 3×3); default: 6 for trees, 8 for loops.
        removed: The share of the walls that is opened to make loops.
        data: A CSV file with a column `maze` of drawings (see `parse_drawing`), which replace the kind's own test
            mazes; for the kind `tree` they must be trees.
        seed: The seed of the training mazes.
        encoding: The encoding of the file; default: the one that it declares, or else UTF-8.

    Raises:
        ValueError: If a setting is out of range.
        DataError: If the file cannot be read, or a maze does not fit the kind and size, or its end cannot be reached.
    """

    name = "maze"
    vocab_size = MASK + 1
    mask_id = MASK

    def __init__(
        self,
        kind: Literal["tree", "loops"] = "tree",
        *,
        size: int | None = None,
        removed: float = 0.2,
        data: Path | str | None = None,
        seed: int = 0,
        encoding: str | None = None,
    ) -> None:
        if kind not in ("tree", "loops"):
            raise ValueError(f"unknown kind {kind!r}; choose one of tree, loops")
        if not 0 < removed <= 1:
            raise ValueError(f"removed must be above 0 and at most 1, got {removed!r}")
        self.kind = kind
        self.size = whole("size", (6 if kind == "tree" else 8) if size is None else size, 4, 32)
        self.removed = removed if kind == "loops" else 0.0
        self.seed = whole("seed", seed, 0)
        self.length = 2 * self.size**2
        self.quality = "exact paths" if kind == "tree" else "paths that are legal and shortest"
        self.mazes: Sequence[Maze] | None = None
        if data is not None:
            self.mazes = read_csv(Path(data), encoding)
            for number, maze in enumerate(self.mazes, start=1):
                self._check(maze, f"{data}, maze {number}")
        elif kind == "tree" and self.size == 6:
            self.mazes = embedded_mazes()
        self.held_out = frozenset(bytes(maze.sides) for maze in self.mazes or ())

    def _check(self, maze: Maze, name: str) -> None:
        if maze.size != self.size:
            raise DataError(
                f"{name} has {maze.size}×{maze.size} cells, not {self.size}×{self.size}; set size={maze.size}"
            )
        if self.kind == "tree" and not is_tree(maze):
            raise DataError(
                f"{name} is not a tree: not exactly one path joins any two of its cells; kind=loops accepts it"
            )
        if distances(maze)[maze.start] < 0:
            raise DataError(f"{name} has no path from start to end")

    def split_of(self, maze: Maze) -> str | None:
        """Returns the split that a generated maze may be in; `None` if it is one of the given test mazes."""
        walls = bytes(maze.sides)
        if walls in self.held_out:
            return None
        return {0: "validation", 1: "test"}.get(derive(0, "maze split", walls) % _BUCKETS, "train")

    def examples(self, split: str) -> MazeExamples:
        """Returns the mazes of a split, `2**31` for training."""
        return MazeExamples(self, check_split(split), self.mazes if split == "test" else None)

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns the first `limit` mazes of a split, with the answers masked."""
        answers, masked = stack(self.examples(split), limit)
        return Prompts.of(answers, masked, self.mask_id)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Returns 1 for each answer that is a shortest path, and 0 for the others; the maze is that of the prompt."""
        scores = []
        for prompt, row in zip(prompts.tokens, tokens, strict=True):
            maze, _ = decode(prompt)
            scores.append(is_shortest_path(maze, decode(torch.cat([prompt[: self.size**2], row[self.size**2 :]]))[1]))
        return torch.tensor(scores, dtype=torch.float64)

    def geometry(self) -> Relations:
        """Returns which pairs of positions are alike: pairs of cells that are equally many rows and columns apart."""
        return geometry.maze(self.size)

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Returns a drawing of the maze with its path (see `draw`)."""
        return draw(*decode(tokens))

    def symbol(self, token: int) -> str:
        """Returns the arrow for a token's direction; an empty text for no direction and for tokens of the maze."""
        return {NORTH: "↑", EAST: "→", SOUTH: "↓", WEST: "←"}.get(_DIRECTIONS.get(token, 0), "")

    def layout(self, tokens: Int[Tensor, " length"]) -> Layout:
        """Returns a grid of the answer's cells, with the walls of the maze, `S` at the start and `E` at the end."""
        maze, _ = decode(tokens)
        cells = self.size**2
        walls = tuple(NORTH + EAST + SOUTH + WEST - sides for sides in maze.sides)
        marks = {maze.start: "S", maze.end: "E"}
        return Layout(self.size, tuple(range(cells, 2 * cells)), walls, marks)
