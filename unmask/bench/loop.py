"""Time outside the denoiser, for random Transformers of several sizes on a CPU."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from ..denoiser import Query
from ..rules.named import named_rule
from ..sampling.loop import Sampler

SIZES = {"10M": (384, 6), "100M": (768, 14), "1B": (2048, 20)}
"""Width and layers of each: 12 · width² · layers parameters, without embedding and head."""


class RandomTransformer(nn.Module):
    """An encoder with random weights that is a denoiser: logits of the candidates only, and a clock around it."""

    def __init__(self, width: int, layers: int, vocab: int) -> None:
        super().__init__()
        self.vocab_size, self.mask_id, self.seconds, self.calls = vocab, vocab - 1, 0.0, 0
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.embedding, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False)
        self.parameters_inside = sum(p.numel() for p in self.body.parameters())

    @torch.inference_mode()
    def forward(self, query: Query) -> Tensor:
        began = time.perf_counter()
        hidden = self.body(self.embedding(query.x)).flatten(0, 1)[query.rows]
        logits = self.head(hidden)
        self.seconds += time.perf_counter() - began
        self.calls += 1
        return logits


def bench(names: tuple[str, ...] = ("10M", "100M"), batch: int = 1, length: int = 64, vocab: int = 50_368) -> dict:
    """Generates with random models and says what share of the time was not the model's.

    Args:
        names: Sizes (see `SIZES`).
        batch: Sequences.
        length: Tokens, half of them masked.
        vocab: Symbols.

    Raises:
        ValueError: If there is no such size.
    """
    rows: list[dict[str, Any]] = []
    for name in names:
        if name not in SIZES:
            raise ValueError(f"unknown size {name!r}: {', '.join(SIZES)}")
        torch.manual_seed(0)
        model = RandomTransformer(*SIZES[name], vocab).eval()
        x = torch.randint(vocab - 1, (batch, length))
        x[:, length // 2 :] = model.mask_id
        sampler = Sampler(model, named_rule("entropy-bound", gamma=40.0).rule)  # some five positions of ten nats
        sampler.run(sampler.start(x, seed=0), max_steps=1)
        model.seconds, model.calls = 0.0, 0
        state = sampler.start(x, seed=0)
        began = time.perf_counter()
        sampler.run(state, max_steps=8)
        wall = time.perf_counter() - began
        width, layers = SIZES[name]
        shape = {"width": width, "layers": layers, "batch": batch, "length": length, "vocab": vocab}
        outside = wall - model.seconds
        rows.append(
            {
                "model": name,
                "parameters": model.parameters_inside,
                **shape,
                "evaluations": model.calls,
                "denoiser_ms": model.seconds / model.calls * 1e3,
                "outside_ms": outside / model.calls * 1e3,
                "share_outside": outside / wall,
            }
        )
    return {"models": rows}
