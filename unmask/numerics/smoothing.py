"""Detects whether a model was trained with label smoothing, by the floor of its entropies."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from ..denoiser import Denoiser, Query
from ..draws.categorical import marginals
from ..draws.smoothing import smoothing_of
from ..draws.streams import Purpose, uniforms
from ..sampling.batch import Tokens, as_batch, stream_ids

SHARE = 0.15
"""The share of the tokens that is masked; it is small, so that a model is certain of many of them."""

QUANTILE = 0.01
"""The floor is this quantile of the entropies; the smallest entropy of all may only be an error of the model."""

LEAST = 0.1
"""A floor below so many nats does not matter for a bound on entropies."""


@dataclass(frozen=True)
class Floor:
    """The floor of a model's entropies.

    Attributes:
        entropy: The floor, in nats: 99 % of the entropies are above it.
        smallest: The smallest entropy observed, in nats.
        positions: The number of masked positions that were evaluated.
        classes: The number of classes over which labels could have been smoothed: the token ids.
        smoothing: The ε of the label smoothing with which the prediction of a certain token has the entropy `entropy`.
    """

    entropy: float
    smallest: float
    positions: int
    classes: int
    smoothing: float

    def __str__(self) -> str:
        seen = f"{self.entropy:.3g} nats (the smallest of {self.positions} is {self.smallest:.3g})"
        if self.entropy < LEAST:
            return f"99 % of the entropies are above {seen}: no label smoothing hides what the model is certain of."
        return (
            f"99 % of the entropies are above {seen}, the entropy of a label smoothing of {self.smoothing:.2g} over"
            f" {self.classes} classes: if the model was trained with it, entropies hide what it is certain of, a bound"
            f" on them saves little, and smoothing={self.smoothing:.1g} undoes the smoothing."
        )


@torch.no_grad()
def entropy_floor(
    denoiser: Denoiser, x: Tokens, *, maskable: Bool[Tensor, "batch length"] | None = None, seed: int = 0
) -> Floor:
    """Masks some tokens of complete sequences at random, and measures the entropies of the model's predictions.

    Args:
        denoiser: The model; it must not have timestep conditioning.
        x: Complete sequences.
        maskable: False at tokens that are never masked; default: all may be masked.
        seed: The seed of the masks.

    Raises:
        ValueError: If no token is masked.
        LogitsError: If the denoiser returns NaN, `+inf` or a row without mass.
    """
    x, valid = as_batch(x, denoiser)
    free = valid if maskable is None else maskable & valid
    ids = stream_ids(seed, None, len(x), x.device)
    noise = uniforms(ids.unsqueeze(-1), torch.arange(x.shape[1], device=x.device), Purpose.MASK)
    masked = free & (noise < SHARE)
    if not bool(masked.any()):
        raise ValueError("no token of these sequences is masked: give more of them, or longer ones")
    row = torch.arange(len(x), device=x.device)
    logits = denoiser(Query(torch.where(masked, denoiser.mask_id, x), masked, valid, row))
    entropy = marginals(logits, [denoiser.mask_id]).entropy.double()
    left_out = int((logits[0] == -torch.inf).sum())
    floor = float(entropy.quantile(QUANTILE))
    classes = denoiser.vocab_size
    smoothing = smoothing_of(floor, classes, max(1, left_out))
    return Floor(floor, float(entropy.min()), len(entropy), classes, smoothing)
