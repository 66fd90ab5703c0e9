"""Checkpoints of the package's own networks: a folder with `model.safetensors` and `config.json`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from unmask.errors import AdapterError
from unmask.files.reading import why
from unmask.files.writing import write_atomically
from unmask.models.networks.sudoku import LENGTH, MASK_ID, VOCAB_SIZE, SudokuConfig, SudokuNet
from unmask.models.networks.transformer import Transformer, TransformerConfig

FORMAT = "unmask/1"

Network = SudokuNet | Transformer
NetworkConfig = SudokuConfig | TransformerConfig

KINDS: dict[str, tuple[type[NetworkConfig], Callable[..., Network]]] = {
    "sudoku": (SudokuConfig, SudokuNet),
    "transformer": (TransformerConfig, Transformer),
}
"""The networks that `config.json` may name under `network`: the configuration class and the class of each."""


@dataclass(frozen=True)
class Checkpoint:
    """The description of a network, as `config.json` holds it.

    Attributes:
        network: The kind of network, a key of `KINDS`.
        config: Sizes of the network.
        task: Name and settings of the task that the network was trained on, as `unmask.tasks.named.named_task` takes
            them.
        objective: The training objective: `"masked"` or `"causal"`.
        schedule: The noise schedule, for a network with timestep conditioning.
    """

    network: str
    config: NetworkConfig
    task: dict[str, Any] | None = None
    objective: str = "masked"
    schedule: str = "linear"

    @property
    def wants_time(self) -> bool:
        """Whether the network is conditioned on time."""
        return isinstance(self.config, TransformerConfig) and self.config.time

    def ids(self) -> dict[str, int]:
        """Returns `vocab_size`, `mask_id` and `length`: number of token ids, mask token, and tokens per sequence."""
        if isinstance(self.config, TransformerConfig):
            return {name: getattr(self.config, name) for name in ("vocab_size", "mask_id", "length")}
        return {"vocab_size": VOCAB_SIZE, "mask_id": MASK_ID, "length": LENGTH}


def save_checkpoint(
    path_dir: Path,
    net: Network,
    extra_metadata: dict[str, Any] | None = None,
    *,
    task: dict[str, Any] | None = None,
    objective: str = "masked",
    schedule: str = "linear",
) -> None:
    """Writes a network as `model.safetensors` and `config.json`, each replaced atomically.

    Args:
        path_dir: The folder; made if missing.
        net: The network. Its tensors keep their type.
        extra_metadata: How the network was trained: anything that JSON can hold. It is stored under `training` in
            `config.json`.
        task: As in `Checkpoint`.
        objective: As in `Checkpoint`.
        schedule: As in `Checkpoint`.

    Raises:
        OSError: If a file cannot be written; the files already there stay as they were.
    """
    from safetensors.torch import save

    network = next(name for name, (kind, _) in KINDS.items() if isinstance(net.config, kind))
    checkpoint = Checkpoint(network, net.config, task, objective, schedule)
    config = {
        "format": FORMAT,
        "network": network,
        "config": asdict(net.config),
        **checkpoint.ids(),
        "task": task,
        "objective": objective,
        "schedule": schedule,
        "training": extra_metadata or {},
    }
    content = json.dumps(config, indent=2) + "\n"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    path_dir = Path(path_dir)
    path_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(path_dir / "model.safetensors", save(tensors))
    write_atomically(path_dir / "config.json", content.encode())


def load_checkpoint(path_dir: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Network:
    """Loads the network saved in a folder, in evaluation mode.

    Args:
        path_dir: A folder written by `save_checkpoint`.
        device: The device to put the network on.
        dtype: Type of its weights and activations; its logits are float32 (or float64) whatever this is.

    Raises:
        AdapterError: If a file is missing, damaged, of another format or network, or does not fit the configuration.
            The message names the file, what was found and what was expected.
    """
    checkpoint = read_checkpoint(Path(path_dir))
    # The network is first built on the meta device, which takes no memory: a configuration may ask for far too much.
    tensors = _read_tensors(Path(path_dir) / "model.safetensors")
    blocks = getattr(checkpoint.config, "depth", 1)
    if blocks > len(tensors) and not getattr(checkpoint.config, "recurrent", False):
        raise AdapterError(
            f"{path_dir}: config.json says depth = {blocks}, but model.safetensors holds only {len(tensors)} tensors"
        )
    try:
        with torch.device("meta"):
            described = KINDS[checkpoint.network][1](checkpoint.config)
    except RuntimeError as error:
        raise AdapterError(
            f"{path_dir}: config.json does not describe a possible network ({str(error).splitlines()[0]})"
        ) from error
    _check_tensors(described, tensors, Path(path_dir))
    net = KINDS[checkpoint.network][1](checkpoint.config)
    net.load_state_dict(tensors)
    return net.to(device=device, dtype=dtype).eval()


def load_weights(net: torch.nn.Module, path_dir: Path) -> None:
    """Fills a network with the tensors of a folder's `model.safetensors`.

    Raises:
        AdapterError: If the file is missing or damaged, or its tensors differ from the network's in name or shape, are
            not floating-point numbers, or hold NaN or infinite values.
    """
    tensors = _read_tensors(path_dir / "model.safetensors")
    _check_tensors(net, tensors, path_dir)
    net.load_state_dict(tensors)


def _check_tensors(net: torch.nn.Module, tensors: dict[str, torch.Tensor], path_dir: Path) -> None:
    path, expected = path_dir / "model.safetensors", net.state_dict()
    problems = []
    if missing := sorted(set(expected) - set(tensors)):
        problems.append(f"missing tensors: {some(missing)}")
    if extra := sorted(set(tensors) - set(expected)):
        problems.append(f"unexpected tensors: {some(extra)}")
    for name in sorted(set(expected) & set(tensors)):
        found, wanted = tensors[name], expected[name]
        if found.shape != wanted.shape:
            problems.append(f"{name} has shape {tuple(found.shape)}, expected {tuple(wanted.shape)}")
        elif not found.is_floating_point():
            problems.append(f"{name} has type {found.dtype}, expected a floating-point type")
        elif not torch.isfinite(found).all():
            problems.append(f"{name} holds NaN or infinite values")
    if problems:
        raise AdapterError(f"{path} does not fit {path_dir / 'config.json'}: {some(problems, '; ')}")


def some(names: list[str], between: str = ", ", most: int = 16) -> str:
    """Joins the first `most` names for a message, and says how many more there are."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_config(path_dir: Path) -> dict[str, Any]:
    """Returns the content of a folder's `config.json`, whichever program wrote it.

    Raises:
        AdapterError: If the file is missing, or is not a JSON object.
    """
    path = Path(path_dir) / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f'cannot read {path} ({why(error)}); expected JSON with "format": {FORMAT!r}') from error
    if not isinstance(found, dict):
        raise AdapterError(f'{path} holds a JSON {type(found).__name__}, expected an object with "format": {FORMAT!r}')
    return found


def read_checkpoint(path_dir: Path) -> Checkpoint:
    """Reads and checks the `config.json` of a checkpoint of this package.

    Raises:
        AdapterError: If the file is missing or damaged, has another format, or names an unknown network or one that its
            sizes and token ids do not fit.
    """
    path, found = Path(path_dir) / "config.json", read_config(path_dir)
    if found.get("format") != FORMAT:
        raise AdapterError(f"{path} says format = {found.get('format')!r}, expected {FORMAT!r}")
    if not isinstance(found.get("network"), str) or found["network"] not in KINDS:
        raise AdapterError(f"{path} says network = {found.get('network')!r}, expected one of {', '.join(KINDS)}")
    kind = KINDS[found["network"]][0]
    given = {name: found[name] for name in ("task", "objective", "schedule") if name in found}
    try:
        checkpoint = Checkpoint(found["network"], kind(**found["config"]), **given)
    except (KeyError, TypeError, ValueError) as error:
        names = ", ".join(field.name for field in fields(kind))
        raise AdapterError(
            f'{path}: "config" does not describe a {found["network"]} ({error}); expected {names}'
        ) from error
    for key, wanted in checkpoint.ids().items():
        if found.get(key, wanted if key == "length" else None) != wanted:  # checkpoints of 0.1 do not say the length
            raise AdapterError(f"{path} says {key} = {found.get(key)!r}, expected {wanted!r}")
    return checkpoint


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterError(
            f"cannot read {path} ({why(error)}); expected the network's weights in safetensors"
        ) from error
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise AdapterError(
            f"{path} ({len(content)} bytes) is not a complete safetensors file ({error}); "
            "it may be truncated or of another kind: copy it again"
        ) from error


def of_transformers(folder: Path) -> bool:
    """Returns whether a folder was written by the Transformers library, not by this package.

    Raises:
        AdapterError: If its `config.json` cannot be read.
    """
    config = read_config(folder)
    return "model_type" in config and "format" not in config
