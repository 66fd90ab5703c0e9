"""Whether label smoothing hides what a model is certain of: the floor of its entropies."""

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
"""The share of the tokens that is masked: little enough for a model to be certain of many."""

QUANTILE = 0.01
"""The floor is below all but so many of the entropies: the least of all is a model's error more than its floor."""

LEAST = 0.1
"""Nats below which a floor takes nothing from a bound on entropies."""


@dataclass(frozen=True)
class Floor:
    """The floor of a model's entropies.

    Attributes:
        entropy: All but one in a hundred entropies are above it, in nats.
        smallest: The smallest entropy seen.
        positions: How many masked positions were looked at.
        classes: How many classes labels could have been smoothed over: the token ids.
        smoothing: The label smoothing under which a certain token has the entropy of the floor.
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
            f" on them saves little, and smoothing={self.smoothing:.1g} undoes it."
        )


@torch.no_grad()
def entropy_floor(
    denoiser: Denoiser, x: Tokens, *, maskable: Bool[Tensor, "batch length"] | None = None, seed: int = 0
) -> Floor:
    """Masks some tokens of complete sequences at random, and looks at how certain a model ever is.

    Args:
        denoiser: The model; it must not want the time.
        x: Complete sequences.
        maskable: False at tokens that are always given; default: all may be masked.
        seed: The seed of the masks.

    Raises:
        ValueError: If nothing may be masked.
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
