"""Follows a rule on the paths to all completions of a sequence at once, and computes their probabilities.

A rule that is a function of state and memory reaches every partial state along only one path. So the probability of a
completion is found by giving the positions that the rule chooses the tokens of the completion. See `exact_law`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..denoiser import FullDenoiser, Query
from ..draws.categorical import draw_log_prob, forbid, log_prob, marginals
from ..rules.history import EVERY
from ..sampling.blocks import windows
from ..sampling.loop import Sampler
from ..sampling.state import Memory, State
from ..sampling.view import dependence_bound, spread
from .hypothetical import hypothetical
from .oracle import Oracle


def numbers_of(memory: Memory) -> Float[Tensor, "states memory"]:
    """Returns the numbers in a rule's memory; the rest of it holds earlier evaluations that the rule compares with."""
    numbers = memory if isinstance(memory, Tensor) else getattr(memory, "numbers", None)
    assert isinstance(numbers, Tensor)
    return numbers


def _with_numbers(memory: Any, numbers: Tensor) -> Memory:
    """Returns the memory of a rule with history, with other numbers."""
    return replace(memory, numbers=numbers)


class Walk:
    """Follows all completions in all given orders at once.

    Args:
        sampler: Denoiser, rule and settings of the draw.
        oracle: The oracle with the distribution of the data, if it is known.
        x: The sequence with masks.
        points: The completions.
        temperature: The temperature of the draw.
        blocks: Window length for semi-autoregressive sampling.

    Attributes:
        divergence: The sum over the orders followed so far of `E_data [log p - log q]`, in nats.
    """

    def __init__(
        self, sampler: Sampler, oracle: Oracle | None, x: Tensor, points: Tensor, temperature: float, blocks: int | None
    ) -> None:
        self.sampler, self.oracle, self.x, self.points = sampler, oracle, x, points
        self.history: int = getattr(sampler.rule, "history", 0)
        self.temperature, self.mask = temperature, sampler.denoiser.mask_id
        pending = (x == self.mask).unsqueeze(0)
        self.block = torch.zeros_like(pending, dtype=torch.int64) if blocks is None else windows(pending, blocks)
        self.divergence = 0.0
        uniform = torch.zeros(sampler.denoiser.vocab_size, dtype=torch.float64)
        self._dead = Sampler(
            FullDenoiser(lambda t: uniform.expand(*t.shape, -1), len(uniform), self.mask), sampler.rule
        )

    def follow(self, noise: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor]:
        """Follows all completions in some orders.

        Args:
            noise: The noise of the orders, one row per order.
            log_p: The log-probabilities of the points under the data.

        Returns:
            `log q` of each order and point, and sums over the orders of five expectations: bound, dependence,
            evaluations under the sampler, evaluations under the data, and the probability off the support.
        """
        orders, points = len(noise), len(self.points)
        order = torch.arange(orders).repeat_interleave(points)
        target = self.points.repeat(orders, 1)
        p = log_p.exp().repeat(orders)
        x = self.x.expand(len(target), -1)
        start = (self.x == self.mask).sum().reshape(1)
        memory = numbers_of(self.sampler.rule.start(start)).expand(len(target), -1)
        log_q = torch.zeros(len(target), dtype=torch.float64)
        totals = torch.zeros(5, dtype=torch.float64)
        dead: dict[tuple[float, ...], float] = {}
        before: list[Tensor] = []  # the states at the evaluations that the rule remembers, the oldest first
        while True:
            live = (x == self.mask).any(-1)
            if not bool(live.any()):
                break
            # Many points share a state; each state is evaluated once.
            key = torch.cat([order.unsqueeze(-1).double(), x.double(), *before, memory], -1)[live]
            states, inverse = torch.unique(key, dim=0, return_inverse=True)
            of_state, length = states[:, 0].long(), x.shape[1]
            sx, *trail = states[:, 1 : 1 + length * (1 + len(before))].long().split(length, -1)
            sm = states[:, 1 + length * (1 + len(before)) :]
            move = self.sampler.move(self._state(sx, self._memory(trail, noise[of_state], sm), noise[of_state]))
            assert move.answer is not None
            table = torch.zeros(*sx.shape, self.sampler.denoiser.vocab_size, dtype=torch.float64)
            where = move.answer.ask.where
            if move.logits is None:
                table[where] = self._draw_log_prob(move.answer.logits)
            else:
                table[move.chosen] = self._draw_log_prob(move.logits)
            bounds = dependence_bound(move.chosen, spread(move.answer.stats.entropy, where)[move.chosen])
            left = numbers_of(move.memory)
            chosen, tokens = move.chosen[inverse], target[live]
            gain = table[inverse].gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
            gain = torch.where(chosen, gain, 0.0).sum(-1)
            mass = torch.zeros(len(sx), dtype=torch.float64)
            mass[inverse] = log_q[live].exp()  # all points that share a state have the probability of the state
            after = torch.where(chosen, tokens, x[live])
            totals += torch.stack(
                [
                    (p[live] * bounds[inverse]).sum(),
                    self._dependence(x[live], after, chosen, tokens, p[live]),
                    mass.sum(),
                    p[live].sum(),
                    torch.zeros((), dtype=torch.float64),
                ]
            )
            log_q = log_q.index_put((live.nonzero().squeeze(-1),), log_q[live] + gain)
            if self.oracle is not None:
                self._leave(sx, move.chosen, left, of_state, inverse, after, gain, mass, dead)
            if self.history:
                before = [*before, x.double()][-self.history :]
            x = x.masked_scatter(live.unsqueeze(-1), after)
            memory = memory.masked_scatter(live.unsqueeze(-1), left[inverse])
        self.divergence += float((p * (log_p.repeat(orders) - log_q)).sum())
        totals[4] = sum(dead.values())
        unknown = self.history >= EVERY and float(totals[4]) > 1e-12
        totals[2] += torch.nan if unknown else self._dead_evaluations(dead, noise)
        return log_q.reshape(orders, points), totals

    def _state(self, x: Tensor, memory: Memory, noise: Tensor) -> State:
        return hypothetical(self.sampler, x, memory, self.block.expand(len(x), -1), noise, self.temperature)

    def _memory(self, trail: list[Tensor], noise: Tensor, numbers: Tensor) -> Memory:
        """Returns the rule's memory in a state; for a rule with history, the evaluations it remembers are repeated."""
        if not self.history:
            return numbers
        memory = _with_numbers(self.sampler.rule.start(torch.zeros(len(numbers), dtype=torch.int64)), numbers)
        for x in trail:
            memory = _with_numbers(self.sampler.move(self._state(x, memory, noise)).memory, numbers)
        return memory

    def _draw_log_prob(self, logits: Tensor) -> Tensor:
        """Returns the log-probability of drawing each token with the settings of the draw, in float64."""
        allowed = forbid(logits, self.sampler.settings.forbidden)
        top_k, top_p = self.sampler.settings.top_k, self.sampler.settings.top_p
        return draw_log_prob(allowed, temperature=self.temperature, top_k=top_k, top_p=top_p)

    def _dependence(self, x: Tensor, after: Tensor, chosen: Tensor, tokens: Tensor, p: Tensor) -> Tensor:
        """Returns `E_data [log p(x_U) - Σ log p_i(x_i)]` of this step under the oracle's own conditionals."""
        if self.oracle is None:
            return torch.tensor(float("nan"), dtype=torch.float64)
        query = Query(x, chosen, torch.ones_like(chosen), torch.arange(len(x)))
        logits = self.oracle(query)
        stats = marginals(logits)
        single = torch.zeros(chosen.shape, dtype=torch.float64)
        single[chosen] = log_prob(logits, stats.log_norm, tokens[chosen])
        joint = self.oracle.log_marginal(after) - self.oracle.log_marginal(x)
        return (p * (joint - single.sum(-1))).sum()

    def _leave(
        self,
        states: Tensor,
        chosen: Tensor,
        memory: Tensor,
        order: Tensor,
        inverse: Tensor,
        after: Tensor,
        gain: Tensor,
        mass: Tensor,
        dead: dict[tuple[float, ...], float],
    ) -> None:
        """Adds the probability of leaving the support to `dead`, by order, remaining masks and memory.

        The number of further evaluations depends only on these.
        """
        children, first = torch.unique(torch.cat([inverse.unsqueeze(-1), after], -1), dim=0, return_inverse=True)
        stay = torch.zeros(len(states), dtype=torch.float64)
        of_child = torch.zeros(len(children), dtype=torch.float64)
        of_child[first] = gain.exp()
        stay.index_add_(0, children[:, 0], of_child)
        lost = mass * (1 - stay).clamp(min=0)
        for row in (lost > 1e-15).nonzero().squeeze(-1).tolist():
            left = (states[row] == self.mask) & ~chosen[row]
            key = (float(order[row]), *left.double().tolist(), *memory[row].tolist())
            dead[key] = dead.get(key, 0.0) + float(lost[row])

    def _dead_evaluations(self, dead: dict[tuple[float, ...], float], noise: Tensor) -> float:
        """Returns the expected number of further evaluations off the support, where all marginals are uniform."""
        length, total = self.x.shape[0], 0.0
        if not dead:
            return total
        rows = torch.tensor(list(dead.keys()), dtype=torch.float64)
        mass = torch.tensor(list(dead.values()), dtype=torch.float64)
        order, left, memory = rows[:, 0].long(), rows[:, 1 : 1 + length].bool(), rows[:, 1 + length :]
        while bool(left.any()):
            going = left.any(-1)
            mass, order, left, memory = mass[going], order[going], left[going], memory[going]
            total += float(mass.sum())
            x = torch.where(left, self.mask, 0)
            remembered = self._memory([], noise[order], memory)
            block = self.block.expand(len(left), -1)
            move = self._dead.move(hypothetical(self._dead, x, remembered, block, noise[order]))
            left, memory = left & ~move.chosen, numbers_of(move.memory)
        return total
