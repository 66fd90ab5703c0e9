"""What the safetensors of a folder hold, looked at before a network is made that their configuration describes.

A configuration is only text: a thousand layers too many, or a table for a billion tokens, would fill the memory before
the library found that the weights are others. So the headers of the files are read first, which is quick, and a network
without memory is compared with them.
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

_COUNTS = re.compile(r"(?:^|_)(?:layers?|blocks|block_sizes|groups|group_num|experts|depth|stages)$")
"""Settings of which there is at least one tensor each."""
_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")
"""Names of tensors of one expert."""
_LARGEST = 1 << 24
"""Settings up to this are taken whatever the files hold: a model with rotary positions may take so many tokens."""
_SPARE = 1 << 24
"""Numbers a network may have that no file holds, beside as many as the files hold: buffers and tied weights."""


@dataclass(frozen=True)
class Held:
    """What files hold.

    Attributes:
        tensors: How many tensors.
        numbers: How many numbers, all together.
        names: Names of the tensors.
    """

    tensors: int
    numbers: int
    names: tuple[str, ...] = ()


def held(files: Mapping[str, Path]) -> Held:
    """Reads the headers of files.

    Args:
        files: By name.

    Raises:
        AdapterError: If one cannot be read, or is not a safetensors file; it is named.
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
                f"{path} is no complete safetensors file ({' '.join(str(error).split())[:200]}); it may have been cut"
                " off: copy it again"
            ) from error
    return Held(len(names), numbers, tuple(names))


def check_experts(folder: Path, found: Held) -> None:
    """Refuses files that lack a tensor of one expert and have it of another in the same layer.

    The library makes one tensor of the experts of a layer, and does not say which it misses.

    Args:
        folder: Named in the message.
        found: What the files hold.

    Raises:
        AdapterError: If there is such a tensor; it is named.
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
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise AdapterError(f"{folder} lacks weights of experts: {', '.join(missing[:5])}{more}")


def check_numbers(folder: Path, fields: Mapping[str, Any], found: Held) -> None:
    """Refuses a configuration with a number that nothing in the files answers to; it may already take for ever to read.

    Args:
        folder: Named in the message.
        fields: The content of `config.json`.
        found: What the files hold.

    Raises:
        AdapterError: If there is one; it is named.
    """
    for name, value in _numbers(dict(fields)):
        limit = 10 * found.tensors + 100 if _COUNTS.search(name) else max(_LARGEST, found.numbers)
        if value > limit and not name.endswith(("_id", "_ids", "_index", "_length", "window", "theta")):
            raise AdapterError(
                f"{folder}: config.json says {name} = {value}, and the files hold {found.tensors} tensors of"
                f" {found.numbers} numbers"
            )


def check_sizes(folder: Path, auto: Any, config: PreTrainedConfig, found: Held) -> None:
    """Refuses a configuration that describes a far larger network than the files hold.

    Args:
        folder: Named in the message.
        auto: The library's class that is to be loaded.
        config: Its configuration.
        found: What the files hold.

    Raises:
        AdapterError: If it asks for more than there is.
    """
    if getattr(config, "quantization_config", None):
        return  # several numbers of the network are in one of a file
    with torch.device("meta"):
        model = auto(config) if issubclass(auto, PreTrainedModel) else auto.from_config(config, trust_remote_code=False)
    sizes = {name: tensor.numel() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    if sum(sizes.values()) > 2 * found.numbers + _SPARE:
        largest = max(sizes, key=sizes.__getitem__)
        raise AdapterError(
            f"{folder}: config.json describes {sum(sizes.values())} numbers, {sizes[largest]} of them in {largest}, and"
            f" the files hold {found.numbers}"
        )


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers of a configuration, with their names."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, str(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _numbers(item, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value
