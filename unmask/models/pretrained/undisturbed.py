"""Calls a model of the Transformers library without side effects: what a call changes is detected and restored."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

_TABLES = ("_modules", "_parameters", "_buffers")
_WIDENED = 4 * 2**30
"""Bytes of weights in half precision up to which a model is widened, which temporarily takes three times the memory."""


class Snapshot:
    """A snapshot of a model's modules, their attributes, and its configurations.

    Tensors are compared by identity and not copied, so writing into a weight or a buffer is not detected.

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
    """Seeds PyTorch's global generators, of the CPU and of a device, and restores their states afterwards.

    Args:
        device: The device whose generator is seeded, besides the CPU's.
        seed: The seed.
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
    """Restores the states of PyTorch's global generators that `random_state` returned."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


@contextlib.contextmanager
def at_rest(model: nn.Module, seed: int = 0) -> Iterator[Snapshot]:
    """Puts a model into evaluation mode, without gradients and with a seed of its own; restores everything afterwards.

    Args:
        model: The model.
        seed: Seed of the random numbers that the model draws while it is evaluated.

    Yields:
        The snapshot from which the model will be restored.
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
    """Converts a model in half precision to float32, and restores its weights afterwards.

    A model that is large, quantized or spread over several devices stays as it is.
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
    """Replaces the output of a model's experts by 0, and restores it afterwards.

    An expert processes each token alone, so it cannot carry information from one token to another. But rounding can
    send a token to another expert, which makes a difference far greater than rounding.

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
