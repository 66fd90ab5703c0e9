"""Puzzles as they circulate: every kind of file gives the same puzzle, and what cannot be read is named."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.errors import DataError
from unmask.tasks.sudoku_files import PuzzleFile, parse_cells, read_puzzles

SOLUTION = "867542391139687245425193768653719482714328659298456173581264937342975816976831524"
PUZZLE = "060040300000000205000100000000009480710000000200000000500200007040000010000000000"
DOTS = PUZZLE.replace("0", ".")
ROWS = [DOTS[start : start + 9] for start in range(0, 81, 9)]
CELLS = tuple(map(int, PUZZLE))
FULL = tuple(map(int, SOLUTION))


def boxed(rows: list[str], wall: str = "|", rule: str = "------+-------+------", space: str = " ") -> str:
    """A grid with lines between its boxes, as `.ss` files and forums have them."""
    lines = []
    for number, row in enumerate(rows):
        if number in (3, 6):
            lines.append(rule)
        parts = [space.join(row[start : start + 3]) for start in (0, 3, 6)]
        lines.append(f"{space}{wall}{space}".join(parts))
    return "\n".join(lines) + "\n"


SIMPLE_SUDOKU = (
    "*-----------*\n"
    + "|---+---+---|\n".join(
        "".join(f"|{row[:3]}|{row[3:6]}|{row[6:]}|\n" for row in ROWS[band : band + 3]) for band in (0, 3, 6)
    )
    + "*-----------*\n"
)

KINDS: dict[str, tuple[str, bool, dict[str, str]]] = {
    "ours": (f"puzzle,solution,grade\n{PUZZLE},{SOLUTION},hard\n", True, {"grade": "hard"}),
    "kaggle": (f"quizzes,solutions\n{PUZZLE},{SOLUTION}\n", True, {}),
    "capitals": (f"Puzzle,Solution,Grade\n{PUZZLE},{SOLUTION},hard\n", True, {"Grade": "hard"}),
    "spaces in the header": (f" Puzzle , SOLUTION \n{PUZZLE}, {SOLUTION}\n", True, {}),
    "sudoku-extreme": (
        f"source,question,answer,rating\nunbiased,{DOTS},{SOLUTION},3\n",
        True,
        {"source": "unbiased", "rating": "3"},
    ),
    "three million": (
        f"id,puzzle,solution,clues,difficulty\n1,{DOTS},{SOLUTION},17,2.2\n",
        True,
        {"id": "1", "clues": "17", "difficulty": "2.2"},
    ),
    "tabs": (f"puzzle\tsolution\n{PUZZLE}\t{SOLUTION}\n", True, {}),
    "semicolons": (f"puzzle;solution\n{PUZZLE};{SOLUTION}\n", True, {}),
    "spaces": (f"puzzle solution\n{PUZZLE} {SOLUTION}\n", True, {}),
    "quotes": (f'"puzzle","solution"\n"{PUZZLE}","{SOLUTION}"\n', True, {}),
    "one a line": (f"{PUZZLE}\n", False, {}),
    "no line end": (PUZZLE, False, {}),
    "sdm": (f"{DOTS}\n", False, {}),
    "a puzzle and its solution": (f"{PUZZLE},{SOLUTION}\n", True, {}),
    "the solution first": (f"{SOLUTION}\t{PUZZLE}\n", True, {}),
    "bank": (f"0000183b305c {PUZZLE}   1.2\n", False, {"hash": "0000183b305c", "rating": "1.2"}),
    "tdoku": (f"# 17 clues, from a collection\n# two comments\n{DOTS}\n", False, {}),
    "a remark behind": (f"{DOTS} # 7.1 ED\n", False, {}),
    "numbered": (f"1,{DOTS},easy\n", False, {"field1": "1", "field3": "easy"}),
    "stars": (PUZZLE.replace("0", "*") + "\n", False, {}),
    "underscores": (PUZZLE.replace("0", "_") + "\n", False, {}),
    "hyphens": (PUZZLE.replace("0", "-") + "\n", False, {}),
    "blanks": (PUZZLE.replace("0", " ") + "\n", False, {}),
    "blanks in a column": ("puzzle,n\n" + PUZZLE.replace("0", " ") + ",3\n", False, {"n": "3"}),
    "81 fields": (",".join(PUZZLE) + "\n", False, {}),
    "sdk": ("#ARuud\n#DA random puzzle\n#LEasy\n" + "\n".join(ROWS) + "\n", False, {}),
    "sdk with sections": ("[Puzzle]\n" + "\n".join(ROWS) + "\n[State]\n" + "\n".join(ROWS) + "\n", False, {}),
    "ss": (SIMPLE_SUDOKU, False, {}),
    "a grid with lines": (boxed(ROWS), False, {}),
    "a grid without outer spaces": (boxed(ROWS, space="", rule="---+---+---"), False, {}),
    "a grid of zeros": ("\n".join(" ".join(row.replace(".", "0")) for row in ROWS) + "\n", False, {}),
    "a grid of hyphens": ("\n".join(row.replace(".", "-") for row in ROWS) + "\n", False, {}),
    "a grid of hyphens with lines": (boxed([row.replace(".", "-") for row in ROWS]), False, {}),
    "a grid of spaces": ("\n".join(row.replace(".", " ") for row in ROWS) + "\n", False, {}),
    "a grid of trimmed spaces": ("\n".join(row.replace(".", " ").rstrip() or " " for row in ROWS) + "\n", False, {}),
    "bands apart": ("\n\n".join("\n".join(ROWS[band : band + 3]) for band in (0, 3, 6)) + "\n", False, {}),
    "titled": ("Grid 01\n" + "\n".join(row.replace(".", "0") for row in ROWS) + "\n", False, {"name": "Grid 01"}),
    "titled like a header": ("Sudoku\n\n" + "\n".join(ROWS) + "\n", False, {"name": "Sudoku"}),
    "unicode lines": (boxed(ROWS, wall="│", rule="──────┼───────┼──────"), False, {}),
}
KINDS["a grid of commas"] = ("\n".join(",".join("" if c == "." else c for c in row) for row in ROWS) + "\n", False, {})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_puzzle(kind: str, tmp_path: Path):
    text, solution, columns = KINDS[kind]
    path = tmp_path / "file"
    ways: list[tuple[str, Callable[[str], bytes]]] = [
        ("plain", lambda text: text.encode()),
        ("Windows", lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()),
        ("old Mac", lambda text: text.replace("\n", "\r").encode()),
        ("UTF-16", lambda text: text.encode("utf-16")),
        ("UTF-16 without a mark", lambda text: text.encode("utf-16-le")),
        ("gzip", lambda text: gzip.compress(text.encode())),
    ]
    for way, encoded in ways:
        path.write_bytes(encoded(text))
        if way == "UTF-16 without a mark" and "│" in text:
            continue  # nothing tells it from a binary file
        file = read_puzzles(path)
        assert [r.reason for r in file.rejected] == [], way
        assert [p.cells for p in file.puzzles] == [CELLS], way
        assert file.puzzles[0].solution == (FULL if solution else None), way
        assert file.puzzles[0].columns == columns, way


def test_several_grids_are_told_apart(tmp_path: Path):
    path = tmp_path / "grids.sdk"
    full = [SOLUTION[start : start + 9] for start in range(0, 81, 9)]
    grid, other = "\n".join(ROWS), "\n".join(full)
    for text in (
        f"{grid}\n{other}\n",
        f"{grid}\n\n{other}\n",
        f"Grid 1\n{grid}\nGrid 2\n{other}\n",
        f"{grid}\n# b\n{other}",
    ):
        path.write_text(text)
        assert [p.cells for p in read_puzzles(path).puzzles] == [CELLS, FULL]
        assert len(read_puzzles(path, limit=1).puzzles) == 1
    path.write_text(f"{grid}\n\n" + "\n".join(ROWS[:8]) + f"\n\n{other}\n")
    file = read_puzzles(path)
    assert [p.cells for p in file.puzzles] == [CELLS, FULL]
    assert [(r.line, r.reason) for r in file.rejected] == [(11, "a grid has nine rows of nine cells, got 8 rows")]
    assert file.rejected[0].text.splitlines() == ROWS[:8]
    path.write_text("\n".join([*ROWS[:4], "12345678", *ROWS[5:]]) + f"\n\n{other}\n")
    file = read_puzzles(path)
    assert [p.cells for p in file.puzzles] == [FULL]
    assert "line 5 is not a row of a grid: '12345678' does not have nine cells" in file.rejected[0].reason


def test_what_a_spreadsheet_did_is_named(tmp_path: Path):
    path = tmp_path / "puzzles.csv"
    for number in ("4.3E+78", "4,3E+78", "6.00403E+79", "1e80"):
        quoted = f'"{number}"'
        path.write_text(f"puzzle,solution\n{quoted},{SOLUTION}\n")
        assert f"a spreadsheet has rounded the puzzle to the number {number}" in read_puzzles(path).rejected[0].reason
        path.write_text(f"{PUZZLE}\n{quoted}\n")
        assert "spreadsheet has rounded" in read_puzzles(path).rejected[0].reason
        path.write_text(f"{quoted}\n")
        with pytest.raises(DataError, match="line 1: a spreadsheet has rounded"):
            read_puzzles(path)
    path.write_text(f"puzzle\n{PUZZLE.lstrip('0')}\n")
    assert "were its leading zeros dropped" in read_puzzles(path).rejected[0].reason


def test_comments_of_a_table_are_told_from_its_rows(tmp_path: Path):
    path = tmp_path / "puzzles.csv"
    path.write_text(f"number,puzzle\n# easy, by hand\n#12,{PUZZLE}\n#13,{PUZZLE[1:]}\n#no row of it\n#,#\n")
    file = read_puzzles(path)
    assert [(p.line, p.columns) for p in file.puzzles] == [(3, {"number": "#12"})]
    assert [r.line for r in file.rejected] == [4]
    path.write_text(f"puzzle,Solution,Solution,a,a\n{PUZZLE},{SOLUTION},x,1,2\n")
    (puzzle,) = read_puzzles(path).puzzles
    assert puzzle.columns == {"Solution (2)": "x", "a": "1", "a (2)": "2"}


def test_bytes_of_another_encoding_are_named_and_the_encoding_can_be_said(tmp_path: Path):
    path = tmp_path / "puzzles.csv"
    path.write_bytes(f"puzzle,author\n{PUZZLE},Ann\n{PUZZLE},Ren\xe9\n".encode("latin-1"))
    file = read_puzzles(path)
    assert [p.line for p in file.puzzles] == [2]
    assert "byte 0xe9" in file.rejected[0].reason
    assert "--encoding latin-1" in file.rejected[0].reason
    assert file.rejected[0].text.encode("utf-8", "surrogateescape").endswith(b",Ren\xe9")
    assert [p.columns["author"] for p in read_puzzles(path, encoding="latin-1").puzzles] == ["Ann", "Ren\xe9"]
    with pytest.raises(ValueError, match="unknown encoding 'klingon'"):
        read_puzzles(path, encoding="klingon")


def test_what_is_no_file_of_puzzles_is_refused(tmp_path: Path):
    path = tmp_path / "file"
    for content, message in [
        (b"PK\x03\x04rest", "an Excel workbook: unpack it, or save the sheet as CSV"),
        (gzip.compress(PUZZLE.encode())[:-9], "damaged gzip"),
        (b"a,b\n1,2\n", "needs a header line with a column 'puzzle'.* got 'a,b'"),
        (b"", "needs a header line .* it is empty"),
        (b"\x00\x01\x02\x03", "is not a text file"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            read_puzzles(path)
    with pytest.raises(DataError, match=r"cannot read the puzzles .*: it is a folder; name one of its files: file"):
        read_puzzles(tmp_path)
    with pytest.raises(DataError, match=r"cannot read the puzzles .*none: No such file or directory; check the name"):
        read_puzzles(tmp_path / "none")


def check_file(path: Path, puzzle: str, text: str, place: int, encoding: str) -> None:
    """Reads a puzzle with something put into it; every puzzle that comes back is one, every refusal is one line."""
    path.write_bytes((text[:place] + puzzle + text[place:]).encode(encoding, errors="replace"))
    try:
        file = read_puzzles(path)
    except DataError as error:
        refusal, file = str(error), PuzzleFile([], [])
    else:
        refusal = ""
    assert len(refusal.splitlines()) == bool(refusal)
    for one in file.rejected:
        assert one.reason
        assert len(one.reason.splitlines()) == 1
    for one in file.puzzles:
        assert parse_cells("".join(map(str, one.cells))) == one.cells
        assert len(one.cells) == 81


SNIPPETS = [*KINDS["ss"][0].splitlines(), *ROWS, PUZZLE, SOLUTION, "puzzle,solution", "[State]", "#", "4.3E+78", ""]
ANY_FILE = {
    "puzzle": st.sampled_from([PUZZLE, DOTS, SOLUTION, *(text for text, _, _ in KINDS.values())]),
    "text": st.text()
    | st.text("0123456789.,;\t|-+*_ \n\r#e[]\"'")
    | st.lists(st.sampled_from(SNIPPETS)).map("\n".join),
    "place": st.integers(0, 100),
    "encoding": st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-32"]),
}


@given(**ANY_FILE)
def test_any_file_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, **given_: Any):
    check_file(tmp_path_factory.getbasetemp() / "fuzz.csv", **given_)


@pytest.mark.slow
@settings(max_examples=5_000)
@given(**ANY_FILE)
def test_many_files_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, **given_: Any):
    check_file(tmp_path_factory.getbasetemp() / "fuzz.csv", **given_)
