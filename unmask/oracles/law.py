"""The exact output distribution of a sampler, computed without random numbers.

A rule that is a function of state and memory reaches each final sequence from a given start along only one path. So the
sampler's probability of a sequence is found by following that path: the same rule objects choose positions, these get
the tokens of the sequence, and the marginal probabilities of these tokens are multiplied. For a random order, this is
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

from ..denoiser import Denoiser
from ..draws.categorical import check_draw
from ..rules.budget import One
from ..rules.ranked import Rule
from ..sampling.conversation import REVISITS, AnyRule, LawKind
from ..sampling.loop import Sampler
from .oracle import Oracle, enumerate_completions
from .perturbed import PerturbedDenoiser
from .scored_law import scored_law
from .speculation import Rounds, expected_rounds
from .subsets import uniform_subsets
from .table import Sudoku4Denoiser
from .visits import Visited, corrected, visited_law
from .walk import Walk

_ORDERS = 7
"""The largest number of masks whose orders are enumerated."""

_FEW = 4
"""With more masks than this, sets of masks are enumerated instead of orders if they suffice, as they are fewer."""

_ROWS = 1 << 15
"""The largest number of (order, completion) pairs that are followed at once."""


@dataclass(frozen=True)
class Law:
    """The law of a sampler on the support of the data, with one cell for all sequences outside the support.

    Attributes:
        points: The support of the data: all completions of positive probability; without an oracle, all completions.
        log_p: The log-probabilities of the points under the data; NaN without an oracle.
        log_q: The log-probabilities of the points under the sampler.
        off_support: The sampler's probability of all sequences outside `points`.
        bound: `E_data Σ_steps (ΣH - max H)`, in nats. It is a bound on `kl` if the denoiser is exact and tokens are
            drawn from its own distribution. It is NaN at temperatures other than 1, with top-k, top-p, forbidden tokens
            or a predictor, and for `Credit`. `bound`, `dependence`, `model_error` and `nfe_mean_data` are NaN for rules
            that mask again or overwrite.
        dependence: `E_data Σ_steps KL(p_U || Π p_i)` of the true conditionals, in nats (NaN without an oracle).
        model_error: `E_data Σ_steps Σ_{i∈U} KL(p_i || p̂_i)`, in nats (NaN without an oracle). For a rule that is a
            function of the state, `kl = dependence + model_error`; for a random order, `kl` is at most this sum. Both
            are NaN if the choice of positions depends on drawn tokens.
        nfe_mean: Expected number of evaluations under the sampler's own law, including runs that leave the support.
        nfe_mean_data: Expected number of evaluations if the tokens are those of the data.
        evaluations_mean: Expected number of states evaluated under the sampler's own law, which is larger than
            `nfe_mean` for a rule that evaluates several states at once.
    """

    points: Int[Tensor, "points length"]
    log_p: Float[Tensor, " points"]
    log_q: Float[Tensor, " points"]
    off_support: float
    bound: float = math.nan
    dependence: float = math.nan
    model_error: float = math.nan
    nfe_mean: float = math.nan
    nfe_mean_data: float = math.nan
    evaluations_mean: float = math.nan

    @property
    def kl(self) -> float:
        """`KL(data || sampler)` in nats, at least 0; infinite if the sampler cannot produce part of the data."""
        nats = float((self.log_p.exp() * (self.log_p - self.log_q)).sum())
        return nats if nats > 0 or math.isnan(nats) else 0.0

    @property
    def tv(self) -> float:
        """The total variation distance between data and sampler."""
        return 0.5 * (float((self.log_p.exp() - self.log_q.exp()).abs().sum()) + self.off_support)

    def counts(self, samples: Int[Tensor, "samples length"]) -> Int[Tensor, " cells"]:
        """Counts the samples of each point; the last cell counts those outside the support."""
        codes: dict[tuple[int, ...], int] = {tuple(row): i for i, row in enumerate(self.points.tolist())}
        cells = torch.tensor([codes.get(tuple(row), len(codes)) for row in samples.tolist()], dtype=torch.int64)
        return torch.bincount(cells, minlength=len(codes) + 1)

    def pvalue(self, samples: Int[Tensor, "samples length"]) -> float:
        """Returns the p-value of Pearson's test that the samples come from this law (see `pearson`).

        If they do, it is uniform on [0, 1]. It is NaN if there are too few samples to distinguish any outcomes.
        """
        expected = torch.cat([self.log_q.exp(), torch.tensor([self.off_support], dtype=torch.float64)])
        return pearson(self.counts(samples), expected)


def pearson(counts: Int[Tensor, " cells"], probability: Float[Tensor, " cells"], smallest: float = 5.0) -> float:
    """Returns the p-value of Pearson's chi-square test of counts against exact probabilities.

    Cells with fewer than `smallest` expected counts are pooled, the rarest first, until the pool has enough. The result
    is 0 if an outcome of probability zero occurred, and NaN if only one cell is left, because nothing is tested then.

    Args:
        counts: The number of samples in each cell.
        probability: The probabilities of the cells, up to a factor.
        smallest: The least expected count of a cell.
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

    Outside the support of the data, only the number of evaluations matters. There, a rule that compares evaluations is
    treated as if it had no earlier ones. That is exact for the predictor, whose rule does not use the marginals, and
    for `Stable` with a threshold above `1/V`; for `Credit` the number is NaN.

    Args:
        denoiser: An oracle (an exact denoiser, which knows the law of the data); a perturbed oracle (the data then
            follow the oracle inside it); or any denoiser on a small enough space, whose law is not compared with data.
        rule: The rule, as `sample` takes it. A random order is averaged over all orders of the masked positions.
        x: One sequence, with the mask token where something is to be drawn.
        temperature: The temperature of the draw.
        top_k: Draw from the `k` most probable tokens.
        top_p: Draw from the smallest set of tokens whose probabilities sum to at least this.
        forbidden: Token ids that must not be drawn.
        blocks: Window length for semi-autoregressive sampling.

    Returns:
        The law, with its divergence from the data, the bound and the expected evaluations. A speculative rule has the
        law of unmasking one position at a time; its expected evaluations are NaN if the sampler can leave the support,
        and for a random order of many masks.

    Raises:
        ValueError: If there are too many completions or orders to enumerate, `x` is not one sequence of token ids, the
            law of the rule cannot be computed, or the denoiser has timestep conditioning (its law is an integral over
            hitting times).
    """
    check_draw(temperature, top_k, top_p)
    if getattr(denoiser, "wants_time", False):
        raise ValueError("the law of a denoiser conditioned on time is not computed; give one that ignores time")
    sampler = Sampler(denoiser, rule, top_k=top_k, top_p=top_p, forbidden=forbidden)
    case = _Case(sampler, denoiser, torch.as_tensor(x), temperature, blocks)
    if rule.law is LawKind.NONE:
        raise ValueError(rule.no_law)
    if rule.law is LawKind.SAME:
        inner: Any = rule
        return replace(case.law_of(inner.rule), nfe_mean=math.nan, nfe_mean_data=math.nan, evaluations_mean=math.nan)
    if rule.law in REVISITS:
        return _revisiting(case)
    if not isinstance(rule, Rule):
        raise ValueError(f"the law of {rule} is not computed: it is not made of an order and a budget")
    if rule.law is LawKind.ONE:
        return _verified(case, rule)
    if rule.law in (LawKind.SCORES, LawKind.DRAFTS):
        return _scored(case)
    return _followed(case, rule)


@dataclass(frozen=True)
class _Case:
    """A case whose law is to be computed: a rule on a denoiser, with settings of the draw, from one sequence."""

    sampler: Sampler
    denoiser: Denoiser
    x: Int[Tensor, " length"]
    temperature: float
    blocks: int | None

    @property
    def own(self) -> bool:
        """Whether tokens are drawn from the model's own distribution."""
        settings = self.sampler.settings
        whole = settings.top_k is None and settings.top_p is None and settings.forbidden == (self.denoiser.mask_id,)
        return whole and self.temperature == 1

    def law_of(self, rule: AnyRule) -> Law:
        """Returns the law of another rule in this case."""
        settings = self.sampler.settings
        return exact_law(
            self.denoiser,
            rule,
            self.x,
            temperature=self.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            forbidden=settings.forbidden,
            blocks=self.blocks,
        )


def _verified(case: _Case, rule: Rule) -> Law:
    """Returns the law of a rule that verifies its drafts: that of one position at a time, with fewer evaluations."""
    one = case.law_of(replace(rule, budget=One()))
    masked, found = case.x == case.denoiser.mask_id, Rounds(math.nan, math.nan, math.nan)
    if one.off_support <= 1e-12 and not (rule.order.random and int(masked.sum()) > _ORDERS):
        orders = _orders(masked, rule.order.random)
        found = expected_rounds(case.sampler, case.x, one.points, one.log_p, orders, case.temperature, case.blocks)
    return replace(one, nfe_mean=found.nfe, nfe_mean_data=found.nfe_data, evaluations_mean=found.states)


def _scored(case: _Case) -> Law:
    """Returns the law of a rule with new noise in every step, by following the probabilities of all states."""
    oracle, x, points, log_p = _completions(case.denoiser, case.x)
    found = scored_law(case.sampler, oracle, x, points, case.temperature, case.blocks)
    return Law(
        points=points,
        log_p=_known(log_p, found.log_q),
        log_q=found.log_q,
        off_support=found.off_support,
        bound=found.bound if case.own and found.own_marginals else math.nan,
        dependence=found.dependence,
        model_error=found.divergence - found.dependence,
        nfe_mean=found.evaluations,
        nfe_mean_data=found.evaluations_data,
        evaluations_mean=found.evaluations,
    )


def _followed(case: _Case, rule: Rule) -> Law:
    """Returns the law of a rule that is a function of the state, by following every completion in every order."""
    oracle, x, points, log_p = _completions(case.denoiser, case.x)
    masked = x == case.denoiser.mask_id
    sized, masks = getattr(rule.budget, "group_sizes", None), int(masked.sum())
    if rule.order.random and (sized is not None or masks > _FEW):
        if isinstance(case.denoiser, Oracle) and log_p is not None and case.own and case.blocks is None and rule.blind:
            return _subset_law(case.denoiser, rule, x, points, log_p)
        if sized is not None or masks > _ORDERS:
            raise ValueError(
                f"the law of a time grid, or of a random order of more than {_ORDERS} masks, is computed for an oracle"
                " at temperature 1 without truncation or blocks, and a rule that does not depend on the marginals"
            )
    orders = _orders(masked, rule.order.random)
    walk = Walk(case.sampler, oracle, x, points, case.temperature, case.blocks)
    log_q = torch.full((len(points),), -torch.inf, dtype=torch.float64)
    totals = torch.zeros(5, dtype=torch.float64)  # bound, dependence, own NFE, data NFE, off-support mass
    weight = log_p if log_p is not None else torch.full_like(log_q, -math.log(max(1, len(points))))
    for part in orders.split(max(1, _ROWS // max(1, len(points)))):
        part_q, part_totals = walk.follow(part, weight)
        log_q = torch.logaddexp(log_q, part_q.logsumexp(0) - math.log(len(orders)))
        totals += part_totals / len(orders)
    bound, dependence, nfe, nfe_data, off = totals.tolist()
    compared = oracle is not None and log_p is not None
    bounded = oracle is not None and case.own and rule.predictor is None
    return Law(
        points=points,
        log_p=_known(log_p, log_q),
        log_q=log_q,
        off_support=off,
        bound=bound if bounded and getattr(rule.budget, "own_marginals", True) else math.nan,
        dependence=dependence if compared else math.nan,
        model_error=walk.divergence / len(orders) - dependence if compared else math.nan,
        nfe_mean=nfe,
        nfe_mean_data=nfe_data if compared else math.nan,
        evaluations_mean=nfe,
    )


def _known(log_p: Tensor | None, log_q: Tensor) -> Tensor:
    """Returns the data's log-probabilities, and NaN if they are not known."""
    return torch.full_like(log_q, torch.nan) if log_p is None else log_p


def _completions(denoiser: Denoiser, x: Tensor) -> tuple[Oracle | None, Tensor, Tensor, Tensor | None]:
    """Returns the oracle (if any), the sequence, its completions and their log-probabilities under the data."""
    x, mask = torch.as_tensor(x), denoiser.mask_id
    if x.ndim != 1 or x.dtype.is_floating_point or not bool(((x >= 0) & (x < denoiser.vocab_size)).all()):
        raise ValueError(
            f"x must be one sequence of token ids 0..{denoiser.vocab_size - 1}, got {x.dtype} {x.tolist()}"
        )
    oracle = denoiser.oracle if isinstance(denoiser, PerturbedDenoiser) else denoiser
    if isinstance(oracle, Oracle):
        return oracle, x, *oracle.completions(x)
    if mask != denoiser.vocab_size - 1:
        raise ValueError("the exact law of a denoiser that is not an oracle needs the mask token to be the last id")
    return None, x, enumerate_completions(x, mask, denoiser.vocab_size - 1), None


def _revisiting(case: _Case) -> Law:
    """Returns the law of a rule that masks again or overwrites; a correction starts from the law of the other rule."""
    rule: Any = case.sampler.rule
    _, x, points, log_p = _completions(case.denoiser, case.x)
    if rule.law is LawKind.CORRECTED:
        before = case.law_of(rule.rule)
        if before.off_support > 1e-12:
            raise ValueError(
                f"the law of {rule} is computed only if {rule.rule} never draws a sequence of probability zero"
            )
        q = corrected(case.sampler, rule, x, points, before.log_q.exp(), case.temperature)
        extra = rule.visits(int((x == case.denoiser.mask_id).sum()))
        found = Visited(q.log(), max(0.0, 1 - float(q.sum())), before.nfe_mean + extra, before.evaluations_mean + extra)
    else:
        found = visited_law(case.sampler, x, points, case.temperature, case.blocks)
    return Law(
        points=points,
        log_p=_known(log_p, found.log_q),
        log_q=found.log_q,
        off_support=found.off_support,
        nfe_mean=found.nfe,
        evaluations_mean=found.states,
    )


def _orders(masked: Tensor, random: bool) -> Float[Tensor, "orders length"]:
    """Returns a row of noise for each order of the masked positions; only one row if the order is not random."""
    where = masked.nonzero().squeeze(-1)
    if not random:
        return torch.zeros(1, len(masked), dtype=torch.float64)
    ranks = torch.tensor(list(itertools.permutations(range(len(where)))), dtype=torch.float64)
    noise = torch.zeros(len(ranks), len(masked), dtype=torch.float64)
    noise[:, where] = ranks / max(1, len(where))
    return noise


def _subset_law(oracle: Oracle, rule: Rule, x: Tensor, points: Tensor, log_p: Tensor) -> Law:
    """Returns the law of a uniform order with a budget that ignores the marginals.

    For Sudoku grids, only one completion of each symmetry class is followed.
    """
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
