"""Where models lie: the embedded ones by name, checkpoints by path, those of the hub in its cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from .errors import AdapterError
from .hub import HubName, fetch

EMBEDDED = {
    "sudoku": "sudoku",
    "music": "music",
    "maze": "models/maze",
    "maze-loops": "models/maze-loops",
    "text": "models/text",
    "judge": "models/judge",
    "arithmetic": "models/arithmetic",
    "chat": "models/chat",
    "rxnmapper": "models/rxnmapper",
    "sapiens-vh": "models/sapiens-vh",
    "sapiens-vl": "models/sapiens-vl",
    "working": "models/working",
}
"""Names of the checkpoints that ship with the package, and where in its data they lie."""


@contextlib.contextmanager
def model_folder(
    model: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
) -> Iterator[Path]:
    """Finds the folder of an embedded model, a checkpoint or a model of the hub, which is downloaded if need be.

    Args:
        model: The name of an embedded model; a folder; or the name of a model of the hub, `owner/name`, perhaps with a
            revision, `owner/name@revision`.
        revision: Branch, tag or commit of a model of the hub.
        token: Access token of the hub, as in `hub.fetch`.
        local_files_only: Whether the hub is not to be asked.
        variant: A variant of the weights, as in `model.VARIANT.safetensors`.

    Raises:
        AdapterError: If there is no such model, or the hub does not give it.
        ValueError: If a revision is given for what is not a model of the hub.
    """
    embedded = isinstance(model, str) and model in EMBEDDED
    here = embedded or isinstance(model, Path) or Path(model).is_dir()
    named = None if here else HubName.read(str(model), revision)
    if named is not None:
        yield fetch(named, token=token, local_files_only=local_files_only, variant=variant)
        return
    if revision is not None:
        raise ValueError(
            f"revision={revision!r} goes with owner/name of a model of the hub, and not with {str(model)!r}"
        )
    if embedded:
        with resources.as_file(resources.files("unmask").joinpath("data", EMBEDDED[str(model)])) as folder:
            yield folder
        return
    if not Path(model).is_dir():
        raise AdapterError(
            f"no model at {str(model)!r}: expected a folder with model.safetensors and config.json, owner/name of a"
            f" model of the hub, or one of the embedded models: {', '.join(EMBEDDED)}"
        )
    yield Path(model)
