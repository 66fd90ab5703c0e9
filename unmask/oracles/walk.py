"""Every completion of a sequence followed at once: what a rule does on the way to it, and with which probability.

A rule that is a function of state and memory reaches every partial state along one path only, so the probability of a
completion is read off by giving the positions that the rule chooses that completion's own tokens. See `exact_law`.
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
    """Returns the numbers in a rule's memory: its future depends only on them and on the evaluations it compares."""
    numbers = memory if isinstance(memory, Tensor) else getattr(memory, "numbers", None)
    assert isinstance(numbers, Tensor)
    return numbers


def _with_numbers(memory: Any, numbers: Tensor) -> Memory:
    """The memory of a rule with history, with other numbers."""
    return replace(memory, numbers=numbers)


class Walk:
    """Follows every completion along every given order at once."""

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
        """Returns `log q` for each (order, point) and the sums over orders of the five expectations."""
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
        before: list[Tensor] = []  # where each walker stood at the evaluations its rule remembers, oldest first
        while True:
            live = (x == self.mask).any(-1)
            if not bool(live.any()):
                break
            # Many points share a state; each is evaluated once.
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
            mass[inverse] = log_q[live].exp()  # every point of a state carries the state's own mass
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
        """What the rule remembers: repeats the evaluations that one with history compares with."""
        if not self.history:
            return numbers
        memory = _with_numbers(self.sampler.rule.start(torch.zeros(len(numbers), dtype=torch.int64)), numbers)
        for x in trail:
            memory = _with_numbers(self.sampler.move(self._state(x, memory, noise)).memory, numbers)
        return memory

    def _draw_log_prob(self, logits: Tensor) -> Tensor:
        """Log-probabilities a draw at this temperature, top-k and top-p gives each token, in float64."""
        allowed = forbid(logits, self.sampler.settings.forbidden)
        top_k, top_p = self.sampler.settings.top_k, self.sampler.settings.top_p
        return draw_log_prob(allowed, temperature=self.temperature, top_k=top_k, top_p=top_p)

    def _dependence(self, x: Tensor, after: Tensor, chosen: Tensor, tokens: Tensor, p: Tensor) -> Tensor:
        """This step's `E_data log p(x_U) - Σ log p_i(x_i)` under the oracle's own conditionals."""
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
        """Adds the mass that leaves the support, by (order, masks left, memory): its future depends on nothing else."""
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
        """Expected further evaluations off the support, where every marginal is uniform."""
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
