"""The exact law of rules that mask again or overwrite, by following the probabilities of all states.

A final sequence does not determine the path to it, and a path may visit a state again. But what such a rule does next
depends only on the tokens and on its memory, which counts its turns. So the sampler is a Markov chain that ends, and
the probabilities are followed until then. If a rule tosses a coin for each position (`LawKind.COINS`), the positions
are independent given the state, and the chain is followed on the table of all states at once. A Gibbs correction is a
Markov kernel on complete sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Query
from ..draws.categorical import draw_log_prob, forbid
from ..rules.revisit import Plan, Revisits
from ..sampling.blocks import windows
from ..sampling.conversation import Conversation, LawKind, Move, Situation
from ..sampling.loop import Sampler
from ..sampling.state import Memory, State
from ..sampling.turn import Turn
from .hypothetical import hypothetical

LIMIT = 4096
"""The largest number of states of a table, (symbols + 1)^masks; all pairs of them are followed in every step."""

_ROWS = 1 << 16
"""The largest number of states that are processed at once."""


@dataclass
class Visited:
    """The final distribution of a sampler, and its cost.

    Attributes:
        log_q: Log-probability of each requested point.
        off_support: The probability of all other sequences.
        nfe: The expected number of evaluations.
        states: The expected number of states evaluated.
    """

    log_q: Float[Tensor, " points"]
    off_support: float = 0.0
    nfe: float = 0.0
    states: float = 0.0


def visited_law(sampler: Sampler, x: Tensor, points: Tensor, temperature: float, blocks: int | None) -> Visited:
    """Computes the law of a rule by following it from a sequence with masks to all its final sequences.

    Args:
        sampler: Denoiser, rule and settings of the draw.
        x: The sequence with masks.
        points: The completions whose probability is requested.
        temperature: The temperature of the draw.
        blocks: Window length for semi-autoregressive sampling.

    Raises:
        ValueError: If there are too many states to follow, or the law of the rule cannot be computed here.
    """
    if sampler.rule.law is LawKind.COINS:
        if blocks is not None:
            raise ValueError(f"the law of {sampler.rule} in blocks is not computed: each block has its own clock")
        return _Table(sampler, x, temperature).remasked(sampler.rule, points)
    if isinstance(sampler.rule, Revisits):
        return _Walk(sampler, sampler.rule, x, temperature, blocks).run(points)
    raise ValueError(f"the law of {sampler.rule} is not computed")


def corrected(
    sampler: Sampler, rule: Any, x: Tensor, points: Tensor, q: Float[Tensor, " points"], temperature: float
) -> Float[Tensor, " points"]:
    """Returns the probabilities of complete sequences after the corrections of a rule.

    Args:
        sampler: Denoiser and settings of the draw.
        rule: The rule, whose law is `LawKind.CORRECTED`.
        x: The sequence with masks.
        points: All possible complete sequences.
        q: Their probabilities before the corrections.
        temperature: The temperature of the draw.

    Raises:
        ValueError: If a correction can lead to a sequence that is not among the points.
    """
    table = _Table(sampler, x, temperature)
    where, count = table.where, torch.tensor(len(table.where))
    codes = {tuple(point): i for i, point in enumerate(points.tolist())}
    for visit in range(rule.visits(len(where))):
        at = int(where[rule.position(torch.tensor(float(visit)), count)])
        without = points.index_fill(1, torch.tensor(at), sampler.denoiser.mask_id)
        _, group = torch.unique(without, dim=0, return_inverse=True)
        first = torch.stack([(group == number).nonzero()[0, 0] for number in range(int(group.max()) + 1)])
        hidden = without[first]
        chance = table.draw(hidden)[torch.arange(len(first)), (where == at).nonzero()[0, 0]]
        mass = torch.zeros(len(first), dtype=torch.float64).index_add_(0, group, q)
        new = torch.zeros_like(q)
        for number, row in enumerate(hidden.tolist()):
            for token, p in zip(table.tokens.tolist(), chance[number].tolist(), strict=True):
                row[at] = token
                if p > 0 and float(mass[number]) > 0:
                    if tuple(row) not in codes:
                        raise ValueError(
                            f"the law of {rule} is computed only if no draw leads to a sequence of probability zero"
                        )
                    new[codes[tuple(row)]] += mass[number] * p
        q = new
    return q


class _Table:
    """The table of all states of the masked positions, each of which holds a token or the mask."""

    def __init__(self, sampler: Sampler, x: Tensor, temperature: float) -> None:
        self.sampler, self.x, self.temperature, self.mask = sampler, x, temperature, sampler.denoiser.mask_id
        self.where = (x == self.mask).nonzero().squeeze(-1)
        self.tokens = torch.tensor([v for v in range(sampler.denoiser.vocab_size) if v != self.mask])

    def draw(self, states: Int[Tensor, "states length"]) -> Float[Tensor, "states masked tokens"]:
        """Returns the probability that each token is drawn at each position; 0 at positions that have a token."""
        where = states == self.mask
        logits = self.sampler.denoiser(Query(states, where, torch.ones_like(where), torch.arange(len(states))))
        settings = self.sampler.settings
        log_p = draw_log_prob(
            forbid(logits, settings.forbidden), temperature=self.temperature, top_k=settings.top_k, top_p=settings.top_p
        )
        p = torch.zeros(*states.shape, logits.shape[1], dtype=torch.float64)
        p[where] = log_p.exp()
        return p[:, self.where][..., self.tokens]

    def remasked(self, rule: Any, points: Tensor) -> Visited:
        """Follows a rule that tosses a coin for each position through all steps of its clock."""
        n, kinds = len(self.where), len(self.tokens) + 1
        if kinds**n > LIMIT:
            raise ValueError(f"{kinds}^{n} states are too many to follow with all pairs (limit {LIMIT})")
        digits = torch.cartesian_prod(*[torch.arange(kinds)] * n).reshape(-1, n)  # the last kind is the mask
        states = self.x.repeat(len(digits), 1)
        states[:, self.where] = torch.cat([self.tokens, torch.tensor([self.mask])])[digits]
        drawn, masked = self.draw(states), digits == kinds - 1
        mass = torch.zeros(len(digits), dtype=torch.float64)
        mass[-1] = 1.0
        found = Visited(torch.empty(0))
        for done in range(rule.steps if n else 0):
            written, again = rule.rates(done)
            stay = torch.nn.functional.one_hot(digits, kinds).double()
            part = torch.zeros(len(digits), n, kinds, dtype=torch.float64)
            part[..., :-1] = torch.where(masked.unsqueeze(-1), written * drawn, (1 - again) * stay[..., :-1])
            part[..., -1] = masked * (1 - written) + ~masked * again
            asked = float((mass * (1 - (1 - written) ** masked.sum(-1))).sum())
            found.nfe, found.states = found.nfe + asked, found.states + asked
            new = torch.zeros_like(mass)
            for some in (mass > 0).nonzero().squeeze(-1).split(max(1, (1 << 22) // len(digits))):
                joint = mass[some].unsqueeze(-1)
                for i in range(n):
                    joint = (joint.unsqueeze(-1) * part[some, i].unsqueeze(1)).flatten(1)
                new += joint.sum(0)
            mass = new
        power = kinds ** torch.arange(n - 1, -1, -1)
        code = torch.zeros(len(points), dtype=torch.int64)
        for i, position in enumerate(self.where.tolist()):
            code += torch.searchsorted(self.tokens, points[:, position].contiguous()) * power[i]
        q = mass[code] if n else torch.ones(len(points), dtype=torch.float64)
        found.log_q, found.off_support = q.log(), max(0.0, 1 - float(q.sum()))
        return found


class _Peek:
    """Records the plan of a rule for a state, without unmasking anything.

    Attributes:
        plan: The plan, after a turn.
    """

    asks_once, waits, law, no_law = False, False, LawKind.NONE, "it is a step on the way to one"

    def __init__(self, rule: Revisits) -> None:
        self.rule = rule
        self.plan: Plan | None = None

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        return self.rule.start(masked)

    def turn(self, seen: Situation) -> Conversation:
        self.plan = self.rule.plan(seen)
        yield from ()
        return Move(torch.zeros_like(seen.candidate), seen.memory, None, more=torch.ones_like(seen.pending[:, 0]))


@dataclass(frozen=True)
class _Told:
    """A rule with given tokens for all masks, instead of random draws."""

    rule: Revisits
    tokens: Int[Tensor, "rows length"]
    asks_once: bool = False
    waits: bool = False
    law: LawKind = LawKind.NONE
    no_law: str = "it is a step on the way to one"

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        return self.rule.start(masked)

    def turn(self, seen: Situation) -> Conversation:
        plan = self.rule.plan(seen)
        answer = yield self.rule.question(plan)
        return self.rule.move(plan, answer, self.tokens)


class _Walk:
    """Follows all tokens that may be drawn, with the turns of the sampling loop itself."""

    def __init__(self, sampler: Sampler, rule: Revisits, x: Tensor, temperature: float, blocks: int | None) -> None:
        self.sampler, self.rule, self.x, self.temperature = sampler, rule, x, temperature
        self.table = _Table(sampler, x, temperature)
        self.editable = (x == sampler.denoiser.mask_id).unsqueeze(0)
        self.block = torch.zeros_like(self.editable, dtype=torch.int64)
        if blocks is not None:
            self.block = windows(self.editable, blocks)
        n, symbols = len(self.table.where), len(self.table.tokens)
        if symbols**n > LIMIT:
            raise ValueError(f"{symbols}^{n} possible draws in every step are too many to follow (limit {LIMIT})")

    def state(self, rows: Float[Tensor, "states columns"]) -> State:
        """Returns states from rows of tokens, a flag for whether the rule has more to do, and its memory."""
        length = len(self.x)
        x, more, memory = rows[:, :length].long(), rows[:, length] > 0, rows[:, length + 1 :]
        block, editable = self.block.expand(len(x), -1), self.editable.expand(len(x), -1)
        state = hypothetical(self.sampler, x, memory, block, temperature=self.temperature)
        return replace(state, editable=editable, more=more)

    def run(self, points: Tensor) -> Visited:
        """Follows the probabilities of all states until the rule has nothing left to do."""
        memory = self.rule.start((self.x == self.sampler.denoiser.mask_id).sum().reshape(1))
        assert isinstance(memory, Tensor)
        rows = torch.cat([self.x.double(), torch.zeros(1, dtype=torch.float64), memory[0]]).unsqueeze(0)
        mass, q, length = torch.ones(1, dtype=torch.float64), torch.zeros(len(points), dtype=torch.float64), len(self.x)
        found = Visited(q)
        while len(rows):
            rows, inverse = torch.unique(rows, dim=0, return_inverse=True)
            mass = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, inverse, mass)
            ended = self.state(rows).finished
            done = torch.cat([points, rows[ended, :length].long()])
            _, cell = torch.unique(done, dim=0, return_inverse=True)
            of_cell = torch.zeros(len(done), dtype=torch.float64).index_add_(0, cell[len(points) :], mass[ended])
            q += of_cell[cell[: len(points)]]
            found.off_support += float(mass[ended].sum() - of_cell[cell[: len(points)]].sum())
            parts = [self.step(some, weight, found) for some, weight in self.alike(rows[~ended], mass[~ended])]
            rows = torch.cat([part for part, _ in parts]) if parts else rows[:0]
            mass = torch.cat([part for _, part in parts]) if parts else mass[:0]
        found.log_q, found.off_support = q.log(), max(0.0, found.off_support)
        return found

    def alike(self, rows: Tensor, mass: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Divides states into groups with equally many positions to draw, of limited size; returns rows and masses."""
        if not len(rows):
            return []
        count, groups = self.plan(rows).masks.sum(-1), []
        for m in count.unique().tolist():
            some = (count == m).nonzero().squeeze(-1)
            groups += [(rows[s], mass[s]) for s in some.split(max(1, _ROWS // len(self.table.tokens) ** m))]
        return groups

    def plan(self, rows: Tensor) -> Plan:
        """Returns the rule's plan for each state."""
        peek = _Peek(self.rule)
        Turn(peek, self.state(rows), self.sampler.denoiser.vocab_size)
        assert peek.plan is not None
        return peek.plan

    def step(self, rows: Tensor, mass: Tensor, found: Visited) -> tuple[Tensor, Tensor]:
        """Makes one turn: returns the states after it, and their probabilities."""
        masks, tokens = self.plan(rows).masks, self.table.tokens
        m, length = int(masks[0].sum()), len(self.x)
        draws = torch.cartesian_prod(*[torch.arange(len(tokens))] * m).reshape(-1, m) if m else torch.zeros(1, 0).long()
        chance = mass.unsqueeze(-1).expand(-1, len(draws))
        if m:
            p = self.table.draw(rows[:, :length].long())[masks[:, self.table.where]].reshape(len(rows), m, -1)
            for i in range(m):
                chance = chance * p[:, i, draws[:, i]]
        state, draw = (chance > 0).nonzero().unbind(-1)
        each = torch.zeros(len(state), length, dtype=torch.int64)
        each = each.masked_scatter(masks[state], tokens[draws[draw]].reshape(-1))
        told = Sampler(self.sampler.denoiser, _Told(self.rule, each))
        after, _ = told.step(self.state(rows[state]))
        weight = chance[state, draw]
        found.nfe += float((weight * after.nfe).sum())
        found.states += float((weight * after.evaluations).sum())
        assert isinstance(after.memory, Tensor)
        return torch.cat([after.x.double(), after.more.double().unsqueeze(-1), after.memory], -1), weight
