"""An oracle with a controlled error, to separate the error of a sampler from that of its model."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Query
from ..draws.streams import Purpose, derive, uniforms
from .oracle import Oracle


class PerturbedDenoiser:
    """Exact conditionals times noise: `p̂_i(v | x) ∝ p_i(v | x) · exp(scale · (2ξ - 1))`, ξ uniform.

    The noise is a fixed function of (seed, state, position, symbol). So this denoiser behaves like a network: its
    predictions have errors, and are inconsistent between states. States outside the oracle's support stay uniform.

    Args:
        oracle: The exact denoiser.
        scale: Largest change of a logit, in nats.
        seed: The seed of the noise.

    Raises:
        ValueError: If the scale is negative or not finite.
    """

    def __init__(self, oracle: Oracle, scale: float, seed: int = 0) -> None:
        if not 0 <= scale < float("inf"):
            raise ValueError(f"scale must be finite and >= 0, got {scale}")
        self.oracle, self.scale, self.seed = oracle, scale, seed

    @property
    def vocab_size(self) -> int:
        """Number of token ids, as for the oracle."""
        return self.oracle.vocab_size

    @property
    def mask_id(self) -> int:
        """The mask token, as for the oracle."""
        return self.oracle.mask_id

    def __call__(self, query: Query) -> Float[Tensor, "rows vocab"]:
        logits = self.oracle(query)
        row, position = query.where.nonzero().unbind(-1)
        # A hash of the tokens of each sequence, without padding.
        salt = derive(self.seed, "perturbed") >> 1
        state = torch.full((len(query.x),), salt, dtype=torch.int64)
        for column in range(query.x.shape[1]):
            mixed = (state ^ (query.x[:, column] + 1)) * 0x5851F42D4C957F2D + 0x14057B7EF767814F
            state = torch.where(query.valid[:, column], mixed ^ (mixed >> 29), state)
        symbols = torch.arange(logits.shape[1])
        cell = position.unsqueeze(-1) * logits.shape[1] + symbols
        noise = uniforms(state[row].unsqueeze(-1), cell, Purpose.TOKEN)
        alive = self.oracle.log_marginal(query.x).isfinite()[row].unsqueeze(-1)
        return torch.where(alive, logits + self.scale * (2 * noise - 1), logits)

    def log_marginal(self, x: Int[Tensor, "batch length"]) -> Float[Tensor, " batch"]:
        """Returns the log-probability under the oracle, which is the distribution of the data."""
        return self.oracle.log_marginal(x)
