"""Checkpoints of the package's own networks: a folder with `model.safetensors` and `config.json`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from unmask.errors import AdapterError
from unmask.networks.sudoku import MASK_ID, VOCAB_SIZE, SudokuConfig, SudokuNet

FORMAT = "unmask/1"


def save_checkpoint(path_dir: Path, net: SudokuNet, extra_metadata: dict[str, Any] | None = None) -> None:
    """Writes a network as `model.safetensors` and `config.json`, each replaced atomically.

    Args:
        path_dir: The folder; made if missing.
        net: The network. Its tensors keep their type.
        extra_metadata: How it was trained; anything JSON can hold, kept under `training` in `config.json`.

    Raises:
        OSError: If a file cannot be written; the files already there stay as they were.
    """
    from safetensors.torch import save

    config = {
        "format": FORMAT,
        "network": "sudoku",
        "config": asdict(net.config),
        "vocab_size": VOCAB_SIZE,
        "mask_id": MASK_ID,
        "training": extra_metadata or {},
    }
    content = json.dumps(config, indent=2) + "\n"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in net.state_dict().items()}
    path_dir = Path(path_dir)
    path_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(path_dir / "model.safetensors", save(tensors))
    write_atomically(path_dir / "config.json", content.encode())


def load_checkpoint(
    path_dir: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> SudokuNet:
    """The network saved in a folder, in evaluation mode.

    Args:
        path_dir: A folder written by `save_checkpoint`.
        device: Where to put it.
        dtype: Type of its weights and of its arithmetic; logits are float32 whatever it is.

    Raises:
        AdapterError: If a file is missing, damaged, of another format or network, or does not fit the configuration.
            The message names the file, what was found and what was expected.
    """
    path_dir = Path(path_dir)
    config = read_config(path_dir)
    path = path_dir / "model.safetensors"
    tensors = _read_tensors(path)
    net = SudokuNet(config)
    expected = net.state_dict()
    problems = []
    if missing := sorted(set(expected) - set(tensors)):
        problems.append(f"missing tensors: {', '.join(missing)}")
    if extra := sorted(set(tensors) - set(expected)):
        problems.append(f"unexpected tensors: {', '.join(extra)}")
    for name in sorted(set(expected) & set(tensors)):
        found, wanted = tensors[name], expected[name]
        if found.shape != wanted.shape:
            problems.append(f"{name} has shape {tuple(found.shape)}, expected {tuple(wanted.shape)}")
        elif not found.is_floating_point():
            problems.append(f"{name} has type {found.dtype}, expected a floating-point type")
        elif not torch.isfinite(found).all():
            problems.append(f"{name} holds NaN or infinite values")
    if problems:
        raise AdapterError(f"{path} does not fit {path_dir / 'config.json'}: {'; '.join(problems)}")
    net.load_state_dict(tensors)
    return net.to(device=device, dtype=dtype).eval()


def read_config(path_dir: Path) -> SudokuConfig:
    """The configuration in a checkpoint's `config.json`, checked.

    Raises:
        AdapterError: If the file is missing, damaged, or of another format or network.
    """
    path = Path(path_dir) / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f'cannot read {path} ({error}); expected JSON with "format": {FORMAT!r}') from error
    if not isinstance(found, dict):
        raise AdapterError(f'{path} holds a JSON {type(found).__name__}, expected an object with "format": {FORMAT!r}')
    for key, wanted in {"format": FORMAT, "network": "sudoku", "vocab_size": VOCAB_SIZE, "mask_id": MASK_ID}.items():
        if found.get(key) != wanted:
            raise AdapterError(f"{path} says {key} = {found.get(key)!r}, expected {wanted!r}")
    try:
        return SudokuConfig(**found["config"])
    except (KeyError, TypeError, ValueError) as error:
        fields = ", ".join(asdict(SudokuConfig()))
        raise AdapterError(f'{path}: "config" does not describe a SudokuNet ({error}); expected {fields}') from error


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        content = path.read_bytes()
    except OSError as error:
        raise AdapterError(f"cannot read {path} ({error}); expected the network's weights in safetensors") from error
    try:
        return load(content)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise AdapterError(
            f"{path} ({len(content)} bytes) is no complete safetensors file ({error}); "
            "it may be truncated or of another kind: copy it again"
        ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, flushed to disk, if the block succeeds."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that at any moment, even after a crash, it is the old one or the new one."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
