"""Files of rows: JSON Lines, or Parquet (with pyarrow, which the extra `ray` installs)."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.jsonl import strict

Row = dict[str, Any]


@dataclass(frozen=True)
class Format:
    """How rows are written.

    Attributes:
        suffix: Of the file's name, with the dot.
        encode: Returns rows as the bytes of a file; equal rows give equal bytes.
        numbers: Reads the number of each row, its field `row`, from a file.
    """

    suffix: str
    encode: Callable[[Sequence[Row]], bytes]
    numbers: Callable[[Path], list[int]]


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(strict(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode()


def _numbers_of_lines(path: Path) -> list[int]:
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line)["row"] for line in stream]


def _table(rows: Sequence[Row]) -> bytes:
    pyarrow = _pyarrow()
    kinds = {
        **dict.fromkeys(("row", "nfe", "new_tokens"), pyarrow.int64()),
        **dict.fromkeys(("prompt", "text", "finish_reason"), pyarrow.string()),
        **dict.fromkeys(("tokens", "steps"), pyarrow.list_(pyarrow.int64())),
        "log_probs": pyarrow.list_(pyarrow.float64()),
        "stream": pyarrow.uint64(),
    }
    schema = pyarrow.schema([(name, kinds[name]) for name in rows[0]])
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), buffer)
    return buffer.getvalue()


def _numbers_of_table(path: Path) -> list[int]:
    return _pyarrow().parquet.read_table(path, columns=["row"])["row"].to_pylist()


def _pyarrow() -> Any:
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ImportError("Parquet needs pyarrow: pip install 'unmask[ray]', or choose --format jsonl") from None
    return importlib.import_module("pyarrow")


FORMATS = {
    "jsonl": Format(".jsonl", _lines, _numbers_of_lines),
    "parquet": Format(".parquet", _table, _numbers_of_table),
}
"""The formats by name."""


def format_named(name: str) -> Format:
    """Returns a format.

    Raises:
        ValueError: If there is none of that name.
        ImportError: If it needs a library that is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"unknown format {name!r}; choose one of {', '.join(FORMATS)}")
    if name == "parquet":
        _pyarrow()
    return FORMATS[name]
