from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from unmask.errors import DataError
from unmask.tasks.sudoku import (
    UNITS,
    SudokuTask,
    as_tensor,
    cells_correct,
    demo_puzzles,
    solved,
)
from unmask.tasks.sudoku_files import parse_cells, read_puzzles

REAL = Path(__file__).parent / "data" / "sudoku.csv"
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
    file = read_puzzles(path)
    assert [(p.line, p.columns, p.solution is None) for p in file.puzzles] == [
        (2, {"name": "a"}, False),
        (7, {"name": "f"}, True),
    ]
    assert [r.line for r in file.rejected] == [3, 4, 5, 6]
    assert [
        word in r.reason for r, word in zip(file.rejected, ("81", "contradicts", "fields", "fields"), strict=True)
    ] == [True] * 4
    assert len(read_puzzles(path, limit=1).puzzles) == 1
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="column 'puzzle'"):
        read_puzzles(tmp_path / "other.csv")
    (tmp_path / "binary.csv").write_bytes(bytes(range(256)))
    with pytest.raises(DataError, match="is not a text file: it holds bytes of value 0"):
        read_puzzles(tmp_path / "binary.csv")


def test_cells_correct_counts_what_had_to_be_filled_in():
    file = read_puzzles(["puzzle,solution", f"{PUZZLE},{SOLUTION}", f"{PUZZLE},"])
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


def test_a_file_is_split_by_hash_and_its_grades_are_mixed(tmp_path: Path):
    header, *lines = REAL.read_text().splitlines()
    path = tmp_path / "puzzles.csv"
    path.write_text("\n".join([header, *lines[::10]]))
    task = SudokuTask(data=path)
    seen = []
    for split, parity in (("validation", 0), ("test", 1)):
        prompts = task.prompts(split, 10_000)
        assert len(prompts) == len(task.examples(split))
        texts = ["".join(map(str, row)) for row in prompts.tokens.tolist()]
        numbers = [int(hashlib.sha256(text.encode()).hexdigest(), 16) for text in texts]
        assert {number % 2 for number in numbers} == {parity}
        assert numbers == sorted(numbers)
        assert bool(solved(prompts.answers).all())
        seen.append(set(texts))
        tokens, maskable = task.examples(split)[3]
        assert torch.equal(tokens, prompts.answers[3])
        assert torch.equal(maskable, prompts.tokens[3] == 0)
    assert (len(seen[0] | seen[1]), seen[0] & seen[1]) == (1_122, set())
    few = (task.prompts("test", 200).tokens > 0).sum(1)
    assert few.min() == 17
    assert few.max() > 25
    assert len(SudokuTask(data=path, grade="easy").examples("test")) < 30


def test_grades_choose_puzzles_of_a_file():
    assert [len(SudokuTask(grade=grade).prompts("test", 99)) for grade in ("easy", "17 clues")] == [40, 40]
    assert (SudokuTask(grade="17 clues").prompts("test", 40).tokens > 0).sum(1).tolist() == [17] * 40
    assert len(SudokuTask().prompts("test", 999)) == 200


def test_generated_puzzles_are_functions_of_seed_and_index():
    train, other = SudokuTask().examples("train"), SudokuTask(seed=1).examples("train")
    pairs = [train[index] for index in range(200)]
    assert torch.equal(pairs[7][0], SudokuTask().examples("train")[7][0])
    assert not torch.equal(pairs[7][0], other[7][0])
    assert bool(solved(torch.stack([tokens for tokens, _ in pairs])).all())
    shown = torch.stack([~maskable for _, maskable in pairs]).sum(1)
    # 35 % have no clues: 200 draws give 44 to 97 of them but for one time in ten million.
    assert 44 <= int((shown == 0).sum()) <= 97
    assert int(shown[shown > 0].min()) >= 17
    validation = SudokuTask().prompts("validation", 1000)
    assert (validation.tokens > 0).sum(1).min() >= 17
    assert len(validation) == 1000
    assert (SudokuTask().prompts("train", 50).tokens > 0).any(1).all()


def test_a_puzzle_is_solved_by_a_right_grid_with_its_clues():
    task = SudokuTask()
    prompts = task.prompts("test", 4)
    assert task.score(prompts, prompts.answers).tolist() == [1.0] * 4
    tokens = prompts.answers.clone()
    tokens[0] = prompts.answers[1]  # a right grid of another puzzle
    cell = int((prompts.tokens[2] == 0).nonzero()[0])
    tokens[2, cell] = tokens[2, cell] % 9 + 1
    tokens[3, cell] = 0
    assert task.score(prompts, tokens).tolist() == [0.0, 1.0, 0.0, float(bool(prompts.tokens[3, cell]))]
    shown = task.show(torch.tensor(parse_cells(PUZZLE)))
    assert shown.splitlines()[:4] == [".6. | .4. | 3..", "... | ... | 2.5", "... | 1.. | ...", "------+-----+------"]


def test_a_task_refuses_files_it_cannot_judge(tmp_path):
    path = tmp_path / "puzzles.csv"
    wrong = SOLUTION[9:18] + SOLUTION[:9] + SOLUTION[18:27] + SOLUTION[36:] + SOLUTION[27:36]
    empty = "0" * 81
    for text, message in [
        (f"puzzle,solution\n{PUZZLE},{SOLUTION}\n{PUZZLE[:-1]},\n", "line 3: a puzzle has 81 characters, got 80"),
        (f"puzzle\n{PUZZLE}\n", "line 2: no solution"),
        ("puzzle,solution\n", "does not hold any puzzle"),
        ("puzle\n", "column 'puzzle'"),
        (f"puzzle,solution\n{empty},{SOLUTION[:80]}0\n", "line 2: the solution has empty cells"),
        (f"puzzle,solution\n{empty},{wrong}\n", "line 2: contradictory clues"),
    ]:
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            SudokuTask(data=path)
    with pytest.raises(DataError, match=r"cannot read the puzzles .*none\.csv: No such file"):
        SudokuTask(data=tmp_path / "none.csv")
    with pytest.raises(
        DataError, match="no puzzle of the grade 'hell'; it has 17 clues, diabolical, easy, hard, medium"
    ):
        SudokuTask(grade="hell")
    path.write_text(f"puzzle,solution\n{PUZZLE},{SOLUTION}\n")
    with pytest.raises(DataError, match="no grades"):
        SudokuTask(data=path, grade="easy")
    task = SudokuTask(data=path)
    split, other = ("test", "validation") if len(task.puzzles["test"] or []) else ("validation", "test")
    assert len(task.prompts(split, 5)) == 1
    with pytest.raises(DataError, match=f"no puzzle of the {other} split"):
        task.prompts(other, 5)
    with pytest.raises(ValueError, match="seed"):
        SudokuTask(seed=-1)
