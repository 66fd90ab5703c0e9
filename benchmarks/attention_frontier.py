"""What a dependence bound costs and loses with prices from attention, along the data's own tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unmask import DependenceBound, Entropy, One, Rule, Sampler, Uniform
from unmask.draws.categorical import forbid
from unmask.evaluation.runner import mean_ci95
from unmask.rules.dependence import Pairs
from unmask.rules.profile import Profile
from unmask.sampling.view import View, spread
from unmask.tasks.task import Foreign, Task

from .attention_prices import PROFILE, Watched, Weights
from .frontier_page import evaluations_for, hull

SEQUENCES = {"text": 64, "rxnmapper": 48, "sapiens-vh": 48, "sapiens-vl": 64, "maze-loops": 32}
"""Sequences of each model, where they are not `MOST`."""
MOST = 100
GAMMAS = (0.03, 0.1, 0.3, 1.0)
LEVELS = (0.03, 0.1, 0.3)
"""The γ of the profile at whose loss the others are compared."""
SAMPLED = (PROFILE, "all layers", "profile and heads")
"""The prices that are sampled with."""
RESAMPLES = 1000


@dataclass(frozen=True, eq=False)
class OfContext(DependenceBound):
    """The dependence bound whose prices come from the attention of the evaluation at hand.

    Attributes:
        watched: The denoiser that is sampled.
        weights: The weights of the price.
    """

    watched: Watched | None = field(default=None, repr=False)
    weights: Weights | None = field(default=None, repr=False)

    def pairs(self, view: View) -> Pairs:
        return _PairsOfContext(self, view)


class _PairsOfContext(Pairs):
    """Pairs charged by attention."""

    def __init__(self, rule: OfContext, view: View) -> None:
        super().__init__(rule, view)
        assert rule.watched is not None
        assert rule.weights is not None
        width = view.position.shape[1]
        self.factors = torch.zeros(2, len(view.position), width, width, dtype=torch.float64)
        for row, heads in enumerate(rule.watched.seen):
            n = heads.shape[-1]
            self.factors[0, row, :n, :n], self.factors[1, row, :n, :n] = rule.weights.factors(heads.double())

    def _pair(self, column: Tensor, place: Tensor) -> Float[Tensor, "batch length"]:
        row = torch.arange(len(place)).unsqueeze(-1)
        times_smaller, times_profile = self.factors[:, row, place, self.position]
        smaller = torch.minimum(self.entropy, self.entropy.gather(1, column))
        price = times_profile * super()._pair(column, place)
        return torch.minimum(price + times_smaller * smaller.nan_to_num(posinf=0.0), smaller)


def path_losses(
    watched: Watched, rule: Rule, prompts: list[Tensor], answers: list[Tensor]
) -> tuple[Float[Tensor, " sequences"], Float[Tensor, " sequences"]]:
    """Evaluations and log-loss, in nats, of each sequence along its own tokens (see the module)."""
    watched.looking = isinstance(rule.budget, OfContext)
    sampler = Sampler(watched, rule)
    state = sampler.start(prompts, seed=0)
    data = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True)
    nats = torch.zeros(len(data), dtype=torch.float64)
    while not bool(state.finished.all()):
        state, info = sampler.step(state)
        chosen = torch.zeros_like(state.pending)
        chosen[info.sequence] = info.chosen
        state = replace(state, x=torch.where(chosen, data, state.x))
        query = watched.query
        assert query is not None
        own, width = query.sequence, query.x.shape[1]
        log_p = forbid(watched.logits, [watched.mask_id]).double().log_softmax(-1)
        log_p = log_p.gather(-1, data[own, :width][query.where].unsqueeze(-1)).squeeze(-1)
        nats[own] -= (spread(log_p, query.where, 0.0) * chosen[own, :width]).sum(-1)
    return state.nfe.double(), nats


def frontier(
    name: str, watched: Watched, task: Task, profile: Profile, weights: dict[str, Weights], on_rule: Callable[[], None]
) -> dict[str, Any]:
    """Evaluations and losses of the dependence bound with each price, and the evaluations at equal loss."""
    prompts = task.prompts("test", SEQUENCES.get(name, MOST))
    answers, masked = prompts.answers, prompts.tokens
    pairs = list(zip(masked.unbind(), answers.unbind(), strict=True))
    if isinstance(task, Foreign):
        pairs = [(x[data != task.fill_id], data[data != task.fill_id]) for x, data in pairs]
    x, data = [one for one, _ in pairs], [other for _, other in pairs]
    tokens = float(sum((one == watched.mask_id).sum() for one in x)) / len(x)
    order = Uniform() if name == "text" else Entropy()
    base_nfe, base = path_losses(watched, Rule(order, One()), x, data)
    on_rule()
    found: dict[str, Tensor] = {}
    rows = []
    for price in SAMPLED:
        points = []
        for gamma in GAMMAS:
            bound = DependenceBound(gamma, profile)
            if price != PROFILE:
                bound = OfContext(gamma, profile, watched=watched, weights=weights[price])
            nfe, nats = path_losses(watched, Rule(order, bound), x, data)
            points.append(torch.stack([nfe, nats - base]))
            loss, ci95 = mean_ci95(nats - base)
            rows.append({"price": price, "gamma": gamma, "nfe": float(nfe.mean()), "loss": loss, "loss_ci95": ci95})
            on_rule()
        found[price] = torch.stack(points)
    return {
        "order": "uniform" if name == "text" else "entropy",
        "sequences": len(x),
        "masks": tokens,
        "one_at_a_time": {"nfe": float(base_nfe.mean()), "nats": float(base.mean())},
        "rows": rows,
        "at_equal_loss": {f"{gamma:g}": at_equal_loss(found, GAMMAS.index(gamma)) for gamma in LEVELS},
    }


def at_equal_loss(found: dict[str, Float[Tensor, "gammas 2 sequences"]], level: int) -> dict[str, Any]:
    """Evaluations of each price over the profile's, at the loss that the profile has at one γ, with 95 % of resamples.

    A price may mix two γ, as any sampler can; so may the profile, whose ratio is below 1 where that helps it. Where a
    price does not reach the loss with any γ, the ratio is infinite.
    """
    generator = torch.Generator().manual_seed(0)
    sequences = found[PROFILE].shape[-1]
    everything = torch.arange(sequences)

    def ratio(price: str, part: Tensor) -> float:
        def points(name: str) -> list[tuple[float, float]]:
            return [(float(n), float(loss)) for n, loss in found[name][..., part].mean(-1)]

        nfe, loss = points(PROFILE)[level]
        return evaluations_for(hull(points(price)), loss) / nfe

    draws = [torch.randint(sequences, (sequences,), generator=generator) for _ in range(RESAMPLES)]
    ratios = {}
    for price in found:
        values = sorted(ratio(price, part) for part in draws)
        ratios[price] = [ratio(price, everything), values[int(0.025 * RESAMPLES)], values[int(0.975 * RESAMPLES)]]
    nfe, loss = found[PROFILE][level].mean(-1).tolist()
    return {"nfe": nfe, "loss": loss, "ratios": ratios}
