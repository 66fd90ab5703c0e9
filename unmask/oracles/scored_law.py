"""The exact law of rules with new noise in every step, by following the probabilities of all partial sequences.

A final sequence does not determine the path to it, but the sampler is a Markov chain on partial sequences, because
every step has its own noise. If the order has random scores, the first `k` positions are a draw without replacement
with weights `exp(score / scale)` (Plackett-Luce). If the scores are functions of the marginals, this gives the
probability of each set of positions, whose tokens are then drawn from their marginals. If the scores are those of drawn
tokens, or drafts are tested (`LawKind.DRAFTS`), a step sums over the joint draws of all candidates, `Π p_i(x_i)`, and
then over the drawn tokens that were not fixed.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Query
from ..draws.categorical import Marginals, draw_log_prob, forbid, marginals
from ..rules.ranked import Rule
from ..rules.scored import Scored, ScoredOrder
from ..sampling.blocks import open_block, windows
from ..sampling.conversation import Ask, Conversation, LawKind, Situation
from ..sampling.loop import Sampler
from ..sampling.state import Memory
from ..sampling.view import View, spread
from .hypothetical import hypothetical
from .oracle import Oracle

LIMIT = 1 << 26
"""The largest value of `(3 · symbols)^masks`, which is about the number of terms in the sums."""

_RANKED = 8
"""The largest number of masks whose orders are enumerated, for budgets that use the marginals."""

_ROWS = 1 << 17
"""The largest number of joint draws or orders that are processed at once."""


@dataclass
class Outcome:
    """The final distribution of a sampler, and its cost.

    Attributes:
        log_q: Log-probability of each requested point.
        off_support: The probability of all other sequences.
        evaluations: The expected number of evaluations.
        evaluations_data: The same if the tokens are those of the data. Without an oracle, or if drawn tokens influence
            the choice of positions, it is NaN (unless the budget ignores the marginals), as are the next three.
        bound: `E_data Σ_steps (ΣH - max H)`, in nats.
        dependence: `E_data Σ_steps KL(p_U || Π p_i)` of the oracle's conditionals, in nats.
        divergence: `E_data Σ_steps [log p(x_U) - Σ log q_i(x_i)]`, in nats, with `q_i` the distribution from which
            tokens are drawn. It is an upper bound on `KL(data || sampler)`, which averages over the noise inside the
            logarithm.
        own_marginals: Whether tokens are drawn from the marginals themselves, and not from drafts or from powers of the
            marginals.
    """

    log_q: Float[Tensor, " points"]
    off_support: float = 0.0
    evaluations: float = 0.0
    evaluations_data: float = 0.0
    bound: float = 0.0
    dependence: float = 0.0
    divergence: float = 0.0
    own_marginals: bool = True


def plackett_luce(
    log_weight: Float[Tensor, "rows items"], k: int
) -> tuple[Bool[Tensor, "sets items"], Float[Tensor, "rows sets"]]:
    """Computes the probability of each set of `k` items that are drawn one after the other without replacement.

    The sum over the orders of a set is computed recursively: `P(S) = Σ_{i∈S} P(S∖i) w_i / Σ_{j∉S∖i} w_j`.

    Args:
        log_weight: Logarithms of the weights of the items, finite.
        k: Size of the sets, at most the number of items.

    Returns:
        The sets, in lexicographic order, and their probabilities in each row.
    """
    items = log_weight.shape[1]
    known: dict[tuple[int, ...], Tensor] = {(): torch.zeros(len(log_weight), dtype=torch.float64)}
    for size in range(1, k + 1):
        # log P(S) - log Σ_{j∉S} w_j for the sets with one item fewer
        rest = {
            members: log_p - log_weight[:, [j for j in range(items) if j not in members]].logsumexp(-1)
            for members, log_p in known.items()
        }
        known = {
            members: torch.stack(
                [rest[members[:at] + members[at + 1 :]] + log_weight[:, i] for at, i in enumerate(members)]
            ).logsumexp(0)
            for members in itertools.combinations(range(items), size)
        }
    sets = torch.zeros(len(known), items, dtype=torch.bool)
    for row, members in enumerate(known):
        sets[row, list(members)] = True
    return sets, torch.stack(list(known.values()), -1).exp()


def scored_law(
    sampler: Sampler, oracle: Oracle | None, x: Tensor, points: Tensor, temperature: float, blocks: int | None
) -> Outcome:
    """Computes the law of a sampler by following the probability of every partial sequence from step to step.

    Args:
        sampler: A denoiser and a rule whose order is a `ScoredOrder` or whose budget tests drafts, with the settings of
            the draw.
        oracle: The oracle with the distribution of the data, if it is known.
        x: One sequence with masks.
        points: The completions whose probability is requested.
        temperature: The temperature of the draw.
        blocks: Window length for semi-autoregressive sampling.

    Raises:
        ValueError: If there are too many joint draws or orders, the order depends on draws and noise but the budget on
            the marginals, or the budget tests drafts and the order is random.
    """
    return _Chain(sampler, oracle, x, temperature, blocks).run(points)


@dataclass(frozen=True)
class _States:
    """States with equally many candidates.

    Attributes:
        x: The tokens.
        candidate: True at the positions that may be unmasked.
        memory: The rule's memory.
        own: The probability of reaching the state under the sampler's law.
        data: The same if the tokens are those of the data.
    """

    x: Int[Tensor, "states length"]
    candidate: Bool[Tensor, "states length"]
    memory: Float[Tensor, "states memory"]
    own: Float[Tensor, " states"]
    data: Float[Tensor, " states"]

    def __getitem__(self, rows: Tensor) -> _States:
        return _States(self.x[rows], self.candidate[rows], self.memory[rows], self.own[rows], self.data[rows])

    @property
    def positions(self) -> Int[Tensor, "states candidates"]:
        """The positions of the candidates."""
        return self.candidate.nonzero()[:, 1].reshape(len(self.x), -1)

    def query(self) -> Query:
        return Query(self.x, self.candidate, torch.ones_like(self.candidate), torch.arange(len(self.x)))


@dataclass(frozen=True)
class _Drafted:
    """A rule that tests drafts, with the given drafts at all candidates."""

    rule: Rule
    tokens: Int[Tensor, " candidates"]
    asks_once: bool = False
    waits: bool = False
    law: LawKind = LawKind.NONE
    no_law: str = "it is a step on the way to one"

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        return self.rule.start(masked)

    def turn(self, seen: Situation) -> Conversation:
        budget: Any = self.rule.budget  # it has the method `test`, as the law of the rule is one of drafts
        answer = yield Ask(seen.candidate)
        return (yield from budget.test(self.rule, seen, answer, self.tokens))


class _Chain:
    """The Markov chain of a sampler on pairs of partial sequence and memory; for the arguments see `scored_law`."""

    def __init__(
        self, sampler: Sampler, oracle: Oracle | None, x: Tensor, temperature: float, blocks: int | None
    ) -> None:
        rule = sampler.rule
        assert isinstance(rule, Rule)
        self.sampler, self.rule, self.order, self.x = sampler, rule, rule.order, x
        self.scored = rule.order if rule.law is LawKind.SCORES and isinstance(rule.order, ScoredOrder) else None
        if self.scored is None and self.order.random:
            raise ValueError(f"the law of {self.rule.budget} is computed for orders that are not random")
        self.draws = self.scored is None or self.scored.sees_draws
        self.oracle = None if self.draws else oracle
        self.temperature, self.mask = temperature, sampler.denoiser.mask_id
        pending = (x == self.mask).unsqueeze(0)
        self.block = torch.zeros_like(pending, dtype=torch.int64) if blocks is None else windows(pending, blocks)
        self.tokens = torch.tensor([v for v in range(sampler.denoiser.vocab_size) if v != self.mask])
        self.noisy = self.scored is not None and bool(self.scored.scale(torch.ones(1, dtype=torch.float64)) > 0)
        self.sized = self.rule.budget.marginal_free
        masks = int(pending.sum())
        if (3 * len(self.tokens)) ** masks > LIMIT:
            raise ValueError(
                f"for the law of {self.order} all partial sequences are followed: {masks} masks of {len(self.tokens)}"
                f" symbols are too many (limit: (3 · symbols)^masks <= {LIMIT})"
            )
        if not self.sized and self.draws and self.noisy:
            raise ValueError(
                f"the law of {self.order} is computed for budgets that do not depend on the marginals, got"
                f" {self.rule.budget}"
            )
        if not self.sized and not self.draws and masks > _RANKED:
            raise ValueError(
                f"for the law of {self.order} with {self.rule.budget} all orders are followed, of at most {_RANKED}"
                f" masks, got {masks}"
            )

    def run(self, points: Tensor) -> Outcome:
        """Follows the probabilities of all states until no mask remains."""
        length, q = len(self.x), torch.zeros(len(points), dtype=torch.float64)
        found = Outcome(q)
        memory = self.rule.start((self.x == self.mask).sum().reshape(1))
        assert isinstance(memory, Tensor)
        everything = torch.ones(1, dtype=torch.float64)
        found.own_marginals = self.scored is not None and self.scored.power(everything) is None
        rows = torch.cat([self.x.unsqueeze(0).double(), memory], -1)
        mass = torch.ones(1, 2, dtype=torch.float64)
        while True:
            rows, inverse = torch.unique(rows, dim=0, return_inverse=True)
            mass = torch.zeros(len(rows), 2, dtype=torch.float64).index_add_(0, inverse, mass)
            live = (rows[:, :length] == self.mask).any(-1)
            ended = torch.cat([points, rows[~live, :length].long()])
            _, cell = torch.unique(ended, dim=0, return_inverse=True)
            of_cell = torch.zeros(len(ended), dtype=torch.float64).index_add_(0, cell[len(points) :], mass[~live, 0])
            q += of_cell[cell[: len(points)]]
            found.off_support += float(mass[~live, 0].sum() - of_cell[cell[: len(points)]].sum())
            if not bool(live.any()):
                break
            x, memory, mass = rows[live, :length].long(), rows[live, length:], mass[live]
            found.evaluations += float(mass[:, 0].sum())
            found.evaluations_data += float(mass[:, 1].sum())
            states = _States(x, open_block(x == self.mask, self.block.expand(len(x), -1)), memory, *mass.unbind(-1))
            count, parts = states.candidate.sum(-1), []
            for m in count.unique().tolist():
                group = (count == m).nonzero().squeeze(-1)
                each = len(self.tokens) ** m if self.draws or self.sized else math.factorial(m)
                for some in group.split(max(1, _ROWS // each)):
                    parts.append(self._step(states[some], found))
            rows, mass = (torch.cat(column) for column in zip(*parts, strict=True))
        found.off_support = max(0.0, found.off_support)
        found.log_q = q.log()
        if self.oracle is None:
            found.bound = found.dependence = found.divergence = float("nan")
            found.evaluations_data = found.evaluations if self.sized else float("nan")
        return found

    def _step(self, states: _States, found: Outcome) -> tuple[Tensor, Tensor]:
        """Makes one step: returns the rows (tokens and memory) after it, and their probabilities."""
        m = int(states.candidate[0].sum())
        logits = self.sampler.denoiser(states.query())
        if self.scored is None:
            return self._by_tests(states, logits, found)
        share = (states.x == self.mask).double().mean(-1)
        power = self.scored.power(share)
        each = None if power is None else power.repeat_interleave(m)
        allowed = forbid(logits, self.sampler.settings.forbidden)
        tau = torch.full((len(allowed),), self.temperature, dtype=torch.float64)
        top_k, top_p = self.sampler.settings.top_k, self.sampler.settings.top_p
        log_draw = draw_log_prob(allowed, temperature=tau if each is None else tau / each, top_k=top_k, top_p=top_p)
        log_draw = log_draw[:, self.tokens].reshape(len(share), m, -1)
        stats = marginals(allowed, power=each)
        view = self._view(states, stats)
        if self.draws:
            return self._by_draws(states, view, share, log_draw, self._drawn_scores(allowed, stats, m))
        if stats.log_moment is not None:
            score = stats.log_moment.reshape(len(share), m)
        else:
            score = self.scored.score(view)[states.candidate].reshape(len(share), m)
        weight = score.double() / self.scored.scale(share).unsqueeze(-1)
        return self._by_marginals(states, view, weight, log_draw, found)

    def _view(self, states: _States, stats: Marginals) -> View:
        masked, nothing = states.x == self.mask, torch.zeros(states.x.shape, dtype=torch.float64)
        return View.blank(states.candidate, nothing, states.memory, masked, ~masked).measured(stats)

    def _by_tests(self, states: _States, logits: Tensor, found: Outcome) -> tuple[Tensor, Tensor]:
        """Makes a step that tests drafts, for all joint drafts; a position that passes keeps its draft."""
        top_k, top_p = self.sampler.settings.top_k, self.sampler.settings.top_p
        allowed = forbid(logits, self.sampler.settings.forbidden)
        log_draw = draw_log_prob(allowed, temperature=self.temperature, top_k=top_k, top_p=top_p)[:, self.tokens]
        log_draw = log_draw.reshape(len(states.x), -1, len(self.tokens))
        draws = _joint(len(self.tokens), log_draw.shape[1])
        state, draw = (_sum_of(log_draw, draws) > -torch.inf).nonzero().unbind(-1)
        mass = states.own[state] * _sum_of(log_draw, draws)[state, draw].exp()
        some = states[state]
        block = self.block.expand(len(some.x), -1)
        drafted = Sampler(self.sampler.denoiser, _Drafted(self.rule, self.tokens[draws[draw]].reshape(-1)))
        after, info = drafted.step(hypothetical(self.sampler, some.x, some.memory, block))
        found.evaluations += float((mass * (info.evaluations - 1)).sum())
        return _successors(after.x, some.memory, mass, torch.zeros_like(mass))

    def _drawn_scores(self, allowed: Tensor, stats: Marginals, m: int) -> Float[Tensor, "states joint candidates"]:
        """Returns the log-probability of each token in each joint draw."""
        log_p = allowed.to(stats.log_norm.dtype) - stats.log_norm.unsqueeze(-1)
        log_p = log_p[:, self.tokens].reshape(-1, m, len(self.tokens))
        draws = _joint(len(self.tokens), m)
        return log_p.gather(2, draws.T.expand(len(log_p), -1, -1)).transpose(1, 2)

    def _by_draws(
        self,
        states: _States,
        view: View,
        share: Float[Tensor, " states"],
        log_draw: Float[Tensor, "states candidates tokens"],
        score: Float[Tensor, "states joint candidates"],
    ) -> tuple[Tensor, Tensor]:
        """Makes a step of an order that depends on drawn tokens, for all joint draws."""
        assert self.scored is not None
        draws = _joint(len(self.tokens), score.shape[2])
        joint = states.own.unsqueeze(-1) * _sum_of(log_draw, draws).exp()
        if self.noisy:
            weight = score.double() / self.scored.scale(share).reshape(-1, 1, 1)
            return self._forgetting(states, view, joint, weight.masked_fill(weight.isneginf(), 0.0))
        state, draw = (joint > 0).nonzero().unbind(-1)
        where, x = states.candidate[state], states.x[state]
        scored = Scored(
            spread(score[state, draw].reshape(-1), where, -torch.inf), view.noise[state], masked=share[state]
        )
        chosen, memory = self.rule.select(_rows(view, state), self.scored.scored_key(scored))
        after = torch.where(chosen, x.masked_scatter(where, self.tokens[draws[draw]].reshape(-1)), x)
        return _successors(after, memory, joint[state, draw], torch.zeros(len(x), dtype=torch.float64))

    def _forgetting(
        self, states: _States, view: View, joint: Float[Tensor, "states joint"], weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Makes a step of an order that depends on drawn tokens and noise, for all sets of the size of the budget.

        The probabilities of each set given each joint draw are summed over the draws of the other positions.
        """
        m, symbols, position = weight.shape[2], len(self.tokens), states.positions
        sizes, memory = self._sizes(view)
        parts = []
        for k in sizes.unique().tolist():
            some = (sizes == k).nonzero().squeeze(-1)
            sets, chance = plackett_luce(weight[some].reshape(-1, m), k)
            fixed = (joint[some].unsqueeze(-1) * chance.reshape(len(some), -1, len(sets))).movedim(-1, 0)
            tokens = self.tokens[_joint(symbols, k)].repeat(len(some), 1)
            for members, mass in zip(sets, fixed.reshape(len(sets), len(some), *[symbols] * m), strict=True):
                others = [1 + i for i in range(m) if not members[i]]
                kept = mass.sum(others).reshape(-1) if others else mass.reshape(-1)
                at = position[some][:, members].repeat_interleave(symbols**k, 0)
                after = states.x[some].repeat_interleave(symbols**k, 0).scatter(1, at, tokens)
                remembered = memory[some].repeat_interleave(symbols**k, 0)
                parts.append(_successors(after, remembered, kept, torch.zeros_like(kept)))
        rows, mass = (torch.cat(column) for column in zip(*parts, strict=True))
        return rows, mass

    def _by_marginals(
        self, states: _States, view: View, weight: Float[Tensor, "states candidates"], log_draw: Tensor, found: Outcome
    ) -> tuple[Tensor, Tensor]:
        """Makes a step of an order that depends on the marginals only, for all possible sets and all their tokens."""
        state, members, chance, memory = self._sets(view, weight)
        entropy = view.entropy[states.candidate].reshape(weight.shape).double()[state].masked_fill(~members, 0.0)
        bound = (entropy.sum(-1) - entropy.amax(-1)).clamp(min=0)
        found.bound += float((states.data[state] * chance * bound).sum())
        exact = None if self.oracle is None else self._exact(states)
        parts = []
        for k in members.sum(-1).unique().tolist():
            some = (members.sum(-1) == k).nonzero().squeeze(-1)
            at = members[some].nonzero()[:, 1].reshape(-1, k)  # indices of the chosen candidates
            draws, of = _joint(len(self.tokens), k), state[some]
            log_q = _sum_of(log_draw[of.unsqueeze(-1), at], draws)
            before = states.x[of].repeat_interleave(len(draws), 0)
            where = states.positions[of].gather(1, at).repeat_interleave(len(draws), 0)
            after = before.scatter(1, where, self.tokens[draws].repeat(len(of), 1))
            own = (states.own[of] * chance[some]).unsqueeze(-1) * log_q.exp()
            data = torch.zeros_like(own)
            if self.oracle is not None and exact is not None:
                log_p = (self.oracle.log_marginal(after) - self.oracle.log_marginal(before)).reshape(own.shape)
                here = (states.data[of] * chance[some]).unsqueeze(-1)
                data = torch.where(here > 0, here * log_p.exp(), 0.0)
                independent = _sum_of(exact[of.unsqueeze(-1), at], draws)
                found.dependence += float(torch.where(data > 0, data * (log_p - independent), 0.0).sum())
                found.divergence += float(torch.where(data > 0, data * (log_p - log_q), 0.0).sum())
            remembered = memory[some].repeat_interleave(len(draws), 0)
            parts.append(_successors(after, remembered, own.reshape(-1), data.reshape(-1)))
        rows, mass = (torch.cat(column) for column in zip(*parts, strict=True))
        return rows, mass

    def _exact(self, states: _States) -> Float[Tensor, "states candidates tokens"]:
        """Returns the oracle's own log-marginals of the candidates."""
        assert self.oracle is not None
        log_p = self.oracle(states.query()).log_softmax(-1)[:, self.tokens]
        return log_p.reshape(len(states.x), -1, len(self.tokens))

    def _sizes(self, view: View) -> tuple[Int[Tensor, " states"], Float[Tensor, "states memory"]]:
        """Returns how many positions a budget that ignores the marginals takes, and its memory afterwards."""
        first = (~view.candidate).long().argsort(dim=-1, stable=True)
        admitted, memory = self.rule.budget.admit(view.ranked(first))
        return admitted.sum(-1), memory

    def _sets(self, view: View, weight: Float[Tensor, "states candidates"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns all sets of candidates that may be unmasked.

        Returns:
            For each set: the index of its state, its members, its probability, and the memory after it.
        """
        states, m = weight.shape
        if self.sized:
            sizes, memory = self._sizes(view)
            parts = []
            for k in sizes.unique().tolist():
                some = (sizes == k).nonzero().squeeze(-1)
                sets, chance = plackett_luce(weight[some], k)
                parts.append((some.repeat_interleave(len(sets)), sets.repeat(len(some), 1), chance.reshape(-1)))
            state, members, chance = (torch.cat(column) for column in zip(*parts, strict=True))
            return state, members, chance, memory[state]
        rankings = torch.tensor(list(itertools.permutations(range(m))))
        ranked = weight[:, rankings]
        left = ranked.flip(-1).logcumsumexp(-1).flip(-1)
        chance = (ranked - left).sum(-1).exp().reshape(-1)
        state = torch.arange(states).repeat_interleave(len(rankings))
        position = view.candidate.nonzero()[:, 1].reshape(states, m)
        others = (~view.candidate).nonzero()[:, 1].reshape(states, -1)
        order = torch.cat([position[:, rankings].flatten(0, 1), others[state]], -1)
        admitted, memory = self.rule.budget.admit(_rows(view, state).ranked(order))
        members = torch.zeros_like(admitted).scatter_(1, order, admitted).gather(1, position[state])
        # Many orders give the same set, so their probabilities are added.
        keys = torch.cat([state.unsqueeze(-1).double(), members.double(), memory], -1)
        keys, inverse = torch.unique(keys, dim=0, return_inverse=True)
        chance = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, inverse, chance)
        return keys[:, 0].long(), keys[:, 1 : 1 + m].bool(), chance, keys[:, 1 + m :]


def _rows(view: View, rows: Int[Tensor, " rows"]) -> View:
    """Returns the given rows of a view; a row may occur several times."""
    columns = {column.name: getattr(view, column.name) for column in fields(view)}
    return replace(view, **{name: values[rows] for name, values in columns.items() if values is not None})


def _successors(after: Tensor, memory: Tensor, own: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the next rows (tokens and memory) with both probabilities, without rows of probability zero."""
    mass = torch.stack([own, data], -1)
    some = (mass > 0).any(-1)
    return torch.cat([after.double(), memory], -1)[some], mass[some]


def _joint(symbols: int, positions: int) -> Int[Tensor, "joint positions"]:
    """Returns all joint draws of the positions, in lexicographic order."""
    return torch.cartesian_prod(*[torch.arange(symbols)] * positions).reshape(-1, positions)


def _sum_of(table: Float[Tensor, "rows m tokens"], draws: Int[Tensor, "joint m"]) -> Float[Tensor, "rows joint"]:
    """Returns `Σ_i table[:, i, draws[:, i]]`."""
    total = torch.zeros(len(table), len(draws), dtype=torch.float64)
    for i in range(draws.shape[1]):
        total += table[:, i, draws[:, i]]
    return total
