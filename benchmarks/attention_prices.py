"""Prices of dependence from attention, and how they agree with measured influence (see `benchmarks.attention`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from unmask import DependenceBound
from unmask.denoiser import NetworkDenoiser, Query
from unmask.draws.categorical import divergence, draw, forbid, marginals
from unmask.evaluation.runner import mean_ci95
from unmask.models.networks.transformer import Block
from unmask.rules.profile import Profile
from unmask.sampling.view import View, spread
from unmask.tasks.task import Foreign, Task, own_lengths

POSITIONS, DRAWS = 4, {"validation": 1, "test": 4}
"""Masked positions drawn in each context, and how often."""
LEAST_PAIRS, LEAST_NATS = 8, 1e-4
"""A context counts if it has so many pairs, which depend on each other so much on average."""
ENTROPIES, PROFILE = "entropies", "profile"
PRICES = (ENTROPIES, PROFILE, "last layer", "last quarter", "all layers", "each head", "profile and heads")
STEPS = 300
"""Updates of the weights."""


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
