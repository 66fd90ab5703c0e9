"""Which positions come first. An order gives each position a key; the position with the lowest key is unmasked first.

The EB-Sampler paper calls this key the *error proxy*. In every order, of two equal keys the lower position goes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..sampling.view import View


@runtime_checkable
class Order(Protocol):
    """Ranks candidates by a key; positions that are not candidates may get any key.

    Attributes:
        random: True if the key is a function of `view.noise`, so that the law of a sampler is an average over it.
        marginal_free: True if the key does not look at the marginals.
    """

    random: ClassVar[bool]
    marginal_free: ClassVar[bool]

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        """Returns a number for each position; among candidates the lowest is unmasked first."""
        ...


@dataclass(frozen=True)
class Entropy:
    """Lowest entropy first (arXiv:2505.24857, the entropy proxy)."""

    random: ClassVar[bool] = False
    marginal_free: ClassVar[bool] = False

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        return view.entropy


@dataclass(frozen=True)
class Determined:
    """First the positions with at most `floor` nats of entropy, from left to right; then lowest entropy first.

    Among nearly determined positions, which one has the lowest entropy is noise and changes with every token. Here they
    count as equal, so the order stays the same while there are any, and a draft of it can be kept (see `Speculative`).

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
    """Highest entropy first: the positions farthest from everything known, which tell the most about the rest.

    One at a time, this is the worst order for a model that errs where it is uncertain. With a budget that prices
    dependence it halves the gaps of a Markov chain again and again: `⌈log₂ L⌉ + 1` evaluations and no error.
    """

    random: ClassVar[bool] = False
    marginal_free: ClassVar[bool] = False

    def key(self, view: View) -> Float[Tensor, "batch length"]:
        return -view.entropy


@dataclass(frozen=True)
class Confidence:
    """Largest `max p` first (MaskGIT, LLaDA). The key `1 - max p` tells apart probabilities that would round to 1."""

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
