"""Calling a model of the Transformers library without leaving a trace: what calls change is noticed, and put back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_TABLES = ("_modules", "_parameters", "_buffers")
_WIDENED = 4 * 2**30
"""Bytes of weights in half precision up to which a model is widened, which takes three times as much for a while."""


class Snapshot:
    """The modules of a model and their attributes, and its configuration, as they are now.

    Tensors are compared by identity and not copied: a model that writes into a weight or a buffer is not noticed.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        owners: list[Any] = list(model.modules())
        configs = {id(config): config for owner in owners if (config := owner.__dict__.get("config")) is not None}
        self._kept: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        for owner in [*owners, *configs.values()]:
            if not hasattr(owner, "__dict__"):
                continue
            self._kept.append((owner.__dict__, dict(owner.__dict__)))
            for name in _TABLES:
                table = owner.__dict__.get(name)
                if isinstance(table, dict):
                    self._kept.append((table, dict(table)))

    def restore(self) -> bool:
        """Puts everything back as it was, and returns whether anything had changed."""
        changed = False
        for now, then in self._kept:
            if now.keys() != then.keys() or not all(_same(now[name], then[name]) for name in then):
                changed = True
                now.clear()
                now.update(then)
        return changed


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    return type(a) is type(b) and isinstance(a, (bool, int, float, str, tuple)) and a == b


@contextlib.contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Sets PyTorch's global generators, of the CPU and of a device, and puts them back afterwards.

    Args:
        device: A device whose generator counts, besides the CPU's.
        seed: What they are set to.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def random_state(device: torch.device) -> list[Tensor]:
    """Returns the states of PyTorch's global generators, of the CPU and of a device."""
    state = [torch.get_rng_state()]
    return [*state, torch.cuda.get_rng_state(device)] if device.type == "cuda" else state


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Puts PyTorch's global generators back to what `random_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


@contextlib.contextmanager
def at_rest(model: nn.Module, seed: int = 0) -> Iterator[Snapshot]:
    """Evaluation mode, no gradients and a seed of its own; afterwards everything is as it was.

    Args:
        model: The model.
        seed: For what the model draws while it is evaluated.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    snapshot = Snapshot(model)
    device = next(model.parameters(), torch.zeros(0)).device
    try:
        with torch.no_grad(), seeded(device, seed):
            yield snapshot
    finally:
        snapshot.restore()
        for module in training:
            module.training = True


@contextlib.contextmanager
def widened(model: nn.Module) -> Iterator[None]:
    """Makes a model of half precision one of float32, unless it is large, quantized or spread over several devices.

    Afterwards its weights are what they were.
    """
    half = [
        tensor
        for tensor in dict.fromkeys((*model.parameters(), *model.buffers()))
        if tensor.dtype in (torch.float16, torch.bfloat16)
    ]
    large = sum(tensor.nbytes for tensor in half) > _WIDENED
    if large or any(getattr(model, name, None) is not None for name in ("hf_quantizer", "hf_device_map")):
        half = []
    kept = [tensor.data for tensor in half]
    try:
        for tensor, data in zip(half, kept, strict=True):
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in zip(half, kept, strict=True):
            tensor.data = data


@contextlib.contextmanager
def without_experts(model: nn.Module) -> Iterator[None]:
    """Leaves out what the experts of a model add to each token; afterwards they are back.

    An expert is given one token at a time, so it cannot carry anything from one token to another. But rounding can send
    a token to another expert, and that makes a difference which is not one of rounding.

    Args:
        model: The model.
    """

    def left_out(_: nn.Module, __: object, output: object) -> object:
        return torch.zeros_like(output) if isinstance(output, torch.Tensor) else output

    hooks = [part.register_forward_hook(left_out) for name, part in model.named_modules() if name.endswith(".experts")]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
