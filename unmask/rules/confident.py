"""Budgets that look at confidence alone, `max p`: how sure the model is of the most probable token of each position."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..sampling.view import View
from .budget import leading, no_memory, probability


@dataclass(frozen=True)
class Frechet:
    """The longest prefix whose most probable tokens are surely the most probable together, by a margin (Fast-dLLM++).

    With confidences `c₁ >= … >= c_n`, the probability that all `n` most probable tokens are right is at least
    `Σ c_j - (n - 1)` (Fréchet), and that of any other choice is at most `1 - c_n`. The prefix is the longest in which
    the first exceeds the second by more than `delta`; in doubts `d = 1 - c`, which is how it is computed,
    `Σ d_j + d_n < 1 - delta`. With equal confidences it is `Factor(1 - delta)`, else it admits no fewer. It always
    admits the first.

    The promise is about the argmax of the set, so it is one for draws at temperature 0. At temperature 1 it says
    nothing of the dependence error.

    Args:
        delta: The margin. The authors use 0.25, and 0.02 to 0.3 by task.

    Raises:
        ValueError: If `delta` is not in `[0, 1]`.

    References:
        Kasa, Dai, Negi and Li (2026), arXiv:2606.02955; checked against the authors' code
        (`get_transfer_index_frechet_profile`), which takes the same prefix.
    """

    delta: float
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 1:
            raise ValueError(f"delta is a margin between probabilities in [0, 1], got {self.delta}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        doubt = ranked.doubt.double()
        fits = ranked.candidate & (doubt.cumsum(-1) + doubt < 1 - self.delta)
        count = fits.cumprod(-1).sum(-1).clamp(min=1)
        return leading(count, ranked.candidate) & ranked.candidate, ranked.memory


@dataclass(frozen=True)
class Hierarchy:
    """The best of each run of masks if its `max p > low`, every position with `max p > high`, and always the first.

    A run is a stretch of masked positions of the open block with no token between them. Every step splits the runs that
    are not all uncertain, so a text is written in a number of steps like the logarithm of its length where the model is
    moderately sure, and positions drawn together lie in different runs, with tokens between them.

    Args:
        low: The confidence that the best of a run must exceed.
        high: The confidence above which every position is taken.

    Raises:
        ValueError: If one is not in `[0, 1]`, or low is above high.

    References:
        dInfer (2025), arXiv:2510.08666, hierarchical decoding; checked against its code (`HierarchyDecoder`, low 0.4).
        There all of a run that tie for the best are taken; here the one that the order ranks first.
    """

    low: float = 0.4
    high: float = 0.9
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        probability("low", self.low)
        probability("high", self.high)
        if self.low > self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        doubt, width = ranked.doubt.double(), ranked.candidate.shape[1]
        place = ranked.position.argsort(dim=-1)  # the columns from left to right
        masked = ranked.candidate.gather(1, place)
        begins = masked & ~torch.nn.functional.pad(masked[:, :-1], (1, 0))
        run = torch.zeros_like(place).scatter(1, place, begins.cumsum(-1))  # of each column; 0 before the first run
        rank = torch.arange(width, device=doubt.device).expand_as(run).masked_fill(~ranked.candidate, width)
        best = torch.full((len(run), width + 1), width, device=run.device).scatter_reduce(1, run, rank, "amin")
        leads = ranked.candidate & (rank == best.gather(1, run))
        taken = (leads & (doubt < 1 - self.low)) | (doubt < 1 - self.high)
        taken[:, :1] = True
        return taken & ranked.candidate, ranked.memory
