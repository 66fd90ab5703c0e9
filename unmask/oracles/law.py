"""The exact output distribution of a sampler, without a single random number.

A rule that is a function of state and memory, started from one state, reaches each final sequence along one path only.
So the sampler's probability of a sequence is found by following that path: the same rule objects choose, the chosen
positions get that sequence's own tokens, and the marginals of these tokens are multiplied. For a random order this is
averaged over all orders of the masked positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Denoiser, FullDenoiser, Query
from ..draws.categorical import check_draw, draw_log_prob, forbid, log_prob, marginals
from ..rules.budget import One
from ..rules.credit import EVERY
from ..rules.gibbs import Gibbs
from ..rules.lookahead import Lookahead
from ..rules.ranked import Rule
from ..sampling.blocks import windows
from ..sampling.conversation import AnyRule, LawKind
from ..sampling.loop import Sampler
from ..sampling.state import Memory, State
from ..sampling.view import dependence_bound, spread
from .hypothetical import hypothetical
from .oracle import Oracle, enumerate_completions
from .perturbed import PerturbedDenoiser
from .scored_law import scored_law
from .speculation import Rounds, expected_rounds
from .subsets import uniform_subsets
from .table import Sudoku4Denoiser
from .visits import Visited, corrected, visited_law

_ORDERS = 7
"""With more masks than this, orders are not enumerated."""

_FEW = 4
"""With more masks than this, sets of masks are, where they suffice: there are fewer of them."""

_ROWS = 1 << 15
"""Walkers followed at once."""


@dataclass(frozen=True)
class Law:
    """The law of a sampler on the support of the data, with one cell for all sequences off the support.

    Attributes:
        points: The data's support: every completion of positive probability, or every completion without an oracle.
        log_p: The data's log-probabilities; NaN without an oracle.
        log_q: The sampler's log-probabilities.
        off_support: The sampler's mass outside `points`.
        bound: `E_data Σ_steps (ΣH - max H)`, in nats: bounds `kl` when the denoiser is exact and draws are made from
            its own distribution. NaN at temperatures other than 1, with top-k, top-p, forbidden tokens or a predictor,
            and for `Credit`. `bound`, `dependence`, `model_error` and `nfe_mean_data` are NaN for rules that mask again
            or overwrite.
        dependence: `E_data Σ_steps KL(p_U || Π p_i)` of the true conditionals, in nats (NaN without an oracle).
        model_error: `E_data Σ_steps Σ_{i∈U} KL(p_i || p̂_i)`, in nats (NaN without an oracle). For a rule that is a
            function of the state, `kl = dependence + model_error`; with a random order `kl` is at most this sum. Both
            are NaN where drawn tokens decide on positions.
        nfe_mean: Expected evaluations under the sampler's own law, off-support runs included.
        nfe_mean_data: Expected evaluations when the states visited are those of the data.
        evaluations_mean: Expected number of states evaluated under the sampler's own law; larger than `nfe_mean` for a
            rule that evaluates ahead.
    """

    points: Int[Tensor, "points length"]
    log_p: Float[Tensor, " points"]
    log_q: Float[Tensor, " points"]
    off_support: float
    bound: float
    dependence: float
    model_error: float
    nfe_mean: float
    nfe_mean_data: float
    evaluations_mean: float

    @property
    def kl(self) -> float:
        """`KL(data || sampler)` in nats, never below 0; infinite if the sampler cannot produce part of the data."""
        nats = float((self.log_p.exp() * (self.log_p - self.log_q)).sum())
        return nats if nats > 0 or math.isnan(nats) else 0.0

    @property
    def tv(self) -> float:
        """Total variation distance between data and sampler."""
        return 0.5 * (float((self.log_p.exp() - self.log_q.exp()).abs().sum()) + self.off_support)

    def counts(self, samples: Int[Tensor, "samples length"]) -> Int[Tensor, " cells"]:
        """Counts samples per point; the last cell counts those off the support."""
        codes: dict[tuple[int, ...], int] = {tuple(row): i for i, row in enumerate(self.points.tolist())}
        cells = torch.tensor([codes.get(tuple(row), len(codes)) for row in samples.tolist()], dtype=torch.int64)
        return torch.bincount(cells, minlength=len(codes) + 1)

    def pvalue(self, samples: Int[Tensor, "samples length"]) -> float:
        """Returns the p-value of Pearson's test that the samples come from this law: uniform on [0, 1] if they do.

        NaN if there are too few samples to tell any two outcomes apart.
        """
        expected = torch.cat([self.log_q.exp(), torch.tensor([self.off_support], dtype=torch.float64)])
        return pearson(self.counts(samples), expected)


def pearson(counts: Int[Tensor, " cells"], probability: Float[Tensor, " cells"], smallest: float = 5.0) -> float:
    """Returns the p-value of Pearson's chi-square test of counts against exact probabilities.

    Cells with fewer than `smallest` expected counts are pooled, rarest first, until the pool has enough. An outcome of
    probability zero that occurred gives 0. The p-value is NaN if only one cell is left, because nothing was tested.
    """
    total = int(counts.sum())
    expected = probability.double() / probability.double().sum() * total
    if bool(((expected < 1e-12 * total) & (counts > 0)).any()):
        return 0.0
    order = expected.argsort()
    expected, observed = expected[order], counts[order].double()
    pooled = int((expected < smallest).sum())
    while pooled and float(expected[:pooled].sum()) < smallest and pooled < len(expected):
        pooled += 1
    if pooled:
        expected = torch.cat([expected[:pooled].sum(0, keepdim=True), expected[pooled:]])
        observed = torch.cat([observed[:pooled].sum(0, keepdim=True), observed[pooled:]])
    if len(expected) < 2:
        return float("nan")
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


def exact_law(
    denoiser: Denoiser,
    rule: AnyRule,
    x: Int[Tensor, " length"],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    forbidden: Iterable[int] = (),
    blocks: int | None = None,
) -> Law:
    """Computes the exact law of `sample(denoiser, x, rule, ...)` for one sequence with masks.

    Off the support of the data only the number of evaluations matters. There, a rule that compares evaluations is
    treated as if it had no earlier ones. That is exact for the predictor, whose rule does not look at marginals, and
    for `Stable` with a threshold above `1/V`; for `Credit` the number is NaN.

    Args:
        denoiser: An oracle (an exact denoiser, which knows the data's law); a perturbed oracle (the data then follow
            the oracle inside); or any denoiser of a small enough space, whose law is not compared with data.
        rule: The rule, as `sample` takes it. A random order is averaged over all orders of the masked positions.
        x: One sequence, with the mask token where something is to be drawn.
        temperature: The temperature of the draw.
        top_k: Draw among the `k` most probable tokens.
        top_p: Draw among the fewest tokens whose probabilities sum to at least this.
        forbidden: Token ids that must not appear.
        blocks: Window length for semi-autoregressive sampling.

    Returns:
        The law, with its divergence from the data, bound and expected evaluations. A speculative rule has the law of
        unmasking one at a time; its expected evaluations are NaN off the support and for a random order of many masks.

    Raises:
        ValueError: If there are too many completions or orders to enumerate, `x` is not one sequence of token ids, or
            the denoiser is conditioned on time (its law is an integral over hitting times).
    """
    check_draw(temperature, top_k, top_p)
    if getattr(denoiser, "wants_time", False):
        raise ValueError("the law of a denoiser conditioned on time is not computed; give one that ignores time")
    sampler = Sampler(denoiser, rule, top_k=top_k, top_p=top_p, forbidden=forbidden)
    if rule.law is LawKind.NONE:
        raise ValueError(rule.no_law)
    if rule.law is LawKind.VISITS:
        return _revisiting(sampler, denoiser, torch.as_tensor(x), temperature, blocks)
    if not isinstance(rule, Rule):
        raise ValueError(f"the law of {rule} is not computed: it is not made of an order and a budget")
    if rule.law is LawKind.ONE:
        settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "forbidden": sampler.settings.forbidden}
        one = exact_law(denoiser, replace(rule, budget=One()), x, blocks=blocks, **settings)
        masked, found = torch.as_tensor(x) == denoiser.mask_id, Rounds(math.nan, math.nan, math.nan)
        if one.off_support <= 1e-12 and not (rule.order.random and int(masked.sum()) > _ORDERS):
            orders = _orders(masked, rule.order.random)
            found = expected_rounds(sampler, torch.as_tensor(x), one.points, one.log_p, orders, temperature, blocks)
        return replace(one, nfe_mean=found.nfe, nfe_mean_data=found.nfe_data, evaluations_mean=found.states)
    mask = denoiser.mask_id
    oracle, x, points, log_p = _completions(denoiser, x)
    own = top_k is None and top_p is None and temperature == 1 and sampler.settings.forbidden == (mask,)
    if rule.law in (LawKind.SCORES, LawKind.DRAFTS):
        found = scored_law(sampler, oracle, x, points, temperature, blocks)
        bounded = own and found.own_marginals
        return Law(
            points=points,
            log_p=torch.full_like(found.log_q, torch.nan) if log_p is None else log_p,
            log_q=found.log_q,
            off_support=found.off_support,
            bound=found.bound if bounded else float("nan"),
            dependence=found.dependence,
            model_error=found.divergence - found.dependence,
            nfe_mean=found.evaluations,
            nfe_mean_data=found.evaluations_data,
            evaluations_mean=found.evaluations,
        )
    sized = getattr(rule.budget, "group_sizes", None)
    masks = int((x == mask).sum())
    if rule.order.random and (sized is not None or masks > _FEW):
        if isinstance(denoiser, Oracle) and log_p is not None and own and blocks is None and rule.blind:
            return _subset_law(denoiser, rule, x, points, log_p)
        if sized is not None or masks > _ORDERS:
            raise ValueError(
                f"the law of a time grid, or of a random order of more than {_ORDERS} masks, is computed for an oracle"
                " at temperature 1 without truncation or blocks, and a rule that does not look at the marginals"
            )
    orders = _orders(x == mask, rule.order.random)
    walk = _Walk(sampler, oracle, x, points, temperature, blocks)
    log_q = torch.full((len(points),), -torch.inf, dtype=torch.float64)
    totals = torch.zeros(5, dtype=torch.float64)  # bound, dependence, own NFE, data NFE, off-support mass
    share = math.log(len(orders))
    weight = log_p if log_p is not None else torch.full_like(log_q, -math.log(max(1, len(points))))
    for part in orders.split(max(1, _ROWS // max(1, len(points)))):
        part_q, part_totals = walk.follow(part, weight)
        log_q = torch.logaddexp(log_q, part_q.logsumexp(0) - share)
        totals += part_totals / len(orders)
    bound, dependence, nfe, nfe_data, off = totals.tolist()
    kl_rule = float("nan")
    if oracle is not None and log_p is not None:
        kl_rule = walk.divergence / len(orders)
    else:
        dependence = nfe_data = float("nan")
    if oracle is None or not own or rule.predictor is not None or not getattr(rule.budget, "own_marginals", True):
        bound = float("nan")
    return Law(
        points=points,
        log_p=torch.full_like(log_q, torch.nan) if log_p is None else log_p,
        log_q=log_q,
        off_support=off,
        bound=bound,
        dependence=dependence,
        model_error=kl_rule - dependence,
        nfe_mean=nfe,
        nfe_mean_data=nfe_data,
        evaluations_mean=nfe,
    )


def _completions(denoiser: Denoiser, x: Tensor) -> tuple[Oracle | None, Tensor, Tensor, Tensor | None]:
    """Returns the oracle (if any), the sequence, its completions and their log-probabilities under the data."""
    x, mask = torch.as_tensor(x), denoiser.mask_id
    if x.ndim != 1 or x.dtype.is_floating_point or not bool(((x >= 0) & (x < denoiser.vocab_size)).all()):
        raise ValueError(f"x is one sequence of token ids 0..{denoiser.vocab_size - 1}, got {x.dtype} {x.tolist()}")
    oracle = denoiser.oracle if isinstance(denoiser, PerturbedDenoiser) else denoiser
    if isinstance(oracle, Oracle):
        return oracle, x, *oracle.completions(x)
    if mask != denoiser.vocab_size - 1:
        raise ValueError("the exact law of a denoiser that is no oracle needs the mask token to be the last id")
    return None, x, enumerate_completions(x, mask, denoiser.vocab_size - 1), None


def _revisiting(sampler: Sampler, denoiser: Denoiser, x: Tensor, temperature: float, blocks: int | None) -> Law:
    """The law of a rule that masks again or overwrites. One that corrects another rule starts from that rule's law."""
    rule, settings = sampler.rule, sampler.settings
    _, x, points, log_p = _completions(denoiser, x)
    if isinstance(rule, Gibbs):
        draw = {"temperature": temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        before = exact_law(denoiser, rule.rule, x, forbidden=settings.forbidden, blocks=blocks, **draw)
        if before.off_support > 1e-12:
            raise ValueError(f"the law of {rule} is computed where {rule.rule} draws nothing that cannot be")
        q = corrected(sampler, rule, x, points, before.log_q.exp(), temperature)
        extra = rule.visits(int((x == denoiser.mask_id).sum()))
        found = Visited(q.log(), max(0.0, 1 - float(q.sum())), before.nfe_mean + extra, before.evaluations_mean + extra)
    elif isinstance(rule, Lookahead):
        draw = {"temperature": temperature, "top_k": settings.top_k, "top_p": settings.top_p}
        law = exact_law(denoiser, rule.rule, x, forbidden=settings.forbidden, blocks=blocks, **draw)
        return replace(law, nfe_mean=math.nan, nfe_mean_data=math.nan, evaluations_mean=math.nan)
    else:
        found = visited_law(sampler, x, points, temperature, blocks)
    nan = float("nan")
    return Law(
        points=points,
        log_p=torch.full_like(found.log_q, torch.nan) if log_p is None else log_p,
        log_q=found.log_q,
        off_support=found.off_support,
        bound=nan,
        dependence=nan,
        model_error=nan,
        nfe_mean=found.nfe,
        nfe_mean_data=nan,
        evaluations_mean=found.states,
    )


def _orders(masked: Tensor, random: bool) -> Float[Tensor, "orders length"]:
    """Returns noise that gives each order of the masked positions; one row if the order is not random."""
    where = masked.nonzero().squeeze(-1)
    if not random:
        return torch.zeros(1, len(masked), dtype=torch.float64)
    ranks = torch.tensor(list(itertools.permutations(range(len(where)))), dtype=torch.float64)
    noise = torch.zeros(len(ranks), len(masked), dtype=torch.float64)
    noise[:, where] = ranks / max(1, len(where))
    return noise


def _subset_law(oracle: Oracle, rule: Rule, x: Tensor, points: Tensor, log_p: Tensor) -> Law:
    """The law of a uniform order and a marginal-free budget, one completion per class of symmetry."""
    classes = torch.arange(len(points))
    if isinstance(oracle, Sudoku4Denoiser) and bool((x == oracle.mask_id).all()):
        classes = oracle.orbits()
    first = torch.stack([(classes == number).nonzero()[0, 0] for number in classes.unique()])
    found = uniform_subsets(oracle, rule, x, points[first])
    log_q, p = found.log_q[classes], log_p.exp()
    dependence = float((p * (log_p + found.surprise[classes])).sum())
    return Law(
        points=points,
        log_p=log_p,
        log_q=log_q,
        off_support=max(0.0, 1 - float(log_q.exp().sum())),
        bound=float((p * found.bound[classes]).sum()),
        dependence=dependence,
        model_error=0.0,
        nfe_mean=found.evaluations,
        nfe_mean_data=found.evaluations,
        evaluations_mean=found.evaluations,
    )


def numbers_of(memory: Memory) -> Float[Tensor, "states memory"]:
    """Returns the numbers in a rule's memory: its future depends only on them and on the evaluations it compares."""
    numbers = memory if isinstance(memory, Tensor) else getattr(memory, "numbers", None)
    assert isinstance(numbers, Tensor)
    return numbers


def _with_numbers(memory: Any, numbers: Tensor) -> Memory:
    """The memory of a rule with history, with other numbers."""
    return replace(memory, numbers=numbers)


class _Walk:
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
