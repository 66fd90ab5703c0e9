"""Diffusion time. A clock tells the time to denoisers conditioned on it; a time grid also groups positions by time.

Given nothing but the mask, the times at which positions are first unmasked are independent: with one uniform `u_i` per
position, `1 - α(τ_i) = u_i`, and positions are unmasked in decreasing `τ_i`. One formalism then covers the family:

- the **first-hitting sampler** evaluates before every position;
- **ancestral sampling** on a grid of `T` steps is exactly this, with the positions whose times fall into one cell drawn
  together: two draws (whether, then what) instead of one over `V + 1` classes, and evaluations only for cells in which
  something happens, so NFE <= min(T, L);
- the **parallel** first-hitting sampler cuts the same order into `N` groups.

The order noise of a sequence holds `α(τ_i) = 1 - u_i`: its smallest value is hit first, which is the uniform order.
Every sequence of a batch has its own times.

References:
    Zheng et al. (2025), arXiv:2409.02908, section 3 and Proposition 4.1 (the first-hitting sampler).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..sampling.view import View
from ..schedule import Linear, Schedule
from .budget import One, Steps, no_memory
from .order import Uniform
from .predictor import Extrapolate
from .ranked import Rule


@runtime_checkable
class Clock(Protocol):
    """Tells the time of an evaluation, for denoisers that declare `wants_time`."""

    def time(
        self,
        noise: Float[Tensor, "batch length"],
        candidate: Bool[Tensor, "batch length"],
        masked: Float[Tensor, " batch"],
    ) -> Float[Tensor, " batch"]:
        """Returns the diffusion time of each row, in `[0, 1]`.

        Args:
            noise: The order noise, `α` at each position's hitting time.
            candidate: The masks of the open block; at least one a row. With blocks, hitting times run through every
                block anew.
            masked: The share of each whole sequence that is masked.
        """
        ...


def _next(noise: Tensor, candidate: Tensor) -> Float[Tensor, " batch"]:
    """`α` at the next hitting time."""
    return noise.masked_fill(~candidate, torch.inf).amin(-1)


@dataclass(frozen=True)
class HittingTimes:
    """The time at which the next position is hit: what a first-hitting sampler passes to its denoiser."""

    schedule: Schedule = field(default_factory=Linear)

    def time(self, noise: Tensor, candidate: Tensor, masked: Tensor) -> Float[Tensor, " batch"]:
        return self.schedule.inverse(_next(noise, candidate))


@dataclass(frozen=True)
class TimeGrid:
    """`steps` equal cells of time; an evaluation belongs to the cell of the next hit and gets the cell's start.

    Raises:
        ValueError: If `steps` is not a whole number >= 1.
    """

    steps: int
    schedule: Schedule = field(default_factory=Linear)

    def __post_init__(self) -> None:
        whole("steps", self.steps)

    def cell(self, alpha: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Numbers the cell `((k-1)/T, k/T]` in which `α` is reached, `k` from `T` (first) down to 1."""
        return torch.ceil(self.schedule.inverse(alpha) * self.steps).clamp(1, self.steps)

    def time(self, noise: Tensor, candidate: Tensor, masked: Tensor) -> Float[Tensor, " batch"]:
        return self.cell(_next(noise, candidate)) / self.steps


@dataclass(frozen=True)
class MaskedFraction:
    """The time at which the expected share of masked tokens is the actual one, for orders not driven by time."""

    schedule: Schedule = field(default_factory=Linear)

    def time(self, noise: Tensor, candidate: Tensor, masked: Tensor) -> Float[Tensor, " batch"]:
        return self.schedule.inverse(1 - masked)


@dataclass(frozen=True)
class Cell:
    """Every candidate whose hitting time lies in the same grid cell as the first. Belongs to the uniform order."""

    grid: TimeGrid
    needs_random_order: bool = field(default=True, init=False, repr=False)
    marginal_free: bool = field(default=True, init=False, repr=False)

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        cell = self.grid.cell(ranked.noise)
        return (cell == cell[:, :1]) & ranked.candidate, ranked.memory

    def group_sizes(self, masks: int) -> list[tuple[tuple[int, ...], float]]:
        """Returns every sequence of group sizes that may occur, with its probability; there are `2^(masks-1)`.

        In the cell from `t` down to `s` each of `n` masks is unmasked with probability `(α_s - α_t)/(1 - α_t)`,
        independently; empty cells leave no trace.
        """
        if masks > 12:
            raise ValueError(
                f"the exact law of a time grid follows 2^(masks-1) ways to group them; at most 12, got {masks}"
            )
        time = torch.arange(self.grid.steps, -1, -1, dtype=torch.float64) / self.grid.steps
        alpha = self.grid.schedule.alpha(time)
        alpha[0], alpha[-1] = 0.0, 1.0
        hit = ((alpha[1:] - alpha[:-1]) / (1 - alpha[:-1])).clamp(0, 1).tolist()
        found = []
        for cuts in range(1 << max(0, masks - 1)):
            sizes, run = [], 1
            for bit in range(masks - 1):
                if cuts >> bit & 1:
                    sizes.append(run)
                    run = 0
                run += 1
            sizes = [*sizes, run] if masks else []
            done = [1.0] + [0.0] * len(sizes)  # probability that so many groups are done
            for h in hit:
                left = masks
                after = [0.0] * len(done)
                for index, probability in enumerate(done):
                    after[index] += probability * (1 - h) ** left
                    if index < len(sizes):
                        k = sizes[index]
                        after[index + 1] += probability * math.comb(left, k) * h**k * (1 - h) ** (left - k)
                        left -= k
                done = after
            if done[-1] > 0:
                found.append((tuple(sizes), done[-1]))
        return found


def first_hitting(schedule: Schedule | None = None) -> Rule:
    """The first-hitting sampler: exact, one position per evaluation, in order of hitting times."""
    return Rule(Uniform(), One(), HittingTimes(schedule or Linear()))


def parallel_first_hitting(evaluations: int, schedule: Schedule | None = None) -> Rule:
    """The first-hitting order cut into this many groups of equal size; a group shares one evaluation."""
    return Rule(Uniform(), Steps(evaluations), HittingTimes(schedule or Linear()))


def extrapolated_first_hitting(evaluations: int, schedule: Schedule | None = None, floor: float = 0.1) -> Rule:
    """The parallel first-hitting sampler with the high-order predictor (see `Extrapolate`)."""
    times = schedule or Linear()
    return Rule(Uniform(), Steps(evaluations), HittingTimes(times), Extrapolate(times, floor))


def ancestral(steps: int, schedule: Schedule | None = None) -> Rule:
    """Ancestral sampling on a grid of time steps, as two draws and without evaluations in which nothing happens."""
    grid = TimeGrid(steps, schedule or Linear())
    return Rule(Uniform(), Cell(grid), grid)
