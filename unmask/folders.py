"""Where models lie: the embedded ones by name, checkpoints by path, those of the hub in the local cache."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from .errors import AdapterError

EMBEDDED = {
    "sudoku": "sudoku",
    "music": "music",
    "maze": "models/maze",
    "maze-loops": "models/maze-loops",
    "text": "models/text",
    "judge": "models/judge",
    "arithmetic": "models/arithmetic",
    "chat": "models/chat",
    "working": "models/working",
}
"""Names of the checkpoints that ship with the package, and where in its data they lie."""


@contextlib.contextmanager
def model_folder(model: str | Path) -> Iterator[Path]:
    """Finds the folder of an embedded model or a checkpoint.

    Raises:
        AdapterError: If there is no such folder.
    """
    if isinstance(model, str) and model in EMBEDDED:
        with resources.as_file(resources.files("unmask").joinpath("data", EMBEDDED[model])) as folder:
            yield folder
        return
    if isinstance(model, str) and not Path(model).is_dir() and (cached := _cached(model)) is not None:
        yield cached
        return
    if not Path(model).is_dir():
        raise AdapterError(
            f"no model at {str(model)!r}: expected a folder with model.safetensors and config.json, or one of the"
            f" embedded models: {', '.join(EMBEDDED)}"
        )
    yield Path(model)


def _cached(name: str) -> Path | None:
    """The newest snapshot of a model of the hub in the local cache."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None or importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None
