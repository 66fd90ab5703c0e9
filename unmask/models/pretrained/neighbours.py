"""Attention that looks at neighbours before it has learned anything.

A small network on short exact texts learns to copy and to add only once its attention has found the places next to a
position, and from random weights the search for them is most of its training. With rotary positions it can start there:
one channel of every embedding is a constant, and the queries and keys of a head read from it vectors whose product,
once rotated, is

    a sum_f cos(theta_f (distance - offset)),

largest at one offset. What the head reads from the other channels is random as ever.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

OFFSETS: tuple[tuple[int | None, ...], ...] = ((-1, 1, -2, None), (-1, 1, 2, None), (-1, 1, -3, None))
"""By layer, the offsets of its heads in turn (`None`: nowhere in particular); later layers have none."""

_CONSTANT = 0.5
"""The constant channel, as a share of the length of an embedding."""
_SHARPNESS = 1.5
"""`a` above, in nats."""
_FREQUENCIES = 6
"""How many of the highest frequencies are used; the others hardly tell neighbours apart."""


@torch.no_grad()
def look_at_neighbours(model: LlamaForCausalLM) -> None:
    """Starts a Llama's attention at neighbours (see the module), and its other matrices at a variance of 1/inputs.

    Weights are drawn from PyTorch's generator. The outputs of the layers are `1/sqrt(2 layers)` of that.
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
    constant = _CONSTANT * math.sqrt(width / (1 + _CONSTANT**2))  # the channel after the norm of the first layer
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
    """What a head reads from the first channel: the halves of the pairs that the rotation turns."""
    rows = weight[head * size : (head + 1) * size, 0]
    return rows[: size // 2], rows[size // 2 :]
