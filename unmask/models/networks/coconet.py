"""Coconet: a masked convolutional network for four-part chorales, reimplemented to run the published weights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...checks import whole
from ...errors import AdapterError
from .checkpoint import load_weights

VOICES = 4
STEPS = 64
PITCHES = 46
LENGTH = VOICES * STEPS
MASK_ID = PITCHES
VOCAB_SIZE = PITCHES + 1
KIND = "coconet_jsb"
"""The value of `name` in the `config.json` of a Coconet."""

_EPS = 1e-5
_DILATIONS = 6
_SHIFTED = 8
"""From this dilation on, nine shifted sums are four to twelve times as fast on a CPU as PyTorch's convolution."""


@dataclass(frozen=True)
class CoconetConfig:
    """Sizes of a `Coconet`.

    Attributes:
        layers: Number of convolutional layers; the last two have kernels of 2×2.
        filters: Channels of the hidden layers.

    Raises:
        ValueError: If there are fewer than 4 layers or fewer than 1 filter, or more than 4096 of either.
    """

    layers: int = 21
    filters: int = 128

    def __post_init__(self) -> None:
        for name, least in (("layers", 4), ("filters", 1)):
            whole(f"CoconetConfig.{name}", getattr(self, name), least, 4096)


class Coconet(nn.Module):
    """Marginals of the masked notes of a chorale, by separable dilated convolutions over pitch and time.

    A sequence is 64 sixteenth-note steps of four voices, voice by voice: token `64·voice + step` is a pitch, MIDI
    `36 + token`, and 46 is the mask. Per voice the network sees a piano roll (46 pitches × 64 steps) and where it is
    masked; a masked token masks its whole column of the roll. Layer 0 is a 3×3 convolution. Layers `1 … layers - 3` are
    depthwise 3×3 convolutions, with dilations 1, 2, …, 32 over and over, each followed by a pointwise convolution. The
    last two layers are the same with kernels of 2×2. A residual stream is added at every second layer. The original
    predicts every cell of the roll on its own; here a note's distribution is the softmax over the 46 logits of its
    column.

    Batch normalisation always uses its running statistics. At every call it is folded into the convolution before it,
    which takes 1 % of the time.

    Args:
        config: Sizes; the default is the network whose weights the package ships.

    References:
        Huang, Cooijmans, Roberts, Courville and Eck (2017), "Counterpoint by Convolution", arXiv:1903.07227.
    """

    def __init__(self, config: CoconetConfig | None = None) -> None:
        super().__init__()
        self.config = config = CoconetConfig() if config is None else config
        width, last = config.filters, config.layers - 1
        layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(2 * VOICES, width, 3), _Statistics(width))]
        for index in range(1, last):
            side = 3 if index < last - 1 else 2
            layers.append(nn.Sequential(_Separable(width, width, side), _Statistics(width)))
        self.layers = nn.ModuleList([*layers, nn.Sequential(_Separable(width, VOICES, 2))])

    def forward(
        self, x: Int[Tensor, "batch 256"], where: Bool[Tensor, "batch 256"] | None = None
    ) -> Float[Tensor, "batch 256 47"] | Float[Tensor, "selected 47"]:
        """Returns the logits of the tokens of every note, or of the selected notes only.

        Args:
            x: Tokens, voice by voice: 0..45 are pitches, 46 is the mask.
            where: If given, the notes to return logits for.

        Returns:
            Logits over the 47 token ids, in float32 or wider; the last column, the mask token's, is `-inf`. With
            `where`, one row per selected note, ordered by batch and position.

        Raises:
            ValueError: If the shape of `x` or of `where` is not `(batch, 256)`.
        """
        if x.ndim != 2 or x.shape[1] != LENGTH:
            raise ValueError(f"x must hold 256 tokens per row, shape (batch, 256), got shape {tuple(x.shape)}")
        if where is not None and where.shape != x.shape:
            raise ValueError(f"where must have the shape of x, {tuple(x.shape)}, got {tuple(where.shape)}")
        folded = self._fold()
        if x.device.type != "cpu" or len(x) <= 1:
            return self._logits(x, where, folded)
        # One sequence at a time: its activations fit the processor's cache, which makes it faster than a batch, and the
        # sums of its products are rounded in the same order whatever else is in the batch.
        masks = [None] * len(x) if where is None else where.split(1)
        return torch.cat([self._logits(row, mask, folded) for row, mask in zip(x.split(1), masks, strict=True)])

    def roll(self, x: Int[Tensor, "batch 256"]) -> Float[Tensor, "batch 46 64 8"]:
        """Returns the network's input: for each pitch and step, which voices sound it, and which voices are masked."""
        notes = x.reshape(len(x), VOICES, STEPS, 1)
        sounds = notes == torch.arange(PITCHES, device=x.device)
        masked = (notes == MASK_ID).expand_as(sounds)
        return torch.cat([sounds, masked], 1).permute(0, 3, 2, 1).to(next(self.parameters()).dtype)

    def cells(self, roll: Float[Tensor, "batch 46 64 8"]) -> Float[Tensor, "batch 46 64 4"]:
        """Returns the logit of each cell of the voices' piano rolls, as the original network gives them."""
        return _cells(roll, self._fold())

    def _logits(self, x: Tensor, where: Tensor | None, folded: list[_Folded]) -> Tensor:
        columns = _cells(self.roll(x), folded).permute(0, 3, 2, 1).reshape(len(x), LENGTH, PITCHES)
        columns = columns if where is None else columns[where]
        return F.pad(columns.to(torch.promote_types(columns.dtype, torch.float32)), (0, 1), value=-math.inf)

    def _fold(self) -> list[_Folded]:
        folded = []
        for layer in self.layers:
            assert isinstance(layer, nn.Sequential)
            convolution, *norm = layer
            depthwise = None
            if isinstance(convolution, _Separable):
                depthwise, convolution = convolution.depthwise.weight, convolution.pointwise
            assert isinstance(convolution, nn.Conv2d)
            weight, bias = convolution.weight, convolution.bias
            for statistics in norm:
                assert isinstance(statistics, _Statistics)
                scale, shift = statistics.affine()
                weight = weight * scale.reshape(-1, 1, 1, 1)
                bias = shift if bias is None else bias * scale + shift
            folded.append(_Folded(depthwise, weight, bias))
        return folded


@dataclass(frozen=True)
class _Folded:
    """The weights of a layer with its batch normalisation folded in; layer 0 has no depthwise convolution."""

    depthwise: Tensor | None
    weight: Tensor
    bias: Tensor | None


def _cells(roll: Tensor, folded: list[_Folded]) -> Tensor:
    last = len(folded) - 1
    # The channels are the last axis throughout, so that a pointwise convolution is one matrix product.
    stream = F.conv2d(roll.permute(0, 3, 1, 2), folded[0].weight, folded[0].bias, padding=1).permute(0, 2, 3, 1)
    h = stream.relu()
    for index, layer in enumerate(folded[1:], start=1):
        assert layer.depthwise is not None
        if index < last - 1:
            h = _depthwise(h, layer.depthwise, 2 ** ((index - 1) % _DILATIONS))
        else:
            padding = 1 if index == last - 1 else 0
            h = F.conv2d(h.permute(0, 3, 1, 2), layer.depthwise, padding=padding, groups=h.shape[-1]).permute(
                0, 2, 3, 1
            )
        h = F.linear(h, layer.weight[:, :, 0, 0], layer.bias)
        if index == last:
            break
        if index % 2 == 0 and index < last - 1:
            stream = h.add_(stream)
            h = stream.relu()
        else:
            h = h.relu_()
    return h


def is_coconet(path_dir: Path) -> bool:
    """Returns whether a folder's `config.json` says that it holds a Coconet; `False` if it cannot be read."""
    try:
        found = json.loads((path_dir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("name") == KIND


def load_coconet(path_dir: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Coconet:
    """Loads the network whose weights and description are in a folder, in evaluation mode.

    Args:
        path_dir: A folder with `model.safetensors`, under the tensor names of the original checkpoint, and a
            `config.json` that describes the architecture.
        device: The device to put the network on.
        dtype: Type of its weights and activations; its logits are float32 or wider.

    Raises:
        AdapterError: If a file is missing, damaged or describes another network, or the two files do not fit each
            other.
    """
    path = path_dir / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shape = found["input"]["shape"][1:], found["output"]["shape"][1:]
        view = found["two_token_views"]["categorical"]
        tokens = {key: view[key] for key in ("vocab_size", "mask_token_id", "sequence_length")}
        config = CoconetConfig(found["architecture"]["layers"], found["architecture"]["filters"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise AdapterError(f"{path} does not describe a Coconet ({error!r}); expected its sizes and shapes") from error
    expected: list[tuple[str, Any, Any]] = [
        ("input and output shapes", shape, ([2 * VOICES, PITCHES, STEPS], [VOICES, PITCHES, STEPS])),
        ("tokens", tokens, {"vocab_size": PITCHES, "mask_token_id": MASK_ID, "sequence_length": LENGTH}),
    ]
    for what, given, wanted in expected:
        if given != wanted:
            raise AdapterError(f"{path} gives the {what} {given}, expected {wanted}")
    network = Coconet(config)
    load_weights(network, path_dir)
    return network.to(device=device, dtype=dtype).eval()


class _Separable(nn.Module):
    """Holds the weights of a depthwise convolution and of the pointwise convolution after it."""

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, side, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)


class _Statistics(nn.Module):
    """Holds the weights and running statistics of a batch normalisation, under their names in the checkpoint."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def affine(self) -> tuple[Tensor, Tensor]:
        """Returns the scale and shift, per channel, that the normalisation amounts to."""
        scale = self.weight * torch.rsqrt(self.running_var + _EPS)
        return scale, self.bias - scale * self.running_mean


def _depthwise(
    h: Float[Tensor, "batch height width filters"], weight: Float[Tensor, "filters 1 3 3"], dilation: int
) -> Float[Tensor, "batch height width filters"]:
    """Convolves each channel on its own with a dilated 3×3 kernel and zero padding."""
    if dilation < _SHIFTED or h.device.type != "cpu":
        h = h.permute(0, 3, 1, 2)
        return F.conv2d(h, weight, padding=dilation, dilation=dilation, groups=h.shape[1]).permute(0, 2, 3, 1)
    height, width = h.shape[1:3]
    taps = weight[:, 0].permute(1, 2, 0).contiguous()
    out = h * taps[1, 1]
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            down, right = row * dilation, column * dilation
            if (down or right) and abs(down) < height and abs(right) < width:
                target = out[:, max(0, -down) : height - max(0, down), max(0, -right) : width - max(0, right)]
                source = h[:, max(0, down) : height + min(0, down), max(0, right) : width + min(0, right)]
                target.addcmul_(source, taps[row + 1, column + 1])
    return out
