from __future__ import annotations

import csv
import gzip
import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from unmask.errors import DataError
from unmask.tasks._common import Draws
from unmask.tasks.mazes import (
    ANSWERS,
    EAST,
    MASK,
    NORTH,
    SOUTH,
    WEST,
    Maze,
    MazeTask,
    decode,
    distances,
    draw,
    embedded_mazes,
    encode,
    is_shortest_path,
    is_tree,
    parse_drawing,
    path_counts,
    random_maze,
    shortest_path,
)

TREE = "".join(["#######", "#S....#", "#.#.###", "#.#...#", "#.###.#", "#.#E..#", "#######"])
LOOP = "".join(["#######", "#S....#", "#.#.###", "#....E#", "#.###.#", "#.....#", "#######"])
HALL = "".join(["#########", "#S.....E#", *["#.......#"] * 6, "#########"])
APART = "".join(["#########", "#S..#..E#", *["#...#...#"] * 6, "#########"])


def undraw(maze: Maze) -> str:
    return draw(maze, [0] * len(maze.sides)).replace("\n", "").replace(" ", ".")


def write(path: Path, mazes: list[str]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([["maze", "path_cells"], *([maze, 1] for maze in mazes)])
    return path


def test_a_drawing_is_read_and_its_path_found():
    maze = parse_drawing(TREE)
    assert (maze.size, maze.start, maze.end) == (3, 0, 7)
    assert maze.sides[0] == EAST | SOUTH
    assert maze.sides[1] == EAST | SOUTH | WEST
    assert is_tree(maze)
    assert distances(maze)[0] == 5
    answer = shortest_path(maze, Draws(0))
    assert answer == [EAST, SOUTH, 0, 0, EAST, SOUTH, 0, 0, WEST]
    assert draw(maze, answer).splitlines() == [
        "#######",
        "#S>v  #",
        "# #v###",
        "# #>>v#",
        "# ###v#",
        "# #E<<#",
        "#######",
    ]
    assert draw(maze, [None] * 9).splitlines()[1] == "#S ? ?#"


def test_sequences_round_trip():
    for index in range(20):
        draws = Draws(3, index)
        maze = random_maze(6, 0.2 * (index % 2), draws)
        answer = shortest_path(maze, draws)
        tokens = encode(maze, answer)
        assert decode(tokens) == (maze, answer)
        assert len(tokens) == 72
        tokens[-1] = MASK
        assert decode(tokens)[1][-1] is None
        assert parse_drawing(undraw(maze)) == maze
        tokens[0] = tokens[1] = 16
        with pytest.raises(ValueError, match="one start and one end"):
            decode(tokens)


def test_a_path_must_be_legal_and_shortest_and_alone():
    maze = parse_drawing(LOOP)
    assert not is_tree(maze)
    assert path_counts(maze)[maze.start] == 2
    good = [[EAST, SOUTH, 0, 0, EAST, 0, 0, 0, 0], [SOUTH, 0, 0, EAST, EAST, 0, 0, 0, 0]]
    for answer in good:
        assert is_shortest_path(maze, answer)
    bad: list[list[int | None]] = [
        [0] * 9,
        [None] * 9,
        [EAST, SOUTH, 0, 0, EAST, SOUTH, 0, 0, 0],  # goes on beyond the end
        [EAST, SOUTH, 0, 0, EAST, 0, NORTH, 0, 0],  # an arrow off the path
        [EAST, SOUTH, None, 0, EAST, 0, 0, 0, 0],  # a mask left
        [SOUTH, 0, 0, SOUTH, 0, NORTH, EAST, EAST, NORTH],  # longer: arrives from below
        [EAST, EAST, SOUTH, 0, 0, 0, 0, 0, 0],  # through a wall
        [EAST, WEST, 0, 0, 0, 0, 0, 0, 0],  # to and fro for ever
        [NORTH, 0, 0, 0, 0, 0, 0, 0, 0],  # out of the maze
        [EAST, SOUTH, 0, EAST, 0, 0, 0, 0, 0],  # stops half-way
        [WEST | EAST, SOUTH, 0, 0, EAST, 0, 0, 0, 0],  # no direction
    ]
    longer = [SOUTH, 0, 0, SOUTH, 0, 0, EAST, EAST, NORTH]
    for answer in [*bad, longer]:
        assert not is_shortest_path(maze, answer)


def test_shortest_paths_are_drawn_uniformly():
    # A 3×3 maze without inner walls has 6 shortest paths from corner to corner.
    sides = tuple(
        NORTH * (row > 0) | EAST * (column < 2) | SOUTH * (row < 2) | WEST * (column > 0)
        for row in range(3)
        for column in range(3)
    )
    maze = Maze(3, sides, 0, 8)
    assert path_counts(maze)[0] == 6
    drawn: dict[tuple[int, ...], int] = {}
    for index in range(6000):
        answer = shortest_path(maze, Draws(0, "uniform", index))
        assert is_shortest_path(maze, answer)
        drawn[tuple(answer)] = drawn.get(tuple(answer), 0) + 1
    assert len(drawn) == 6
    # Chi-squared with 5 degrees of freedom: above 35.9 one time in a million.
    assert sum((count - 1000) ** 2 / 1000 for count in drawn.values()) < 35.9


def test_the_embedded_mazes_are_those_the_readme_names():
    mazes = embedded_mazes()
    assert len(mazes) == 10_000
    assert all(is_tree(maze) for maze in mazes)
    cells = [distances(maze)[maze.start] + 1 for maze in mazes]
    assert (min(cells), max(cells), sum(cells)) == (2, 34, 111_942)
    digits = "0123456789abcdefghijklmnopqrstuvwxyz"
    lines = [
        "".join(f"{side:x}" for side in maze.sides) + digits[maze.start] + digits[maze.end] + "\n" for maze in mazes
    ]
    readme = Path(__file__).parent.parent / "unmask" / "data" / "mazes" / "README.md"
    assert hashlib.sha256("".join(lines).encode()).hexdigest() in readme.read_text()


def test_generated_trees_have_the_law_of_the_embedded_ones():
    mazes = [random_maze(6, 0.0, Draws(0, "law", index)) for index in range(3000)]
    ours, theirs = np.array([maze.sides for maze in mazes]), np.array([maze.sides for maze in embedded_mazes()])
    for bit in (EAST, SOUTH):
        p, q = ((some & bit > 0).mean(0) for some in (ours, theirs))
        spread = np.sqrt(np.maximum((p * (1 - p) / 3000 + q * (1 - q) / 10_000), 1e-12))
        # 60 walls; 5.4 standard errors are exceeded four times in a million.
        assert (np.abs(p - q) < 5.4 * spread).all()
    counts = [
        np.bincount([min(distances(maze)[maze.start], 25) for maze in some], minlength=26)[1:]
        for some in (mazes, embedded_mazes())
    ]
    p, q = counts[0] / 3000, counts[1] / 10_000
    both = (counts[0] + counts[1]) / 13_000
    # Chi-squared with 24 degrees of freedom: above 78 one time in ten million.
    assert ((p - q) ** 2 / both).sum() / (1 / 3000 + 1 / 10_000) < 78
    # A generator that starts anywhere opens the walls of the last row and column otherwise: the test sees that.
    east_of_last_row = (ours & EAST > 0).mean(0)[30:35].sum() - (ours & EAST > 0).mean(0)[:5].sum()
    assert east_of_last_row > 0.05


def test_loops_open_a_fifth_of_the_walls():
    maze = random_maze(8, 0.2, Draws(0))
    walls = 2 * 8 * 7 - 63
    assert sum(side.bit_count() for side in maze.sides) == 2 * (63 + round(0.2 * walls))
    task = MazeTask("loops")
    several = [path_counts(decode(task.examples("train")[index][0])[0]) for index in range(100)]
    starts = [decode(task.examples("train")[index][0])[0].start for index in range(100)]
    assert 20 < sum(counts[start] > 1 for counts, start in zip(several, starts, strict=True)) < 70


@pytest.mark.parametrize("kind", ["tree", "loops"])
def test_splits_share_no_maze(kind: str):
    task = MazeTask(kind)  # pyright: ignore[reportArgumentType]
    size = task.size**2
    walls = {}
    for split in ("train", "validation", "test"):
        examples = task.examples(split)
        rows = [examples[index][0][:size] % 16 for index in range(200)]
        walls[split] = {tuple(row.tolist()) for row in rows}
    for one, other in pairwise(["train", "validation", "test", "train"]):
        assert not walls[one] & walls[other]
    assert torch.equal(task.examples("test")[0][0], MazeTask(kind, seed=1).examples("test")[0][0])  # pyright: ignore
    assert not torch.equal(task.examples("train")[0][0], MazeTask(kind, seed=1).examples("train")[0][0])  # pyright: ignore


def test_a_test_maze_is_drawn_again_in_training():
    free = MazeTask(size=4)
    seen = {decode(free.examples("train")[index][0])[0].sides for index in range(300)}
    assert len(seen) > 20
    assert len(free.prompts("test", 20)) == len(free.prompts("validation", 20)) == 20
    kept_out = decode(free.examples("train")[0][0])[0]
    task = MazeTask(size=4)
    task.held_out = frozenset({bytes(kept_out.sides)})
    assert task.split_of(kept_out) is None
    assert kept_out.sides not in {decode(task.examples("train")[index][0])[0].sides for index in range(300)}


def test_only_answers_are_masked_and_scored_exactly():
    task = MazeTask()
    prompts = task.prompts("test", 30)
    masked = prompts.tokens == task.mask_id
    assert (masked.sum(1) == 36).all()
    assert masked[:, 36:].all()
    assert [decode(row)[0] for row in prompts.answers] == list(embedded_mazes()[:30])
    tokens = prompts.answers.clone()
    for row in range(30):
        at = 36 + row % 36
        tokens[row, at] = ANSWERS[0] + (tokens[row, at] - ANSWERS[0] + 1 + row % 4) % 5
    # In a tree, a shortest path is the exact answer: any other token is wrong.
    assert task.score(prompts, tokens).tolist() == [0.0] * 30
    # A sequence that came back with another maze is judged on the prompt's.
    tokens = prompts.answers.clone()
    tokens[:, :36] = prompts.answers[0, :36]
    assert task.score(prompts, tokens).tolist() == [1.0] * 30
    loops = MazeTask("loops")
    prompts = loops.prompts("validation", 40)
    others = []
    for row in prompts.answers:
        maze, answer = decode(row)
        draws = [shortest_path(maze, Draws(1, index)) for index in range(20)]
        others.append(encode(maze, next((one for one in draws if one != answer), draws[0])))
    other = torch.stack(others)
    assert not torch.equal(other, prompts.answers)
    assert loops.score(prompts, other).tolist() == [1.0] * 40


def test_mazes_of_a_file_are_the_test_set(tmp_path: Path):
    path = write(tmp_path / "mazes.csv", [undraw(maze) for maze in embedded_mazes()[5:8]])
    task = MazeTask(data=path)
    assert len(task.examples("test")) == 3
    assert torch.equal(task.prompts("test", 9).tokens, MazeTask().prompts("test", 8).tokens[5:])
    drawn = path.read_text()
    other = drawn.replace("maze", "Maze").replace(",", ";")
    for content in (drawn.encode("utf-16"), gzip.compress(drawn.encode()), other.encode("utf-8-sig")):
        path.write_bytes(content)
        assert torch.equal(MazeTask(data=path).prompts("test", 9).tokens, task.prompts("test", 9).tokens)
    path = write(tmp_path / "hall.csv", [HALL])
    assert MazeTask("loops", size=4, data=path).prompts("test", 5).tokens.shape == (1, 32)


def test_bad_mazes_and_settings_say_what_is_wrong(tmp_path: Path):
    path = tmp_path / "mazes.csv"
    for drawing, message in [
        (TREE[:-1], r"line 2: a drawn maze has \(2n \+ 1\)² characters, got 48"),
        (TREE.replace("S", "."), "line 2: a drawn maze has one S and one E"),
        (TREE.replace("S", "x"), "one S and one E; all other"),
        (TREE.replace("S.", "#S"), "start and end must be cells"),
        (TREE[:11] + "##" + TREE[13:], "the cell in row 1, column 3 is drawn as a wall"),
        ("." + TREE[1:7] + "." + TREE[8:], "the outer wall is open"),
        (HALL, "maze 1 is not a tree"),
        (APART, "maze 1 is not a tree"),
        (TREE, "maze 1 has 3×3 cells, not 4×4"),
    ]:
        write(path, [drawing])
        with pytest.raises(DataError, match=message):
            MazeTask(size=4, data=path)
    with pytest.raises(DataError, match="no path from start to end"):
        MazeTask("loops", size=4, data=write(path, [APART]))
    with pytest.raises(DataError, match="has 4×4 cells, not 6×6; set size=4"):
        MazeTask(data=write(path, [HALL]))
    path.write_text("maze\n")
    with pytest.raises(DataError, match="does not hold any maze"):
        MazeTask(data=path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="column 'maze'"):
        MazeTask(data=path)
    with pytest.raises(DataError, match="cannot read the mazes"):
        MazeTask(data=tmp_path / "none.csv")
    path.write_bytes(b"maze\n\xff\n")
    with pytest.raises(DataError, match="is not UTF-8 text: byte 0xff in line 2"):
        MazeTask(data=path)
    for settings, message in [
        ({"kind": "trees"}, "unknown kind 'trees'; choose one of tree, loops"),
        ({"size": 3}, "size must be a whole number from 4 to 32, got 3"),
        ({"removed": 0}, "removed"),
        ({"removed": 1.5}, "removed"),
        ({"seed": -1}, "seed"),
    ]:
        with pytest.raises(ValueError, match=message):
            MazeTask(**settings)
