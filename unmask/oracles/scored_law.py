"""The exact law of what draws fresh noise in every step, scores or drafts, by carrying probability along.

A final sequence does not tell the path to it, but the sampler is a Markov chain on partial sequences: every step has
noise of its own. Its first `k` positions are a draw without replacement with weights `exp(score / scale)`
(Plackett-Luce). Where scores are functions of the marginals, that gives each set its probability, and the tokens of the
set are drawn from their marginals. Where they are those of drawn tokens, or drafts are tested (`LawKind.DRAFTS`), one
step sums over the joint draws of all candidates, `Π p_i(x_i)`, and forgets what was drawn and not fixed.
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
"""The largest `(3 · symbols)^masks`: about as many terms are summed."""

_RANKED = 8
"""The most masks whose orders are enumerated, for budgets that look at the marginals."""

_ROWS = 1 << 17
"""Joint draws or orders worked on at once."""


@dataclass
class Outcome:
    """Where a sampler ends, and what it costs on the way.

    Attributes:
        log_q: Log-probability of each point asked for.
        off_support: The mass elsewhere.
        evaluations: The expected number of evaluations.
        evaluations_data: The same where tokens are the data's; NaN where draws decide on positions, as the next three.
        bound: `E_data Σ_steps (ΣH - max H)`, in nats.
        dependence: `E_data Σ_steps KL(p_U || Π p_i)` of the oracle's conditionals.
        divergence: `E_data Σ_steps [log p(x_U) - Σ log q_i(x_i)]`, with `q_i` what is drawn from. It bounds
            `KL(data || sampler)`, which averages over noise inside the logarithm.
        own_marginals: Whether tokens are drawn from the marginals, neither drafts nor powers of them.
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
    """Computes with which probability each set of `k` items is drawn, one after the other without replacement.

    The order does not matter, so it is summed out over sets: `P(S) = Σ_{i∈S} P(S∖i) w_i / Σ_{j∉S∖i} w_j`.

    Args:
        log_weight: Logarithms of the weights of the items, finite.
        k: Size of the sets, at most the number of items.

    Returns:
        The sets, in lexicographic order, and their probabilities in each row.
    """
    items = log_weight.shape[1]
    known: dict[tuple[int, ...], Tensor] = {(): torch.zeros(len(log_weight), dtype=torch.float64)}
    for size in range(1, k + 1):
        # log P(S) - log Σ_{j∉S} w_j of the sets one smaller
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
    """Carries the probability of every partial sequence from evaluation to evaluation.

    Args:
        sampler: A denoiser and a rule whose order is a `ScoredOrder` or whose budget tests, with the settings of the
            draw.
        oracle: Whose distribution the data have, if it is known.
        x: One sequence with masks.
        points: The completions whose probability is wanted.
        temperature: The temperature of the draw.
        blocks: Window length for semi-autoregressive sampling.

    Raises:
        ValueError: If there are too many joint draws or orders, draws and noise rank for a budget that looks at the
            marginals, or a budget that tests has a random order.
    """
    return _Chain(sampler, oracle, x, temperature, blocks).run(points)


@dataclass(frozen=True)
class _States:
    """Equally many candidates each: tokens, masks, memory, and the probability of coming by, as sampler and as data."""

    x: Int[Tensor, "states length"]
    candidate: Bool[Tensor, "states length"]
    memory: Float[Tensor, "states memory"]
    own: Float[Tensor, " states"]
    data: Float[Tensor, " states"]

    def __getitem__(self, rows: Tensor) -> _States:
        return _States(self.x[rows], self.candidate[rows], self.memory[rows], self.own[rows], self.data[rows])

    @property
    def positions(self) -> Int[Tensor, "states candidates"]:
        """Where the candidates are."""
        return self.candidate.nonzero()[:, 1].reshape(len(self.x), -1)

    def query(self) -> Query:
        return Query(self.x, self.candidate, torch.ones_like(self.candidate), torch.arange(len(self.x)))


@dataclass(frozen=True)
class _Drafted:
    """A rule that tests drafts, told what it drafts at every candidate."""

    rule: Rule
    tokens: Int[Tensor, " candidates"]
    asks_once: bool = False
    waits: bool = False
    law: LawKind = LawKind.NONE
    no_law: str = "it is a step on the way to one"

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        return self.rule.start(masked)

    def turn(self, seen: Situation) -> Conversation:
        budget: Any = self.rule.budget  # that its law is one of drafts says that it can test them
        answer = yield Ask(seen.candidate)
        return (yield from budget.test(self.rule, seen, answer, self.tokens))


class _Chain:
    """The Markov chain on (partial sequence, memory)."""

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
                f"the law of {self.order} follows all partial sequences: {masks} masks of {len(self.tokens)} symbols"
                f" are too many (limit: (3 · symbols)^masks <= {LIMIT})"
            )
        if not self.sized and self.draws and self.noisy:
            raise ValueError(
                f"the law of {self.order} is computed for budgets that do not look at the marginals, got"
                f" {self.rule.budget}"
            )
        if not self.sized and not self.draws and masks > _RANKED:
            raise ValueError(
                f"the law of {self.order} with {self.rule.budget} follows all orders, of at most {_RANKED} masks,"
                f" got {masks}"
            )

    def run(self, points: Tensor) -> Outcome:
        """Follows all probability until no mask remains."""
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
        """One evaluation: the rows after it, and their probabilities."""
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
        """A step that tests drafts: all of them. What stays keeps its draft."""
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
        """The log-probability of each token in each joint draw."""
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
        """A step of an order that sees draws: all of them."""
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
        """All sets of the size that the budget takes, given each joint draw; the draws of the others are summed out."""
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
        """A step of an order that sees no draws: all sets it may take, all tokens of each."""
        state, members, chance, memory = self._sets(view, weight)
        entropy = view.entropy[states.candidate].reshape(weight.shape).double()[state].masked_fill(~members, 0.0)
        bound = (entropy.sum(-1) - entropy.amax(-1)).clamp(min=0)
        found.bound += float((states.data[state] * chance * bound).sum())
        exact = None if self.oracle is None else self._exact(states)
        parts = []
        for k in members.sum(-1).unique().tolist():
            some = (members.sum(-1) == k).nonzero().squeeze(-1)
            at = members[some].nonzero()[:, 1].reshape(-1, k)  # which candidates
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
        """The oracle's own log-marginals of the candidates."""
        assert self.oracle is not None
        log_p = self.oracle(states.query()).log_softmax(-1)[:, self.tokens]
        return log_p.reshape(len(states.x), -1, len(self.tokens))

    def _sizes(self, view: View) -> tuple[Int[Tensor, " states"], Float[Tensor, "states memory"]]:
        """How many positions a budget takes that does not look at the marginals, and its memory afterwards."""
        first = (~view.candidate).long().argsort(dim=-1, stable=True)
        admitted, memory = self.rule.budget.admit(view.ranked(first))
        return admitted.sum(-1), memory

    def _sets(self, view: View, weight: Float[Tensor, "states candidates"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The sets that may be taken: of which state, which candidates, with what probability, the memory after it."""
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
        # Many orders take the same set.
        keys = torch.cat([state.unsqueeze(-1).double(), members.double(), memory], -1)
        keys, inverse = torch.unique(keys, dim=0, return_inverse=True)
        chance = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, inverse, chance)
        return keys[:, 0].long(), keys[:, 1 : 1 + m].bool(), chance, keys[:, 1 + m :]


def _rows(view: View, rows: Int[Tensor, " rows"]) -> View:
    """Takes rows of a view, perhaps several times."""
    columns = {column.name: getattr(view, column.name) for column in fields(view)}
    return replace(view, **{name: values[rows] for name, values in columns.items() if values is not None})


def _successors(after: Tensor, memory: Tensor, own: Tensor, data: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of what comes next, with both probabilities, without those that cannot come."""
    mass = torch.stack([own, data], -1)
    some = (mass > 0).any(-1)
    return torch.cat([after.double(), memory], -1)[some], mass[some]


def _joint(symbols: int, positions: int) -> Int[Tensor, "joint positions"]:
    """Every way to draw the positions, in lexicographic order."""
    return torch.cartesian_prod(*[torch.arange(symbols)] * positions).reshape(-1, positions)


def _sum_of(table: Float[Tensor, "rows m tokens"], draws: Int[Tensor, "joint m"]) -> Float[Tensor, "rows joint"]:
    """`Σ_i table[:, i, draws[:, i]]`."""
    total = torch.zeros(len(table), len(draws), dtype=torch.float64)
    for i in range(draws.shape[1]):
        total += table[:, i, draws[:, i]]
    return total
