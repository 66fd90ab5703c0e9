"""Reading tables with a header line: CSV, or with tabs, semicolons or bars between the fields."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import DataError
from .reading import read_text

DELIMITERS = (",", ";", "\t", "|")


def read_table(
    path: Path | str, columns: Sequence[str], what: str = "the table", encoding: str | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Reads the rows of a table; empty ones are passed over.

    Args:
        path: The file, gzipped or not; `-` is standard input.
        columns: Names that the header must have, in lower case; capitals and spaces around a name do not matter.
        what: What it should be, for messages.
        encoding: See `unmask.files.reading.read_text`.

    Yields:
        The number of the line where a row ends, and its fields by the names of the header in lower case.

    Raises:
        DataError: If the file cannot be read, the header lacks a column, or a row has another number of fields.
    """
    text = read_text(path, what, encoding)
    header_line, _, _ = text.partition("\n")
    delimiter = header_delimiter(header_line, columns)
    if delimiter is None:
        wanted = ", ".join(repr(name) for name in columns)
        raise DataError(f"{path} needs a header line with a column {wanted}, got {header_line[:60]!r}")
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(rows)]
        if missing := [name for name in columns if name not in header]:
            raise DataError(f"{path} needs a header line with a column {missing[0]!r}, got {header_line[:60]!r}")
        for row in rows:
            if not any(one.strip() for one in row):
                continue
            if len(row) != len(header):
                raise DataError(f"{path}, line {rows.line_num}: {len(row)} fields where the header has {len(header)}")
            yield rows.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from None


def header_delimiter(text: str, columns: Sequence[str]) -> str | None:
    """Returns what separates the fields of a header line, or nothing if it has none of the columns.

    Args:
        text: The line.
        columns: Names in lower case, of which it must have one.
    """
    best, most = None, 0
    for delimiter in DELIMITERS:
        try:
            names = [name.strip().lower() for name in split_fields(text, delimiter)]
        except csv.Error:
            continue
        if len(names) > most and set(names) & set(columns):
            best, most = delimiter, len(names)
    return best


def split_fields(text: str, delimiter: str) -> list[str]:
    """Splits one line of a table; a field in quotes may hold the delimiter.

    Raises:
        csv.Error: If a quote is not closed, or something follows one.
    """
    return next(csv.reader([text], strict=True, delimiter=delimiter), [])
