"""A folder of numbered shards under a manifest: what is finished stays finished, whatever is killed when.

A shard is the file of a range of rows. It appears under its name when all of it is on the disk, and never before, so
the files themselves say what is finished. The manifest says which run they are of: another run leaves them alone.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import DataError
from ..files.jsonl import read_json
from ..files.reading import read_text, reason
from ..files.writing import alone, write_output
from .formats import Row, format_named

MANIFEST = "manifest.json"
LARGEST = 256
"""Rows of a shard where nothing is said, at most: what a killed run loses."""
_FINE = 64
"""Shards that a small job has at least, if its batches are full: enough to keep many workers busy."""


def usual_rows(rows: int, batch_size: int) -> int:
    """Returns how many rows a shard has if nothing is said: whole batches, up to 256 rows."""
    batches = -(-rows // (_FINE * batch_size))
    return max(batch_size, min(batches * batch_size, LARGEST // batch_size * batch_size))


@dataclass(frozen=True)
class Shards:
    """The shards of one run.

    Args:
        folder: Where they lie.
        rows: How many rows there are in all.
        size: How many rows a shard has; the last one may have fewer.
        form: The format, one of `FORMATS`.
        identity: What the rows depend on: names and plain values.

    Raises:
        ValueError: If a setting is out of range.
    """

    folder: Path
    rows: int
    size: int
    form: str
    identity: Mapping[str, Any]

    def __post_init__(self) -> None:
        if self.size < 1 or self.rows < 1:
            raise ValueError(f"there must be rows, and shards of at least one row, got {self.rows} and {self.size}")
        format_named(self.form)

    def __len__(self) -> int:
        return -(-self.rows // self.size)

    def range(self, number: int) -> range:
        """The numbers of the rows of a shard."""
        return range(number * self.size, min(self.rows, (number + 1) * self.size))

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"part-{number:05d}{format_named(self.form).suffix}"

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """What is written to the manifest, besides the version of this package."""
        plan = {"rows": self.rows, "shard_rows": self.size, "shards": len(self), "format": self.form}
        return json.loads(json.dumps({**plan, **self.identity}))

    @contextlib.contextmanager
    def open(self) -> Iterator[list[int]]:
        """Makes the folder or goes on with it, and keeps other processes out while the block runs.

        Yields:
            The numbers of the shards that are still to be made.

        Raises:
            ValueError: If the folder holds something else or the shards of another run, another process is writing
                there, or it cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            held = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        except OSError as error:
            raise ValueError(f"cannot write into {self.folder}: {reason(error)}") from None
        path = self.folder / MANIFEST
        if held and not path.exists():
            raise ValueError(f"{self.folder} holds other files ({held[0]}, ...); name a folder that is new or empty")
        with alone(self.folder, "writing"):
            if path.exists():
                self._check_same(path)
            else:
                write_output(path, json.dumps({"unmask": __version__, **self.manifest}, indent=2) + "\n")
            yield [number for number in range(len(self)) if not self.finished(number)]

    def _check_same(self, path: Path) -> None:
        there = read_json(read_text(path, "the manifest"), str(path))
        if not isinstance(there, dict):
            raise DataError(f"{path} is not the manifest of a run; name another folder")
        names = [name for name in {**there, **self.manifest} if name != "unmask"]
        differing = [name for name in names if there.get(name) != self.manifest.get(name)]
        if differing:
            shown = ", ".join(f"{one}: {there.get(one)!r} there, {self.manifest.get(one)!r} asked" for one in differing)
            raise ValueError(f"{self.folder} holds another run ({shown}); give the same options, or another folder")

    def finished(self, number: int) -> bool:
        """Whether the file of a shard is there and holds its rows, in order; one that was damaged does not count."""
        path = self.path(number)
        try:
            return path.is_file() and format_named(self.form).numbers(path) == list(self.range(number))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def write(self, number: int, rows: Sequence[Row]) -> None:
        """Writes a shard; at any moment all of it is there, or nothing.

        Raises:
            ValueError: If these are not its rows, or it cannot be written, for instance on a full disk.
        """
        if [row["row"] for row in rows] != list(self.range(number)):
            raise ValueError(f"these are not the rows of shard {number}")
        try:
            write_output(self.path(number), format_named(self.form).encode(rows))
        except ValueError as error:
            raise ValueError(f"{error}; the finished shards stay, and the same command goes on from them") from None
