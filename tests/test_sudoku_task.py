from __future__ import annotations

import hashlib

import pytest
import torch

from unmask.errors import DataError
from unmask.tasks.sudoku import (
    UNITS,
    as_tensor,
    cells_correct,
    demo_puzzles,
    parse_cells,
    read_csv,
    solved,
)

SOLUTION = "867542391139687245425193768653719482714328659298456173581264937342975816976831524"
PUZZLE = "060040300000000205000100000000009480710000000200000000500200007040000010000000000"


def test_units_are_nine_rows_columns_and_boxes():
    assert UNITS.shape == (27, 9)
    assert torch.bincount(UNITS.flatten()).tolist() == [3] * 81
    assert UNITS[18].tolist() == [0, 1, 2, 9, 10, 11, 18, 19, 20]


def test_solved_checks_every_unit():
    grid = torch.tensor([parse_cells(SOLUTION)])
    assert solved(grid).tolist() == [True]
    for a, b in ((0, 1), (0, 9), (0, 80)):
        swapped = grid.clone()
        swapped[0, [a, b]] = swapped[0, [b, a]]
        assert solved(swapped).tolist() == [bool(grid[0, a] == grid[0, b])]
    assert solved(torch.zeros(1, 81, dtype=torch.int64)).tolist() == [False]


def test_cells_read_dots_and_zeros_and_refuse_the_rest():
    assert parse_cells(PUZZLE) == parse_cells(PUZZLE.replace("0", "."))
    for text, message in [
        (PUZZLE[:-1], "81 characters, got 80"),
        ("x" + PUZZLE[1:], "got 'x'"),
        ("66" + PUZZLE[2:], "contradictory clues: 6 occurs twice in row 1"),
        ("0" * 9 + "6" * 1 + "0" * 70 + "6", None),
        (PUZZLE[:9] + "6" + PUZZLE[10:], "6 occurs twice in box 1"),
    ]:
        if message is None:
            parse_cells(text)
            continue
        with pytest.raises(DataError, match=message):
            parse_cells(text)


def test_a_malformed_line_is_named_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "puzzles.csv"
    other = SOLUTION[::-1]
    path.write_text(
        "name,puzzle,solution\n"
        f"a,{PUZZLE},{SOLUTION}\n"
        f"b,{PUZZLE[:40]},\n"
        f"c,{PUZZLE},{other}\n"
        f"d,{PUZZLE},{SOLUTION},extra\n"
        "e\n"
        f"f,{PUZZLE},\n"
    )
    file = read_csv(path)
    assert [(p.line, p.columns, p.solution is None) for p in file.puzzles] == [
        (2, {"name": "a"}, False),
        (7, {"name": "f"}, True),
    ]
    assert [r.line for r in file.rejected] == [3, 4, 5, 6]
    assert [
        word in r.reason for r, word in zip(file.rejected, ("81", "contradicts", "fields", "fields"), strict=True)
    ] == [True] * 4
    assert len(read_csv(path, limit=1).puzzles) == 1
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="column 'puzzle'"):
        read_csv(tmp_path / "other.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="column 'puzzle'"):
        read_csv(tmp_path / "binary.csv")


def test_cells_correct_counts_what_had_to_be_filled_in():
    file = read_csv(["puzzle,solution", f"{PUZZLE},{SOLUTION}", f"{PUZZLE},"])
    grid = torch.tensor([parse_cells(SOLUTION)] * 2)
    empty = PUZZLE.count("0")
    assert cells_correct(grid, file.puzzles) == (empty, empty)
    grid[0, 0] = 1  # an empty cell, wrong
    assert cells_correct(grid, file.puzzles) == (empty - 1, empty)


def test_the_shipped_puzzles_are_test_puzzles_of_every_grade():
    puzzles = demo_puzzles()
    assert list(dict.fromkeys(p.columns["grade"] for p in puzzles)) == [
        "easy",
        "medium",
        "hard",
        "diabolical",
        "17 clues",
    ]
    texts = ["".join(map(str, p.cells)) for p in puzzles]
    assert all(int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2 == 1 for text in texts)
    assert bool(solved(torch.tensor([p.solution for p in puzzles])).all())
    assert as_tensor(puzzles).shape == (len(puzzles), 81)
