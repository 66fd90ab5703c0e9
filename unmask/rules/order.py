"""Which positions come first. An order turns a view into one key per position: the lowest is unmasked first.

The key of an order is the *error proxy* of the EB-Sampler paper. Ties, of any order, go to the lower position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..sampling.view import View


@runtime_checkable
class Order(Protocol):
    """Ranks candidates by a key; positions that are no candidates may get any key.

    Attributes:
        random: True if the key is a function of `view.noise`, so that the law of a sampler is an average over it.
        marginal_free: True if the key does not look at the marginals.
    """

    random: ClassVar[bool]
    marginal_free: ClassVar[bool]

    def key(self, view: View) -> Float[Tensor, "batch length"]: ...


@dataclass(frozen=True)
class Entropy:
    """Lowest entropy first (arXiv:2505.24857, the entropy proxy)."""

    random: ClassVar[bool] = False
    marginal_free: ClassVar[bool] = False

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        return view.entropy


@dataclass(frozen=True)
class Determined:
    """What is determined up to `floor` nats first, from left to right; then lowest entropy first.

    Which of several nearly determined positions has the lowest entropy is noise, and changes with every token. Here
    they tie, so the order stands still while there are any: a draft of it comes true (see `Speculative`).

    Raises:
        ValueError: If `floor` is not a finite number >= 0.
    """

    floor: float
    random: ClassVar[bool] = False
    marginal_free: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.floor < float("inf"):
            raise ValueError(f"floor must be a finite number of nats >= 0, got {self.floor}")

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        return view.entropy.clamp(min=self.floor)


@dataclass(frozen=True)
class HighEntropy:
    """Highest entropy first: what is farthest from everything known, and tells the most about the rest.

    One at a time it is the worst of orders for a model that errs where it is uncertain. Together with a budget that
    prices dependence it halves the gaps of a Markov chain: `⌈log₂ L⌉ + 1` evaluations and no error.
    """

    random: ClassVar[bool] = False
    marginal_free: ClassVar[bool] = False

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        return -view.entropy


@dataclass(frozen=True)
class Confidence:
    """Largest `max p` first, ranked by `1 - max p`, which tells apart what rounds to 1 (MaskGIT, LLaDA)."""

    random: ClassVar[bool] = False
    marginal_free: ClassVar[bool] = False

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        return view.doubt


@dataclass(frozen=True)
class Margin:
    """Largest difference between the two largest probabilities first (arXiv:2502.06768, top-k margin)."""

    random: ClassVar[bool] = False
    marginal_free: ClassVar[bool] = False

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        return view.closeness


@dataclass(frozen=True)
class Uniform:
    """Uniformly random order, drawn once per sequence from its own stream: the order of first-hitting times."""

    random: ClassVar[bool] = True
    marginal_free: ClassVar[bool] = True

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        # First-hitting times decrease with 1 - u, and the latest time is hit first; here the smallest u is first.
        return view.noise


@dataclass(frozen=True)
class LeftToRight:
    """Lowest position first: autoregressive decoding."""

    random: ClassVar[bool] = False
    marginal_free: ClassVar[bool] = True

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        return view.position.to(view.noise.dtype)
