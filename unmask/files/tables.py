"""Reads tables with a header line: CSV, or with tabs, semicolons or vertical bars between the fields."""

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
    """Reads the rows of a table; empty rows are skipped.

    Args:
        path: The file, gzipped or not; `-` is standard input.
        columns: Names that the header must have, in lower case; in the file, case and spaces around a name are ignored.
        what: What messages call its content.
        encoding: See `unmask.files.reading.read_text`.

    Yields:
        The number of the line in which a row ends, and the fields of the row by the names of the header in lower case.

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
    """Returns the delimiter of the fields of a header line, or `None` if it has none of the columns.

    Args:
        text: The line.
        columns: Names in lower case, at least one of which the line must have.
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
    """Splits one line of a table into fields; a quoted field may contain the delimiter.

    Raises:
        csv.Error: If a quote is not closed, or text follows the end of a quoted field.
    """
    return next(csv.reader([text], strict=True, delimiter=delimiter), [])
