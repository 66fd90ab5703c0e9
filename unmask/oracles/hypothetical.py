"""Makes states that were not sampled, to compute what a rule would do there, for exact laws."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..sampling.draw import Draw
from ..sampling.loop import Sampler
from ..sampling.state import Memory, State


def hypothetical(
    sampler: Sampler,
    x: Int[Tensor, "states length"],
    memory: Memory,
    block: Int[Tensor, "states length"],
    noise: Float[Tensor, "states length"] | None = None,
    temperature: float = 1.0,
) -> State:
    """Returns a state for each row of tokens, in which all masks are still to be filled.

    Args:
        sampler: The sampler, whose settings the states have.
        x: Tokens, without padding.
        memory: The rule's memory in each state.
        block: The index of the block of each position.
        noise: The uniforms of random orders; default: zeros, for rules whose order is not random.
        temperature: The temperature of the draw.
    """
    masked = x == sampler.denoiser.mask_id
    zeros = torch.zeros(x.shape, dtype=torch.float64)
    none = torch.zeros(len(x), dtype=torch.int64)
    tau = torch.full((len(x),), temperature, dtype=torch.float64)
    return State(
        slot=torch.arange(len(x)),
        x=x,
        valid=torch.ones_like(masked),
        pending=masked,
        editable=masked,
        block=block,
        visits=torch.zeros_like(x),
        streams=none,
        token_noise=zeros,
        order_noise=zeros if noise is None else noise,
        memory=memory,
        draw=Draw.of(tau, [sampler.settings]),
        nfe=none,
        evaluations=none,
        more=none.bool(),
        mask_id=sampler.denoiser.mask_id,
    )
