"""A file of results, one per line, from which an interrupted run continues."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..files.reading import read_text, split_lines

_BEGINNING = '{"key": '


class Store:
    """Stores values by key, in memory and in a file of JSON lines.

    A line that a killed process left unfinished is skipped, so that its value is computed again.

    Args:
        path: The file; made if missing, together with its folder. `None`: values are stored in memory only.

    Raises:
        DataError: If the file cannot be read, or does not hold results; then nothing is written to it.
        OSError: If the file cannot be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._kept: dict[str, Any] = {}
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            for line in split_lines(read_text(path, "the results")):
                if line.strip() and not line.startswith(_BEGINNING[: len(line)]):
                    raise DataError(
                        f"{path} is not a file of results from which a run can continue: it holds {line[:40]!r}; name"
                        " another file, or one that does not exist yet"
                    )
                try:
                    kept = json.loads(line)
                    self._kept[kept["key"]] = kept["value"]
                except (ValueError, KeyError, TypeError):
                    continue
        with path.open("a", encoding="utf-8") as stream:
            stream.write("\n")  # ends an unfinished line, so that the next result begins a new one

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def __getitem__(self, key: str) -> Any:
        return self._kept[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._kept[key] = value
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps({"key": key, "value": value}) + "\n")
