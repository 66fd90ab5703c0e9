"""An initialisation of a Llama whose attention heads attend to neighbouring positions from the start.

A small network on short texts learns to copy and to add only once its attention finds the neighbours of a position.
From random weights, this search takes most of its training. With rotary position embeddings the network can be
initialised there: one channel of every token embedding is a constant, from which the query and key projections of a
head compute vectors whose product, after the rotation, is

    a sum_f cos(theta_f (distance - offset)),

which is largest at one offset. The weights for the other channels are random as usual.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

OFFSETS: tuple[tuple[int | None, ...], ...] = ((-1, 1, -2, None), (-1, 1, 2, None), (-1, 1, -3, None))
"""For each layer, the offsets of its heads in turn (`None`: no offset); later layers have none."""

_CONSTANT = 0.5
"""The value of the constant channel, as a share of the norm of an embedding."""
_SHARPNESS = 1.5
"""The factor `a` of the formula above, in nats of attention score."""
_FREQUENCIES = 6
"""How many of the highest frequencies are used; the others hardly distinguish neighbouring positions."""


@torch.no_grad()
def look_at_neighbours(model: LlamaForCausalLM) -> None:
    """Initialises a Llama in place, with attention to neighbours as the module describes.

    All matrices are drawn from PyTorch's generator, with variance `1/inputs`; the output projections of attention and
    MLP are then scaled by `1/sqrt(2 layers)`.

    Args:
        model: The model; the weights of its norms stay as they are.
    """
    config: Any = model.config
    width, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    size, key_heads = width // heads, config.num_key_value_heads
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.normal_(0, weight.shape[1] ** -0.5)
    body: Any = model.model
    embedding: Tensor = body.embed_tokens.weight
    embedding[:, 0] = _CONSTANT * math.sqrt(width) * embedding.std()
    constant = _CONSTANT * math.sqrt(width / (1 + _CONSTANT**2))  # the constant channel after the first layer's norm
    theta: float = config.rope_parameters["rope_theta"]
    frequencies = theta ** (-torch.arange(size // 2) * 2 / size)
    amplitude = torch.zeros(size // 2)
    amplitude[:_FREQUENCIES] = math.sqrt(_SHARPNESS * math.sqrt(size)) / constant
    for layer, offsets in zip(body.layers, [*OFFSETS, *[()] * layers], strict=False):
        attention = layer.self_attn
        for head in range(key_heads):
            offset = offsets[head % len(offsets)] if offsets else None
            if offset is not None:
                for query in range(head * (heads // key_heads), (head + 1) * (heads // key_heads)):
                    first, _ = _head(attention.q_proj.weight, query, size)
                    first += amplitude
                turned = -frequencies * offset
                cosine, sine = _head(attention.k_proj.weight, head, size)
                cosine += amplitude * turned.cos()
                sine += amplitude * turned.sin()
        attention.o_proj.weight.mul_((2 * layers) ** -0.5)
        layer.mlp.down_proj.weight.mul_((2 * layers) ** -0.5)


def _head(weight: Tensor, head: int, size: int) -> tuple[Tensor, Tensor]:
    """Returns the weights of a head for the first channel, as views: the two halves that the rotation pairs."""
    rows = weight[head * size : (head + 1) * size, 0]
    return rows[: size // 2], rows[size // 2 :]
