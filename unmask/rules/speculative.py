"""One at a time, with the next positions drafted: what lets a single evaluation decide several of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sampling.view import View
from .budget import leading


@dataclass(frozen=True)
class Speculative:
    """One position at a time, like `One()`, and a draft of the `draft` positions that come next.

    The tokens are those of `One()` with the same seed, whatever the denoiser; the evaluations made one after the other
    are at most as many (see `unmask.verification`). What is paid for it: each of them is a batch of up to `draft + 1`
    states. The memory is the draft: the positions that followed the admitted one in the ranking, -1 where there are
    none, then as many tokens, which the loop fills in.

    Args:
        draft: Positions drafted ahead.
        check_order: Whether a drafted position only stands if the order, in the state it is taken in, names it too. Off
            is a control: positions then depend on which drafts came true. Every token is still drawn in its own state,
            so exact conditionals give the data's law all the same; but it is no longer the law of `One()`, and with an
            inconsistent denoiser it can be anywhere.

    Raises:
        ValueError: If `draft` is not an integer >= 1.
    """

    draft: int
    check_order: bool = True
    marginal_free: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.draft, bool) or not isinstance(self.draft, int) or self.draft < 1:
            raise ValueError(f"draft must be an integer >= 1, got {self.draft!r}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return torch.full((len(masked), 2 * self.draft), -1.0, dtype=torch.float64, device=masked.device)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        following = ranked.position.masked_fill(~ranked.candidate, -1)[:, 1 : 1 + self.draft]
        memory = torch.full_like(ranked.memory, -1.0)
        memory[:, : following.shape[1]] = following.to(memory.dtype)
        first = torch.ones_like(ranked.candidate[:, 0], dtype=torch.int64)
        return leading(first, ranked.candidate) & ranked.candidate, memory
