"""Compares a configuration with the safetensors of its folder, before the network is built.

A configuration is only text: a thousand layers too many, or an embedding of a billion tokens, would fill the memory
before the library noticed that the weights do not fit. So the headers of the files are read first, which is quick, and
compared with a network on the meta device, which takes no memory.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig, PreTrainedModel

from ...errors import AdapterError
from ..networks.checkpoint import some

_COUNTS = re.compile(r"(?:^|_)(?:layers?|blocks|block_sizes|groups|group_num|experts|depth|stages)$")
"""Names of settings that count parts of a network, each of which has at least one tensor."""
_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")
"""Names of the tensors of one expert."""
_LARGEST = 1 << 24
"""Settings up to this value are always accepted: a model with rotary positions may take so many tokens."""
_SPARE = 1 << 24
"""A network may have twice as many numbers as the files, and so many more: buffers and tied weights."""


@dataclass(frozen=True)
class Held:
    """The content of safetensors files.

    Attributes:
        tensors: The number of tensors.
        numbers: The number of elements of all tensors together.
        names: The names of the tensors.
    """

    tensors: int
    numbers: int
    names: tuple[str, ...] = ()


def held(files: Mapping[str, Path]) -> Held:
    """Reads the headers of safetensors files.

    Args:
        files: The paths of the files, by name.

    Raises:
        AdapterError: If a file cannot be read, or is not a safetensors file. The message names it.
    """
    names: list[str] = []
    numbers = 0
    for path in files.values():
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is not a mapping)
                    names.append(name)
                    numbers += math.prod(file.get_slice(name).get_shape())
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            raise AdapterError(
                f"{path} is not a complete safetensors file ({' '.join(str(error).split())[:200]}); it may have been"
                " cut off: copy it again"
            ) from error
    return Held(len(names), numbers, tuple(names))


def check_experts(folder: Path, found: Held) -> None:
    """Refuses files that lack a tensor of one expert which another expert of the same layer has.

    The library joins the experts of a layer into one tensor, and does not say which part is missing.

    Args:
        folder: The folder, named in the message.
        found: The content of its files.

    Raises:
        AdapterError: If there are such tensors; the message names them.
    """
    layers: dict[str, set[tuple[int, str]]] = {}
    for match in filter(None, map(_EXPERT.fullmatch, found.names)):
        layers.setdefault(match[1], set()).add((int(match[2]), match[3]))
    missing = [
        f"{layer}{number}{part}"
        for layer, parts in layers.items()
        for number in range(1 + max(number for number, _ in parts))
        for part in sorted({part for _, part in parts})
        if (number, part) not in parts
    ]
    if missing:
        raise AdapterError(f"{folder} lacks weights of experts: {some(missing, most=5)}")


def check_numbers(folder: Path, fields: Mapping[str, Any], found: Held) -> None:
    """Refuses a configuration with a number that is far too large for the content of the files.

    With such a number even building the library's configuration may take forever.

    Args:
        folder: The folder, named in the message.
        fields: The content of `config.json`.
        found: The content of the files.

    Raises:
        AdapterError: If there is such a number; the message names it.
    """
    for name, value in _numbers(dict(fields)):
        limit = 10 * found.tensors + 100 if _COUNTS.search(name) else max(_LARGEST, found.numbers)
        if value > limit and not name.endswith(("_id", "_ids", "_index", "_length", "window", "theta")):
            raise AdapterError(
                f"{folder}: config.json says {name} = {value}, but the files hold only {found.tensors} tensors with"
                f" {found.numbers} numbers"
            )


def check_sizes(folder: Path, auto: Any, config: PreTrainedConfig, found: Held) -> None:
    """Refuses a configuration that describes a far larger network than the files hold.

    Args:
        folder: The folder, named in the message.
        auto: The library's class that is to be loaded.
        config: Its configuration.
        found: The content of the files.

    Raises:
        AdapterError: If the network has more than twice the numbers in the files, apart from a small allowance.
    """
    if getattr(config, "quantization_config", None):
        return  # several weights of the network are packed into one number of a file
    with torch.device("meta"):
        model = auto(config) if issubclass(auto, PreTrainedModel) else auto.from_config(config, trust_remote_code=False)
    sizes = {name: tensor.numel() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    if sum(sizes.values()) > 2 * found.numbers + _SPARE:
        largest = max(sizes, key=sizes.__getitem__)
        raise AdapterError(
            f"{folder}: config.json describes {sum(sizes.values())} numbers, {sizes[largest]} of them in {largest}, but"
            f" the files hold only {found.numbers}"
        )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """Yields the whole numbers of a configuration, at any depth, with their names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value
