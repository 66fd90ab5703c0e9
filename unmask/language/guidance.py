"""Classifier-free guidance as a denoiser: away from what the model would say had it not seen the prompt."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..denoiser import Denoiser, Query


class Guided:
    """Logits `u + (1 + scale) (c - u)`, with `c` the model's and `u` those with the prompt masked.

    Each evaluation is of two states per sequence. Scale 0 is the model itself, at twice the cost.

    Args:
        denoiser: The model.
        scale: How far to go beyond the model, a number >= 0.
        prompt: The positions to mask in each sequence of the sampler's state.

    Raises:
        ValueError: If the scale is negative or not finite.

    References:
        Nie et al. (2025), arXiv:2410.18514, unsupervised classifier-free guidance; LLaDA's `cfg_scale` is this one.
    """

    def __init__(self, denoiser: Denoiser, scale: float, prompt: Bool[Tensor, "batch length"]) -> None:
        if isinstance(scale, bool) or not 0 <= scale < float("inf"):
            raise ValueError(f"guidance must be a finite number >= 0, got {scale!r}")
        self.denoiser, self.scale, self.prompt = denoiser, scale, prompt
        self.vocab_size, self.mask_id = denoiser.vocab_size, denoiser.mask_id
        self.max_length: int | None = getattr(denoiser, "max_length", None)

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        hidden = query.x.masked_fill(self.prompt[query.sequence], self.mask_id)

        def both(a: Tensor, b: Tensor) -> Tensor:
            return torch.cat([a, b])

        doubled = replace(
            query,
            x=both(query.x, hidden),
            where=both(query.where, query.where),
            valid=both(query.valid, query.valid),
            sequence=both(query.sequence, query.sequence),
            time=None if query.time is None else both(query.time, query.time),
            index=None,
            block=None if query.block is None else both(query.block, query.block),
            stepwise=None if query.stepwise is None else both(query.stepwise, query.stepwise),
        )
        given, without = self.denoiser(doubled).chunk(2)
        guided = without + (1 + self.scale) * (given - without)
        return torch.where(given == -torch.inf, given, guided)  # a token without mass stays so; else -inf + inf is NaN
