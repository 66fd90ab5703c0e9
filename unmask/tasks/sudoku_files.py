"""Reads files of Sudoku puzzles in the usual formats: tables, one puzzle per line, and grids of nine lines.

A table has a header line that names a column `puzzle` or a similar name, such as `quizzes` in Kaggle's files. Without a
header, each line holds a puzzle of 81 characters, possibly with its solution and other fields, as in `.sdm` files and
puzzle banks. Or nine lines make a grid, with or without lines drawn between the boxes, as in `.sdk` and `.ss` files.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

from ..errors import DataError
from ..files.reading import Line, read_lines
from ..files.tables import header_delimiter, split_fields

CELLS = 81
BLANKS = "0.*_- "
"""The characters that stand for an empty cell."""

UNIT_LISTS = [
    *([9 * row + column for column in range(9)] for row in range(9)),
    *([9 * row + column for row in range(9)] for column in range(9)),
    *([27 * (box // 3) + 3 * (box % 3) + 9 * (cell // 3) + cell % 3 for cell in range(9)] for box in range(9)),
]
"""Cells of the nine rows, nine columns and nine boxes."""

_PUZZLE = ("puzzle", "puzzles", "quiz", "quizzes", "sudoku", "question", "grid", "board")
_SOLUTION = ("solution", "solutions", "solved_grid")
_CELLS = frozenset("123456789" + BLANKS)
_ROUNDED = re.compile(r"[+-]?\d([.,]\d+)?[eE]\+?\d{2,}")
_SPREADSHEET = (
    "a spreadsheet has rounded the puzzle to the number {}, so its digits are lost: use the original file, and import"
    " the column as text"
)
_SNIFFED = 10_000
"""How many lines at the start of a file are searched for a puzzle, to find out the format."""

_WALLS = re.compile(r"[\s|!¦│┃║]+")
_RULE = re.compile(r"[\s|!+=*_\-:.'`\u2500-\u257f]+")
_SECTION = re.compile(r"\[\s*([A-Za-z]\w*)\s*\]")
_ACCEPTED = (
    "a header line with a column 'puzzle' (and optionally 'solution'), or one puzzle of 81 characters per line, or"
    " grids of nine lines"
)


@dataclass(frozen=True)
class Puzzle:
    """One puzzle of a file.

    Attributes:
        cells: 81 tokens, 0 where empty.
        solution: 81 digits, or `None` if the file gives none.
        line: Line number in its file; for a grid, that of its first row.
        columns: The other columns of the file, by name.
    """

    cells: tuple[int, ...]
    solution: tuple[int, ...] | None
    line: int
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> int:
        """SHA-256 of the puzzle's 81 digits, as a number; it determines the split of a puzzle in a file."""
        return int(hashlib.sha256("".join(map(str, self.cells)).encode()).hexdigest(), 16)

    @property
    def grades(self) -> set[str]:
        """The difficulty that the file gives: column `grade`, column `source`, and the part of `source` after a `/`."""
        lower = {name.lower(): value for name, value in self.columns.items()}
        source = lower.get("source", "")
        return {lower.get("grade", ""), source, source.rpartition("/")[2]} - {""}


@dataclass(frozen=True)
class Rejected:
    """A line, or the lines of a grid, without a usable puzzle.

    Attributes:
        line: Number of the first line.
        reason: Why the puzzle cannot be used.
        text: The original lines; bytes that are not characters are lone surrogates (`surrogateescape`).
    """

    line: int
    reason: str
    text: str = ""


@dataclass(frozen=True)
class PuzzleFile:
    """The puzzles of a file, and the lines that were left out.

    Attributes:
        puzzles: The puzzles.
        rejected: The lines that were left out.
        header: The header line, if there is one.
    """

    puzzles: list[Puzzle]
    rejected: list[Rejected]
    header: str = ""


def parse_cells(text: str) -> tuple[int, ...]:
    """Reads a puzzle of 81 characters: `1`-`9` for clues, and `0 . * _ -` or a space for empty cells.

    Raises:
        DataError: If there are not 81 characters, one is something else, or two clues contradict each other. If the
            text is a number that a spreadsheet has rounded, the message says so.
    """
    text = text if len(text) == CELLS else text.strip()
    if len(text) != CELLS:
        if _ROUNDED.fullmatch(text):
            raise DataError(_SPREADSHEET.format(text))
        zeros = "; were its leading zeros dropped, as spreadsheets do?" if text.isdigit() and len(text) > 60 else ""
        raise DataError(f"a puzzle has 81 characters, got {len(text)}: {text[:20]!r}{zeros}")
    strange = sorted(set(text) - _CELLS)
    if strange:
        shown = " ".join(map(ascii, strange[:5])) + (" ..." if len(strange) > 5 else "")
        raise DataError(f"cells are the digits 1-9, and 0 . * _ - or a space where empty; got {shown}")
    cells = tuple(0 if char in BLANKS else int(char) for char in text)
    for index, unit in enumerate(UNIT_LISTS):
        digits = [cells[cell] for cell in unit if cells[cell]]
        if len(set(digits)) < len(digits):
            twice = {digit for digit in digits if digits.count(digit) > 1}
            name = ("row", "column", "box")[index // 9]
            raise DataError(f"contradictory clues: {min(twice)} occurs twice in {name} {index % 9 + 1}")
    return cells


def read_puzzles(
    source: Path | str | Iterable[str], limit: int | None = None, encoding: str | None = None
) -> PuzzleFile:
    """Reads puzzles from a file in any of the formats that the module describes.

    Lines that cannot be used are returned with the reason, and the others are read. Lines that begin with `#` are
    comments. The other columns of a table keep their names in the header. Without a header, the other fields are named
    `hash` and `rating` in lines of the puzzle bank, and otherwise `field1` and so on by their position; a line above a
    grid is its `name`.

    Args:
        source: A path (`-` is standard input), or the lines themselves.
        limit: Stop after so many puzzles; default: read all.
        encoding: The encoding of the file; see `unmask.files.reading.read_text`.

    Raises:
        DataError: If the file cannot be read, or nothing in it looks like a puzzle.
        ValueError: If there is no such encoding.
    """
    if isinstance(source, (str, Path)):
        name, lines = str(source), read_lines(source, "the puzzles", encoding)
    else:
        name, lines = "the input", (Line(number, text.rstrip("\r\n")) for number, text in enumerate(source, start=1))
    sniffed = list(islice(lines, _SNIFFED))
    told = [line for line in sniffed if not _is_comment(line.text)]
    if not told:
        raise DataError(f"{name} needs {_ACCEPTED}; it is empty")
    delimiter = _header_delimiter(told[0].text)
    # After a header comes a line of the table; if a grid comes instead, the line was a title.
    if delimiter is not None and not (len(told) > 1 and _draws(told[1].text)):
        return _read_table(told[0], delimiter, chain(sniffed[sniffed.index(told[0]) + 1 :], lines), limit)
    if any(_holds_puzzle(line.text) for line in told):
        return _read_each(chain(sniffed, lines), limit)
    if any(_strict_row(line.text) is not None for line in told) or " " in _blanks_drawn(told):
        return _read_grids([*sniffed, *lines], limit)
    for line in told:
        if (rounded := _rounded(_fields_of(line.text))) is not None:
            raise DataError(f"{name}, line {line.number}: {_SPREADSHEET.format(rounded)}")
    if told[0].fault:
        raise DataError(f"{name}, line {told[0].number}: {told[0].fault}")
    raise DataError(f"{name} needs {_ACCEPTED}; got {told[0].text[:60]!r}")


def _read_table(header_line: Line, delimiter: str, lines: Iterable[Line], limit: int | None) -> PuzzleFile:
    # Each line is split on its own: in a CSV with fields of several lines, a stray quote would consume the next lines.
    header = [name.strip() for name in _split(header_line.text, delimiter)]
    lower = [name.lower() for name in header]
    asked = next(lower.index(name) for name in _PUZZLE if name in lower)
    answers = _SOLUTION + (("answer", "answers") if lower[asked] == "question" else ())
    solution = next((lower.index(name) for name in answers if name in lower), None)
    for place, name in enumerate(header):
        others = {"puzzle", "solution", *header[:place]} if place not in (asked, solution) else set()
        copy = 2
        while header[place] in others:
            header[place], copy = f"{name} ({copy})", copy + 1
    header[asked] = "puzzle"
    if solution is not None:
        header[solution] = "solution"
    file = PuzzleFile([], [], header_line.text)
    if header_line.fault:
        raise DataError(f"the header in line {header_line.number} cannot be read: {header_line.fault}")
    for line in lines:
        if limit is not None and len(file.puzzles) >= limit:
            break
        if not line.text.strip() or _is_remark(line.text, delimiter, len(header), asked):
            continue
        try:
            if line.fault:
                raise DataError(line.fault)
            fields = _split(line.text, delimiter)
            if len(fields) != len(header):
                raise DataError(f"{len(fields)} fields where the header has {len(header)}")
            file.puzzles.append(_puzzle(dict(zip(header, fields, strict=True)), line.number))
        except (DataError, csv.Error) as error:
            file.rejected.append(Rejected(line.number, str(error), line.text))
    return file


def _is_remark(text: str, delimiter: str, width: int, asked: int) -> bool:
    """Returns whether a line of a table is a comment: it begins with `#` and a space, or with `#` and is not a row.

    The first column of a row may hold names such as `#12`.
    """
    if not text.startswith("#") or text.startswith("# "):
        return text.startswith("#")
    try:
        fields = _split(text, delimiter)
    except csv.Error:
        return True
    return len(fields) != width or fields[asked].startswith("#")


def _read_each(lines: Iterable[Line], limit: int | None) -> PuzzleFile:
    """Reads a puzzle from each line of a file without a header."""
    file = PuzzleFile([], [])
    for line in lines:
        if limit is not None and len(file.puzzles) >= limit:
            break
        if _is_comment(line.text):
            continue
        try:
            if line.fault:
                raise DataError(line.fault)
            file.puzzles.append(_puzzle(_row_of(line.text), line.number))
        except (DataError, csv.Error) as error:
            file.rejected.append(Rejected(line.number, str(error), line.text))
    return file


def _row_of(text: str) -> dict[str, str]:
    """Returns the fields of a line without a header by name: puzzle, solution if there is one, and the others."""
    fields = _fields_of(text)
    places = [place for place, one in enumerate(fields) if _is_81(one)]
    if not places:
        bare = [one.strip() for one in fields]
        if len(bare) == CELLS and all(len(one) <= 1 for one in bare):
            return {"puzzle": "".join(one or "0" for one in bare)}
        return {"puzzle": _rounded(bare) or max(bare, key=len, default="")}
    clues = [sum(char in "123456789" for char in fields[place]) for place in places]
    asked = places[clues.index(min(clues))]
    row = {"puzzle": fields[asked]}
    full = next((place for place, known in zip(places, clues, strict=True) if known == CELLS and place != asked), None)
    if full is not None:
        row["solution"] = fields[full]
    others = [(place, one.strip()) for place, one in enumerate(fields) if place not in (asked, full)]
    bank = len(fields) == 3 and asked == 1 and re.fullmatch(r"[0-9a-f]{8,40}", fields[0]) is not None
    names = {0: "hash", 2: "rating"} if bank else {}
    return row | {names.get(place, f"field{place + 1}"): one for place, one in others}


def _read_grids(lines: list[Line], limit: int | None) -> PuzzleFile:
    """Reads grids of nine rows each; three groups of three rows with empty lines between them are also a grid."""
    file, blank = PuzzleFile([], []), _blanks_drawn(lines)
    groups = list(_groups(lines, blank))
    while groups and (limit is None or len(file.puzzles) < limit):
        title, rows, wrong = groups.pop(0)
        while len(rows) in (3, 6) and not wrong and groups and not groups[0][0] and len(groups[0][1]) == 3:
            rows, wrong = rows + groups[0][1], groups.pop(0)[2]
        if not rows and not wrong:
            continue
        together = sorted([line for line, _ in [*rows, *wrong]], key=lambda line: line.number)
        text = "\n".join(line.text for line in together)
        if wrong:
            line, why = wrong[0]
            file.rejected.append(
                Rejected(together[0].number, f"line {line.number} is not a row of a grid: {why}", text)
            )
            continue
        if len(rows) % 9:
            file.rejected.append(
                Rejected(together[0].number, f"a grid has nine rows of nine cells, got {len(rows)} rows", text)
            )
            continue
        for start in range(0, len(rows), 9):
            nine = rows[start : start + 9]
            number = nine[0][0].number
            try:
                row = {"puzzle": "".join(cells for _, cells in nine)}
                file.puzzles.append(_puzzle(row | ({"name": title} if title else {}), number))
            except DataError as error:
                file.rejected.append(Rejected(number, str(error), "\n".join(line.text for line, _ in nine)))
            if limit is not None and len(file.puzzles) >= limit:
                break
    return file


Group = tuple[str, list[tuple[Line, str]], list[tuple[Line, str]]]
"""The title above some rows, the rows as nine cells each, and lines among them that are not rows, with the reason."""


def _groups(lines: list[Line], blank: str) -> Iterator[Group]:
    """Splits a file of grids at empty lines, comments, titles and sections; only sections of puzzles are read."""
    title, shown = "", True
    rows: list[tuple[Line, str]] = []
    wrong: list[tuple[Line, str]] = []
    for line in lines:
        cells = _grid_row(line.text, blank)
        if cells is not None and not line.fault:
            if shown:
                rows.append((line, cells))
            continue
        if line.text.strip() and _RULE.fullmatch(line.text):
            continue
        if rows and not _is_comment(line.text) and len(rows) % 9 and not _SECTION.fullmatch(line.text.strip()):
            if shown:
                why = line.fault or f"{line.text.strip()[:30]!r} does not have nine cells"
                wrong.append((line, why))
            continue
        if rows or wrong:
            yield title, rows, wrong
            title, rows, wrong = "", [], []
        section = _SECTION.fullmatch(line.text.strip())
        if section is not None:
            shown = section[1].lower() in ("puzzle", "puzzles", "grid")
        elif not _is_comment(line.text):
            title = line.text.strip()
    if rows or wrong:
        yield title, rows, wrong


def _strict_row(text: str) -> str | None:
    """Returns the nine cells of a line that holds only cells and walls, and `None` for any other line."""
    cells = _WALLS.sub("", text)
    if len(cells) == 9 and set(cells) <= _CELLS and (len(set(cells)) > 1 or cells[0] not in "*_-"):
        return cells
    parts = [part.strip() for part in re.split(r"[,;\t]", text.rstrip("\r\n"))]
    if len(parts) == 9 and all(part in _CELLS or not part for part in parts):
        return "".join(part or "0" for part in parts)
    return None


def _grid_row(text: str, blank: str) -> str | None:
    """Returns the nine cells of a line or `None`, also where empty cells have the character of drawn lines.

    Args:
        text: The line.
        blank: The characters of empty cells in this file, from `_blanks_drawn`.
    """
    if (cells := _strict_row(text)) is not None:
        return cells
    cells = _WALLS.sub("", text)
    if len(cells) == 9 and len(set(cells)) == 1 and cells[0] in blank:
        return cells
    if " " in blank and text and len(text) <= 9 and set(text) <= _CELLS:
        return text.ljust(9)
    return None


def _blanks_drawn(lines: list[Line]) -> str:
    """Returns those of the characters `*`, `_`, `-` and space that stand for empty cells in this file of grids."""
    rows = [_WALLS.sub("", line.text) for line in lines if _strict_row(line.text) is not None]
    blank = "".join(char for char in "*_-" if any(char in row for row in rows))
    spaced = any(len(line.text) == 9 and " " in line.text.strip() and set(line.text) <= _CELLS for line in lines)
    return blank + (" " if spaced else "")


def _header_delimiter(text: str) -> str | None:
    """Returns the delimiter of a header line that names a puzzle, `None` for any other line; `""` is white space."""
    names = text.lower().split()
    found = header_delimiter(text, _PUZZLE)
    if found is not None and found not in text and len(names) > 1:
        found = None
    if found is None and all(map(str.isidentifier, names)) and set(names) & set(_PUZZLE):
        return ""
    return found


def _split(text: str, delimiter: str) -> list[str]:
    return split_fields(text, delimiter) if delimiter else text.split()


def _fields_of(text: str) -> list[str]:
    """Splits a line without a header into its fields."""
    if len(text) == CELLS and set(text) <= _CELLS:
        return [text]
    text = re.sub(r"(?<=\S)\s*#.*", "", text)
    for delimiter in ",;\t|":
        if delimiter in text:
            try:
                return _split(text, delimiter)
            except csv.Error:
                break
    return [one.strip("\"'") for one in text.split()]


def _holds_puzzle(text: str) -> bool:
    fields = _fields_of(text)
    return any(map(_is_81, fields)) or (len(fields) == CELLS and all(len(one.strip()) <= 1 for one in fields))


def _draws(text: str) -> bool:
    """Returns whether a line is a row of a grid, or a line drawn between rows."""
    spaced = 0 < len(text) <= 9 and set(text) <= _CELLS
    return _strict_row(text) is not None or spaced or (bool(text.strip()) and _RULE.fullmatch(text) is not None)


def _rounded(fields: list[str]) -> str | None:
    return next((one for one in map(str.strip, fields) if _ROUNDED.fullmatch(one)), None)


def _is_81(text: str) -> bool:
    text = text if len(text) == CELLS else text.strip()
    return len(text) == CELLS and set(text) <= _CELLS and any(char != " " for char in text)


def _is_comment(text: str) -> bool:
    return not text.strip() or text.lstrip().startswith(("#", "//"))


def _puzzle(row: dict[str, str], line: int) -> Puzzle:
    cells = parse_cells(row.pop("puzzle"))
    text = row.pop("solution", "")
    solution = parse_cells(text) if text.strip() else None
    if solution is not None and 0 in solution:
        raise DataError("the solution has empty cells")
    if solution is not None and any(c not in (0, s) for c, s in zip(cells, solution, strict=True)):
        raise DataError("the solution contradicts the clues")
    return Puzzle(cells, solution, line, row)
