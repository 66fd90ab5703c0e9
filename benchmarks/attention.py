r"""Attention as a price of dependence, beside the averaged profile: for docs/dependence.md.

    python -m benchmarks.attention [MODEL ...]            # measure what has no figures yet, then the page
    python -m benchmarks.attention --again MODEL ...      # measure them again
    python -m benchmarks.attention render                 # the page's tables, from the saved figures

**The question.** Drawing `x_i` and `x_j` together loses `I(x_i; x_j | context)` nats. A profile has its mean over
contexts, by class of pair. Attention `A^{lh}_ij` (layer `l`, head `h`: how much position `i` looks at `j`) is of the
context at hand, and comes with the evaluation. Is it a better price?

**Prices.** All are shares of the smaller entropy, which bounds the information (`H = min(H_i, H_j)`, in nats):

    price_ij = H · Σ_lh w_lh · (A^{lh}_ij + A^{lh}_ji) / 2,    w_lh >= 0.

With one weight for all heads of the last layer, of the last quarter of the layers, or of all, it is one regression
through the origin, `w = Σ movement / Σ H A`, as a profile's own means are ratios. With a weight per head, the weights
maximise the quasi-Poisson likelihood `Σ movement log price - price`, by the multiplicative (EM) updates of Lee and
Seung, which keep them non-negative and the totals right. The last price has a weight for the profile `P_ij` and for
every product `P_ij A^{lh}_ij`, too. Weights are fitted on validation contexts, and figures are of test contexts.

**What is measured**, as in `measure_profile`: mask `n ~ U{2..L}` tokens of a sequence at random, and for a masked `j`
draw `x_j ~ p_j` and evaluate again; `KL(p_i(· | x_j) ‖ p_i)` is an unbiased estimate of the information under the
model. On test contexts four values are averaged. Their noise limits the correlation that any price can have: to
`√(2r/(1+r))`, if `r` is that of the means of two and two.

**The frontier.** Sequences of the test split are sampled along their own tokens: a rule chooses what to draw together,
and the data's tokens are written. `-Σ log p_i(x_i)` is the log-loss of the sampler, whose mean is the data's entropy
plus `KL(data ‖ sampler)` along the rule's path; the same streams pair the rules.

Nothing is guaranteed of such a price: attention is no bound on influence. What `i` attends to may pass through other
positions, and what it looks at hardly may decide it.

References:
    Kim et al. (2026), arXiv:2603.12996, DAPD: attention between masked positions as a graph, of which an independent
    set is unmasked. Sahin et al. (2026), arXiv:2606.10829, ADAS: a candidate is discounted by its attention to those
    selected before it. Lee and Seung (2001), Algorithms for non-negative matrix factorization.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask import DependenceBound, Entropy, One, Rule, Sampler, Uniform
from unmask.denoiser import NetworkDenoiser, Query
from unmask.draws.categorical import divergence, draw, forbid, marginals
from unmask.evaluation.runner import mean_ci95
from unmask.models.networks.transformer import Block
from unmask.models.registry import load
from unmask.rules.dependence import Pairs
from unmask.rules.profile import Profile, load_profile
from unmask.sampling.view import View, spread
from unmask.tasks.of_model import task_of
from unmask.tasks.task import Foreign, Task, own_lengths
from unmask.viewing.progress import progress

from .frontier_page import evaluations_for, hull
from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "attention.json"
PAGE = ROOT / "docs" / "dependence.md"

MODELS = ("text", "sapiens-vh", "rxnmapper", "maze-loops", "maze", "working", "arithmetic", "chat", "sapiens-vl")
"""The embedded models with attention: that of Sudoku passes messages along units, that of music is convolutional."""
CONTEXTS = {"validation": 300, "test": 200}
POSITIONS, DRAWS = 4, {"validation": 1, "test": 4}
"""Masked positions drawn in each context, and how often."""
LEAST_PAIRS, LEAST_NATS = 8, 1e-4
"""A context counts if it has so many pairs, which depend on each other so much on average."""
SEQUENCES = {"text": 64, "rxnmapper": 48, "sapiens-vh": 48, "sapiens-vl": 64, "maze-loops": 32}
"""Sequences of the frontier, where they are not `MOST`."""
MOST = 100
GAMMAS = (0.03, 0.1, 0.3, 1.0)
LEVELS = (0.03, 0.1, 0.3)
"""The γ of the profile at whose loss the others are compared."""
FEWEST = 2
"""Evaluations with fewer than which there is nothing to compare."""
ENTROPIES, PROFILE = "entropies", "profile"
PRICES = (ENTROPIES, PROFILE, "last layer", "last quarter", "all layers", "each head", "profile and heads")
SAMPLED = (PROFILE, "all layers", "profile and heads")
"""The prices whose frontier is measured."""
STEPS, RESAMPLES = 300, 1000


class Watched(NetworkDenoiser):
    """A denoiser that remembers its last query and logits, and the attention of every sequence of it.

    Sequences are evaluated one by one. Attention is symmetric here: the mean of looking and being looked at.

    Attributes:
        looking: Whether attention is wanted, which takes time.
        query: The last query.
        logits: The answer to it.
        seen: The attention of each sequence, of all heads of all layers in order.

    Args:
        inner: A denoiser with an attention network: a `Transformer`, or a model of the Transformers library.

    Raises:
        ValueError: If the network does not give attention weights.
    """

    def __init__(self, inner: NetworkDenoiser) -> None:
        super().__init__(inner.network, inner.vocab_size, inner.mask_id, inner.length)
        self.inner = inner
        self.looking = True
        self.query: Query | None = None
        self.logits = torch.zeros(0)
        self.seen: list[Float[Tensor, "heads length length"]] = []
        self._watched = [module for module in inner.network.modules() if isinstance(module, Block)]
        model = getattr(inner.network, "model", None)
        if model is not None:
            # The library's own record (output_attentions) grows with every evaluation in release 5.23.
            model.set_attn_implementation("eager")
            named = [part for part in model.modules() if type(part).__name__.endswith("Attention")]
            self._watched = [part for part in named if not any(other in named for other in list(part.modules())[1:])]
            self.layers: int = model.config.num_hidden_layers
        elif self._watched:
            self.layers = inner.network.config.depth  # pyright: ignore[reportAttributeAccessIssue]
        else:
            raise ValueError(f"{type(inner.network).__name__} has no attention")

    def evaluate(self, query: Query) -> Float[Tensor, "rows vocab"]:
        self.query, self.seen = query, []
        if not self.looking:
            self.logits = self.inner(query)
            return self.logits
        found = []
        for row, length in enumerate(query.valid.sum(-1).tolist()):
            with self._watching() as layers:
                found.append(self.inner(query.alone(row, length)))
            heads = torch.cat(layers[-self.layers :])  # before them, a model of the library may be tested
            given = length - heads.shape[-1]  # tokens of other channels, which share the cells of the grid
            heads = torch.nn.functional.pad((heads + heads.transpose(1, 2)) / 2, (given, 0, given, 0))
            self.seen.append(heads)
        self.logits = torch.cat(found)
        return self.logits

    @contextmanager
    def _watching(self) -> Iterator[list[Float[Tensor, "heads cells cells"]]]:
        """Collects the attention of each layer of one sequence, in order."""
        layers: list[Tensor] = []

        def see(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            weights = module.attention(*inputs)[0] if isinstance(module, Block) else output[1]
            layers.append(weights[0])

        hooks = [module.register_forward_hook(see) for module in self._watched]
        try:
            yield layers
        finally:
            for hook in hooks:
                hook.remove()


@dataclass(frozen=True)
class Weights:
    """The weights of a price `H (base + Σ w A) + P (profile + Σ v A)`, by head: `P` is the profile's price.

    Attributes:
        base: Of the smaller entropy.
        heads: Of attention times the smaller entropy.
        profile: Of the profile's price.
        products: Of attention times the profile's price.
    """

    base: float
    heads: Float[Tensor, " heads"]
    profile: float = 0.0
    products: Float[Tensor, " heads"] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The weights as plain data."""
        products = None if self.products is None else self.products.tolist()
        return {"base": self.base, "heads": self.heads.tolist(), "profile": self.profile, "products": products}

    @staticmethod
    def of(saved: dict[str, Any]) -> Weights:
        """The weights that were saved as plain data."""
        heads, products = (
            None if saved[name] is None else torch.tensor(saved[name], dtype=torch.float64)
            for name in ("heads", "products")
        )
        assert heads is not None
        return Weights(saved["base"], heads, saved["profile"], products)

    def factors(self, heads: Float[Tensor, "heads *pairs"]) -> tuple[Float[Tensor, "*pairs"], Float[Tensor, "*pairs"]]:
        """Returns what the smaller entropy and the profile's price are multiplied by."""
        times_profile = torch.zeros_like(heads[0]) + self.profile
        if self.products is not None:
            times_profile = times_profile + torch.einsum("h,h...->...", self.products, heads)
        return self.base + torch.einsum("h,h...->...", self.heads, heads), times_profile


@dataclass(frozen=True)
class Observed:
    """Measured influence between masked positions, a row per pair.

    Attributes:
        context: The number of the context.
        heads: Attention between the two, symmetric.
        smaller: The smaller entropy of the two, in nats.
        profile: What the profile charges, in nats.
        moved: `KL(p_i(· | x_j) ‖ p_i)` for each draw of `x_j`, in nats.
    """

    context: Int[Tensor, " pairs"]
    heads: Float[Tensor, "heads pairs"]
    smaller: Float[Tensor, " pairs"]
    profile: Float[Tensor, " pairs"]
    moved: Float[Tensor, "draws pairs"]

    def price(self, weights: Weights) -> Float[Tensor, " pairs"]:
        """What weights charge, at most the smaller entropy."""
        times_smaller, times_profile = weights.factors(self.heads)
        return torch.minimum(times_smaller * self.smaller + times_profile * self.profile, self.smaller)


def sequences_of(task: Task, split: str, count: int) -> list[tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]]:
    """Sequences of a split and where they may be masked, without padding."""
    examples = task.examples(split)
    found = [examples[number] for number in range(min(count, len(examples)))]
    if not isinstance(task, Foreign):
        return found
    rows, free = own_lengths(task, torch.stack([x for x, _ in found]))
    return [(row, mask[: len(row)]) for row, mask in zip(rows, free, strict=True)]


@torch.no_grad()
def observe(
    watched: Watched, task: Task, profile: Profile, split: str, count: int, on_context: Callable[[], None]
) -> Observed:
    """Measures influence and attention in contexts of a split."""
    generator = torch.Generator().manual_seed(0)
    rows: list[tuple[Tensor, ...]] = []
    sequences = sequences_of(task, split, count)
    for number in range(count):
        x, free = sequences[number % len(sequences)]
        places = free.nonzero().squeeze(-1)
        masks = int(torch.randint(2, len(places) + 1, (1,), generator=generator))
        places = places[torch.randperm(len(places), generator=generator)[:masks]]
        found = influences(watched, x, places, profile, DRAWS[split], generator)
        rows += [(torch.tensor(number), *row) for row in found]
        on_context()
    context = torch.cat([number.expand(len(smaller)) for number, _, smaller, _, _ in rows])
    heads, smaller, prices, moved = (torch.cat(column, -1) for column in zip(*(row[1:] for row in rows), strict=True))
    return Observed(context, heads, smaller, prices, moved)


def influences(
    watched: Watched, x: Tensor, places: Tensor, profile: Profile, draws: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Attention, smaller entropies, the profile's prices, and movements of one context, a drawn position at a time."""
    mask_id = watched.mask_id
    masked = torch.zeros_like(x, dtype=torch.bool).index_fill(0, places, True)
    context = x.masked_fill(masked, mask_id)
    before = watched(Query(context[None], masked[None], torch.ones_like(masked)[None], torch.zeros(1).long()))
    heads = watched.seen[0].double()
    stats = marginals(before, [mask_id])
    blank = torch.zeros(1, len(x), dtype=torch.float64)
    view = View.blank(masked[None], blank, blank[:, :0], masked[None], ~masked[None]).measured(stats)
    entropy = spread(stats.entropy.double(), masked, 0.0)
    rule = DependenceBound(1.0, profile)
    for j in places[:POSITIONS].tolist():
        price = rule.pairs(view).admit(torch.tensor([[j]]))[0]
        own = torch.zeros_like(masked).index_fill(0, torch.tensor(j), True)
        token = draw(
            forbid(before[own[masked]], [mask_id]).expand(draws, -1),
            torch.rand(draws, dtype=torch.float64, generator=generator),
        )
        filled = context.repeat(draws, 1)
        filled[:, j] = token
        rest = masked & ~own
        where = rest.expand(draws, -1)
        after = watched.inner(Query(filled, where, torch.ones_like(where), torch.arange(draws)))
        moved = divergence(after, before[rest[masked]].repeat(draws, 1), [mask_id]).view(draws, -1)
        yield heads[:, rest, j], torch.minimum(entropy[rest], entropy[j]), price[rest], moved


def fitted(seen: Observed, layers: int) -> dict[str, Weights]:
    """The weights of every price, from observations of validation contexts."""
    heads = seen.heads
    target = seen.moved.mean(0)
    per_layer = len(heads) // layers
    nothing = torch.zeros(len(heads), dtype=torch.float64)

    def of_layers(count: int) -> Weights:
        chosen = nothing.clone()
        chosen[-count * per_layer :] = 1.0
        scale = target.sum() / (seen.smaller * (chosen @ heads)).sum()
        return Weights(0.0, chosen * scale)

    alone = torch.cat([seen.smaller[None], seen.smaller * heads])
    single = non_negative(alone, target)
    both = non_negative(torch.cat([alone, seen.profile[None], seen.profile * heads]), target)
    size = len(heads) + 1
    return {
        ENTROPIES: Weights(float(target.sum() / seen.smaller.sum()), nothing),
        PROFILE: Weights(0.0, nothing, 1.0),
        "last layer": of_layers(1),
        "last quarter": of_layers(math.ceil(layers / 4)),
        "all layers": of_layers(layers),
        "each head": Weights(float(single[0]), single[1:]),
        "profile and heads": Weights(float(both[0]), both[1:size], float(both[size]), both[size + 1 :]),
    }


def non_negative(
    features: Float[Tensor, "features pairs"], target: Float[Tensor, " pairs"]
) -> Float[Tensor, " features"]:
    """Returns the weights `w >= 0` that maximise `Σ target log(w · features) - w · features`."""
    total = features.sum(1).clamp(min=1e-300)
    weights = target.sum() / len(features) / total
    for _ in range(STEPS):
        expected = (weights @ features).clamp(min=1e-300)
        weights = weights * (features @ (target / expected)) / total
    return weights


def correlation(one: Float[Tensor, " pairs"], other: Float[Tensor, " pairs"]) -> float:
    """Pearson's; 0 where one of the two is the same everywhere, and so tells nothing."""
    a, b = one.double() - one.double().mean(), other.double() - other.double().mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else 0.0


def ranks(values: Float[Tensor, " pairs"]) -> Float[Tensor, " pairs"]:
    """Ranks, equal values sharing the mean of theirs."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts.double() - 1) / 2)[inverse]


def compared(seen: Observed, weights: dict[str, Weights]) -> dict[str, Any]:
    """How each price goes along with measured influence, within contexts, and how far it is from the profile."""
    moved = seen.moved.mean(0)
    prices = {name: seen.price(each) for name, each in weights.items()}
    halves = seen.moved[::2].mean(0), seen.moved[1::2].mean(0)
    parts = [seen.context == number for number in seen.context.unique().tolist()]
    parts = [part for part in parts if int(part.sum()) >= LEAST_PAIRS and float(moved[part].mean()) >= LEAST_NATS]
    kinds: dict[str, Callable[[Tensor], Tensor]] = {"pearson": lambda values: values, "rank": ranks}
    found: dict[str, Any] = {"contexts": len(parts), "pairs": int(sum(part.sum() for part in parts))}
    for kind, shown in kinds.items():
        of = {
            name: torch.tensor([correlation(shown(price[part]), shown(moved[part])) for part in parts])
            for name, price in prices.items()
        }
        half = torch.tensor([correlation(shown(halves[0][part]), shown(halves[1][part])) for part in parts])
        r = float(half.mean())
        found[kind] = {
            "most": math.sqrt(max(0.0, 2 * r / (1 + r))),
            "prices": {name: mean_ci95(values) for name, values in of.items()},
            "to_profile": {name: mean_ci95(values - of[PROFILE]) for name, values in of.items()},
        }
    found["charged"] = {name: float(price.sum() / moved.sum()) for name, price in prices.items()}
    return found


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


def opened(name: str) -> tuple[Watched, Task, Profile]:
    """An embedded model, its task and its profile; texts are written from nothing."""
    task = task_of(name, **({"gaps": "free"} if name == "text" else {}))
    return Watched(load(name)), task, load_profile(name)


def correlations(name: str) -> dict[str, Any]:
    """Fits the weights of one model on validation contexts, and compares the prices on test contexts."""
    started = time.process_time()
    watched, task, profile = opened(name)
    with progress(note=True) as bar:
        job = bar.add_task(f"{name}, contexts", total=sum(CONTEXTS.values()), note="")
        seen = {
            split: observe(watched, task, profile, split, count, lambda: bar.advance(job))
            for split, count in CONTEXTS.items()
        }
    weights = fitted(seen["validation"], watched.layers)
    report: dict[str, Any] = {"layers": watched.layers, "heads": len(watched.seen[0]) // watched.layers}
    report |= compared(seen["test"], weights)
    report["weights"] = {price: each.as_dict() for price, each in weights.items()}
    return report | {"seconds": round(time.process_time() - started)}


def sampled(name: str, fitted: dict[str, Any]) -> dict[str, Any]:
    """The frontier of one model, with weights that were fitted before."""
    started = time.process_time()
    weights = {price: Weights.of(fitted[price]) for price in SAMPLED}
    with progress(note=True) as bar:
        job = bar.add_task(f"{name}, samplers", total=1 + len(SAMPLED) * len(GAMMAS), note="")
        found = frontier(name, *opened(name), weights, lambda: bar.advance(job))
    return found | {"seconds": round(time.process_time() - started)}


def correlation_table(models: dict[str, Any], kind: str) -> str:
    """Correlations within contexts, as Markdown."""
    title = "Pearson" if kind == "pearson" else "rank correlation"
    lines = [f"| {title} | contexts | most | " + " | ".join(PRICES) + " |", "|---|" + "---:|" * (len(PRICES) + 2)]
    for name, found in models.items():
        of = found[kind]
        cells = [f"{mean:.2f} ± {ci95:.2f}" for mean, ci95 in (of["prices"][price] for price in PRICES)]
        lines.append(f"| {name} | {found['contexts']} | {of['most']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference_table(models: dict[str, Any]) -> str:
    """Paired differences of the correlations to the profile's, as Markdown."""
    others = [price for price in PRICES if price != PROFILE]
    lines = ["| less the profile's, Pearson; rank | " + " | ".join(others) + " |", "|---|" + "---:|" * len(others)]
    for name, found in models.items():
        cells = []
        for price in others:
            (a, da), (b, db) = (found[kind]["to_profile"][price] for kind in ("pearson", "rank"))
            cells.append(f"{a:+.2f} ± {da:.2f}; {b:+.2f} ± {db:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def frontier_table(models: dict[str, Any]) -> str:
    """Evaluations at equal loss, over the profile's, as Markdown."""
    lines = [
        "| model | sequences | γ of the profile | its NFE | its loss | " + " | ".join(SAMPLED) + " |",
        "|---|" + "---:|" * (len(SAMPLED) + 4),
    ]
    for name, found in models.items():
        for gamma, at in found["at_equal_loss"].items():
            if at["nfe"] < FEWEST:
                continue
            cells = [at["ratios"][price] for price in SAMPLED]
            shown = [f"{ratio:.2f} ({low:.2f} – {high:.2f})".replace("inf", "∞") for ratio, low, high in cells]
            start = f"| {name} | {found['sequences']} | {gamma} | {at['nfe']:.1f} | {at['loss']:+.3f} | "
            lines.append(start + " | ".join(shown) + " |")
    few = [name for name, found in models.items() if all(at["nfe"] < FEWEST for at in found["at_equal_loss"].values())]
    if few:
        lines.append(f"\nWith its profile each of {', '.join(few)} takes fewer than {FEWEST} evaluations anyway.")
    return "\n".join(lines)


def render() -> None:
    """Puts the tables of the saved figures into the page."""
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    parts = {
        part: {name: report[part][name] for name in MODELS if name in report[part]}
        for part in ("correlations", "frontier")
    }
    seconds = sum(found["seconds"] for part in parts.values() for found in part.values())
    foot = (
        f"`python -m benchmarks.attention`, torch {report['torch']}, {seconds:,} s of one core;"
        f" {CONTEXTS['validation']} validation and {CONTEXTS['test']} test contexts a model, of which those count that"
        f" have at least {LEAST_PAIRS} pairs with a mean influence of at least {LEAST_NATS:g} nats."
    )
    measured = parts["correlations"]
    shown = [correlation_table(measured, "pearson"), correlation_table(measured, "rank"), difference_table(measured)]
    tables = {
        "attention": "\n\n".join([*shown, foot]),
        "attention-frontier": frontier_table(parts["frontier"]),
    }
    fill(PAGE, tables)


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="of the embedded ones; default: all; or `render`")
    parser.add_argument("--again", action="store_true", help="measure what has figures, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [] if given.models == ["render"] else given.models or list(MODELS)
    report: dict[str, Any] = {"torch": torch.__version__, "correlations": {}, "frontier": {}}
    if RESULTS.exists():
        report = json.loads(RESULTS.read_text(encoding="utf-8"))
    for part in ("correlations", "frontier"):
        for name in names:
            if given.again or name not in report[part]:
                measured = report["correlations"]
                found = correlations(name) if part == "correlations" else sampled(name, measured[name]["weights"])
                report[part][name] = found
                RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    render()


if __name__ == "__main__":
    main()
