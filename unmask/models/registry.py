"""Finding and loading models: the embedded ones by name, checkpoints by path."""

from __future__ import annotations

import contextlib
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..denoiser import NetworkDenoiser
from ..errors import AdapterError
from ..tasks.task import Task

if TYPE_CHECKING:
    from ..rules.profile import Profile

EMBEDDED = {
    "sudoku": "sudoku",
    "music": "music",
    "maze": "models/maze",
    "maze-loops": "models/maze-loops",
    "text": "models/text",
    "judge": "models/judge",
    "arithmetic": "models/arithmetic",
    "chat": "models/chat",
}
"""Names of the checkpoints that ship with the package, and where in its data they lie."""


def load(
    model: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    shift: bool | None = None,
    block_causal: int | None = None,
    mask_id: int | None = None,
    **options: Any,
) -> NetworkDenoiser:
    """Loads a model as a denoiser; language models that come with a tokenizer as a `LanguageModel`.

    Models of the Transformers library need the extra `train`. No code that comes with a model is run, and nothing is
    downloaded.

    Args:
        model: The name of an embedded model (one of `EMBEDDED`); or a folder with weights in safetensors and
            `config.json`, or the name of one on the hub (`owner/name`) that is in the local cache: a checkpoint of
            this package, a LLaDA, a Dream, an adapted Llama or Qwen, or any masked language model.
        device: Where to put it.
        dtype: Of its weights and activations.
        shift: Of an adapted Llama or Qwen that does not say it: whether position `i` is predicted by output `i - 1`.
        block_causal: Of an adapted Llama or Qwen that was trained so: positions look at their own block of so many,
            counted from the first position, and at the blocks before it.
        mask_id: Id of the mask token of a model of the Transformers library whose files do not name it (iLLaDA: 5,
            LLaDA-MoE: 156895).
        **options: Of `from_pretrained` for models of the Transformers library, such as `device_map` (instead of
            `device`) or `quantization_config`.

    Raises:
        AdapterError: If there is no such model, or the checkpoint is unreadable, foreign or does not fit.
        ValueError: If an option does not apply to the model.
    """
    with model_folder(model) as folder:
        return _load(folder, device, dtype, shift, block_causal, mask_id, options)


def load_profile(model: str | Path) -> Profile:
    """Loads the dependence profile that lies beside a model, or in a folder of its own.

    Args:
        model: The name of an embedded model, or a folder with `profile.json` and `profile.safetensors`.

    Raises:
        AdapterError: If there is no such folder, or no profile in it.
    """
    from ..rules.profile import Profile

    with model_folder(model) as folder:
        return Profile.load(folder)


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


def task_of(model: str | Path, **settings: Any) -> Task:
    """Builds the task a model was trained on, with the vocabulary it was trained with.

    Args:
        model: As in `load`.
        **settings: Settings of the task that replace those of the training, such as `data` or `gaps` of text.

    Raises:
        AdapterError: If there is no such model, or it does not say what it was trained on.
        ValueError: If a setting does not apply to the task, or is out of range.
        DataError: If the task's data cannot be read or does not fit the vocabulary.
    """
    from ..tasks.named import named_task

    with model_folder(model) as folder:
        task = _said_task(folder)
    if not isinstance(task, dict) or "name" not in task or not isinstance(task.get("settings"), dict):
        raise AdapterError(f"{folder / 'config.json'} does not say which task the model was trained on")
    return named_task(task["name"], **{**task["settings"], **settings})


@dataclass(frozen=True)
class Training:
    """What a model says it was trained on.

    Attributes:
        task: Name of the task, or `None` if it does not say.
        settings: Of the task, the vocabulary apart.
        vocabulary: The characters of a text, in the order of their ids, if it says.
        objective: `"masked"`, or `"causal"` for a judge that reads from left to right.
    """

    task: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    vocabulary: str | None = None
    objective: str = "masked"


def trained_on(model: str | Path) -> Training:
    """Reads what a model says it was trained on; nothing is loaded.

    Args:
        model: As in `load`.

    Raises:
        AdapterError: If there is no such model, or its `config.json` cannot be read.
    """
    from .networks import coconet
    from .networks.checkpoint import read_checkpoint

    with model_folder(model) as folder:
        said = _said_task(folder)
        ours = not coconet.is_coconet(folder) and not _of_transformers(folder)
        objective = read_checkpoint(folder).objective if ours else "masked"
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        return Training(objective=objective)
    settings = dict(said["settings"]) if isinstance(said.get("settings"), dict) else {}
    vocabulary = settings.pop("vocabulary", None)
    return Training(said["name"], settings, vocabulary if isinstance(vocabulary, str) else None, objective)


def _said_task(folder: Path) -> Any:
    from .networks import coconet
    from .networks.checkpoint import read_checkpoint

    if coconet.is_coconet(folder):
        return {"name": "music", "settings": {}}
    if _of_transformers(folder):
        from .pretrained.masked_lm import about_of

        return (about_of(folder) or {}).get("task")
    checkpoint = read_checkpoint(folder)
    return {"name": "sudoku", "settings": {}} if checkpoint.network == "sudoku" else checkpoint.task


def _of_transformers(folder: Path) -> bool:
    """Whether a folder was written by the Transformers library, not by this package."""
    from .networks.checkpoint import read_config

    config = read_config(folder)
    return "model_type" in config and "format" not in config


def _load(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    shift: bool | None,
    block_causal: int | None,
    mask_id: int | None,
    options: dict[str, Any],
) -> NetworkDenoiser:
    from .networks import coconet
    from .networks.checkpoint import load_checkpoint, read_checkpoint

    of_transformers = not coconet.is_coconet(folder) and _of_transformers(folder)
    if of_transformers:
        from ..language.loading import load_language

        return load_language(folder, device, dtype, shift, block_causal, options, mask_id)
    ours = {"shift": shift, "block_causal": block_causal, "mask_id": mask_id}
    if extra := [*options, *(name for name, value in ours.items() if value is not None)]:
        raise ValueError(f"{', '.join(extra)} does not apply to {folder}: it is for models of the Transformers library")
    if coconet.is_coconet(folder):
        network = coconet.load_coconet(folder, device=device, dtype=dtype)
        return NetworkDenoiser(network, coconet.VOCAB_SIZE, coconet.MASK_ID, coconet.LENGTH)
    checkpoint = read_checkpoint(folder)
    network = load_checkpoint(folder, device=device, dtype=dtype)
    return NetworkDenoiser(network, **checkpoint.ids(), wants_time=checkpoint.wants_time)
