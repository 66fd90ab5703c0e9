"""ReMDM: ancestral sampling whose tokens may be masked again, at rates that keep the number of masks on schedule."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..draws.categorical import log_prob
from ..draws.streams import Purpose, uniforms
from ..sampling.conversation import Ask, Conversation, LawKind, Move, Situation
from ..sampling.state import Memory
from ..schedule import Linear, Schedule
from .budget import probability
from .revisit import Noted, running
from .speaker import Alone

STRATEGIES = ("cap", "rescale", "loop", "confidence")
"""How the rate of masking again follows from `rate`."""


@dataclass(frozen=True)
class Remasking(Alone):
    """On a grid of `steps` times, masks are written and tokens are masked again, each by a coin of its own (ReMDM).

    From time `t` to `s < t`, with `α` the share that has its token, a token is masked again with probability `σ`, and a
    mask is written with probability `(α_s - (1 - σ) α_t) / (1 - α_t)`, from its marginal. So the expected share of
    tokens is that of ancestral sampling, whatever `σ <= σ_max = min(1, (1 - α_s) / α_t)`; `rate = 0` is ancestral
    sampling. The strategy says what `σ` is:

    - `cap`: `min(rate, σ_max)`.
    - `rescale`: `rate · σ_max`.
    - `loop`: without masking again until a share `hold` is written, then `rate` while the share stays there, from time
      `on` to time `off`, then without again.
    - `confidence`: `σ_max` times the softmax of `-p` over the tokens that stand, `p` their probabilities when they were
      drawn; masks are written at the rate of ancestral sampling.

    What it does to the law: with exact conditionals and ever finer grids it keeps it. On a coarse grid those written
    together are drawn independently, and masking some again does not repair that at equal evaluations (see
    docs/frontier.md). It averages over orders, which helps a model whose conditionals contradict each other.

    It ends as the steps are counted: in the last all masks are written and nothing is masked again. An evaluation is
    made only in steps that write something. With blocks each has a clock of its own.

    Args:
        steps: Size of the grid.
        rate: The `η` of the paper, in `[0, 1]`.
        strategy: One of `STRATEGIES`.
        schedule: Share of tokens by time; the loop has its own.
        on: When the loop begins.
        off: When it ends.
        hold: The share of tokens it holds.

    Raises:
        ValueError: If a setting is out of range, or the loop would write more than all masks.

    References:
        Wang, Schiff, Sahoo and Kuleshov (2025), arXiv:2503.00307; all four were checked against the authors' code
        (`_ddpm_caching_update`; loop: rate 0.02, on 0.55, off 0.05, hold 0.9). It ends with an argmax at every mask
        that is left; here the last step writes them by a draw.
    """

    steps: int
    rate: float = 0.1
    strategy: str = "cap"
    schedule: Schedule = field(default_factory=Linear)
    on: float = 0.55
    off: float = 0.05
    hold: float = 0.9

    def __post_init__(self) -> None:
        whole("steps", self.steps)
        probability("rate", self.rate)
        if self.strategy not in STRATEGIES:
            raise ValueError(f"unknown strategy {self.strategy!r}; choose one of {', '.join(STRATEGIES)}")
        if not 0 <= self.off <= self.on < 1:
            raise ValueError(
                f"a loop runs from time on down to time off, 0 <= off <= on < 1, got {self.on} to {self.off}"
            )
        if not 0 <= self.hold < 1 or (self.strategy == "loop" and self.rate * self.hold > 1 - self.hold):
            raise ValueError(
                f"hold is a share below 1, and at most 1 / (1 + rate), so that what is masked again can be written;"
                f" got hold {self.hold} and rate {self.rate}"
            )

    @property
    def law(self) -> LawKind:
        """Found by following its steps, where its coins depend on nothing but the time."""
        return LawKind.NONE if self.strategy == "confidence" else LawKind.COINS

    @property
    def no_law(self) -> str:
        """Why the exact law is not computed; empty if it is."""
        if self.strategy != "confidence":
            return ""
        return "its coins depend on how probable each token was when it was drawn, so there are as many states as paths"

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        """How many steps of its block's clock are done, which block that is, and how probable tokens were."""
        numbers = torch.zeros(len(masked), 2, dtype=torch.float64, device=masked.device)
        return Noted(numbers) if self.strategy == "confidence" else numbers

    def shares(self, done: int) -> tuple[float, float, float]:
        """The share of tokens before and after a step, and the rate of masking again in it."""
        t, s = 1 - done / self.steps, 1 - (done + 1) / self.steps
        if self.strategy == "loop":
            before, after = self._loop(t), self._loop(s)
            return before, after, self.rate if self.off < t <= self.on and done + 1 < self.steps else 0.0
        before, after = (float(self.schedule.alpha(torch.tensor(time, dtype=torch.float64))) for time in (t, s))
        largest = min(1.0, (1 - after) / before) if before > 0 else 1.0
        sigma = {"cap": min(self.rate, largest), "rescale": self.rate * largest}.get(self.strategy, largest)
        return before, after, sigma

    def _loop(self, t: float) -> float:
        """The share of tokens of a loop: up to `hold`, there, and up to 1."""
        if t > self.on:
            return (1 - t) * self.hold / (1 - self.on)
        return self.hold if t > self.off else 1 - t * (1 - self.hold) / self.off if self.off else 1.0

    def rates(self, done: int) -> tuple[float, float]:
        """With what probability a mask is written in a step, and a token masked again, but for `confidence`."""
        before, after, sigma = self.shares(done)
        if done + 1 >= self.steps:
            return 1.0, 0.0
        own = 0.0 if self.strategy == "confidence" else sigma
        written = (after - (1 - own) * before) / (1 - before) if before < 1 else 1.0
        return min(1.0, max(0.0, written)), sigma

    def coins(
        self, seen: Situation, done: Float[Tensor, " rows"], tokens: Bool[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows 1"], Float[Tensor, "rows length"]]:
        """With what probability each mask is written, and each token masked again."""
        table = torch.tensor([self.rates(step) for step in range(self.steps)], dtype=torch.float64, device=done.device)
        written, again = table[done.long().clamp(max=self.steps - 1)].unsqueeze(-1).unbind(1)
        if self.strategy != "confidence":
            return written, again.expand(tokens.shape)
        assert isinstance(seen.memory, Noted)
        weight = (-seen.memory.notes(tokens)).masked_fill(~tokens, -torch.inf)
        weight = weight.softmax(-1).nan_to_num(0.0)  # no token stands: no weight
        return written, again * weight

    def turn(self, seen: Situation) -> Conversation:
        """Makes one step of the clock; asks about what it writes, or nothing."""
        memory = seen.memory
        numbers = memory.numbers if isinstance(memory, Noted) else seen.numbers
        done, block, here = running(seen, numbers, self.steps)
        masks, tokens = seen.pending & here, seen.editable & here & ~seen.masked
        written, again = self.coins(seen, done, tokens)
        position = torch.arange(seen.x.shape[1], device=seen.x.device)
        coin = uniforms(seen.streams.unsqueeze(-1), position, Purpose.COIN, done.long().unsqueeze(-1))
        chosen, erase = masks & (coin < written), tokens & (coin < again)
        numbers = torch.stack([done + 1, block.double()], -1)
        row, drawn, answer = chosen.any(-1).nonzero().squeeze(-1), None, None
        note = memory.notes(seen.token_noise) if isinstance(memory, Noted) else None
        if len(row):
            time = (1 - done / self.steps)[row] if seen.wants_time else None
            answer = yield Ask(chosen[row], x=seen.x[row], row=row, time=time)
            if note is not None:
                drawn = seen.draw.tokens(answer.logits, None, answer.row, seen.token_noise[chosen], answer.stats)
                log_p = log_prob(answer.logits, answer.stats.log_norm, drawn)
                note = note.masked_scatter(chosen, log_p.double().exp())
        rows = None if answer is None else torch.arange(len(answer.index), device=seen.x.device)
        return Move(
            chosen,
            numbers if note is None else Noted(numbers, note),
            answer,
            rows=rows,
            tokens=drawn,
            erase=erase,
            more=(done + 1 < self.steps) | (seen.pending & ~chosen).any(-1),
        )
