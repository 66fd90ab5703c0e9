"""What the tasks share: the names of splits, random numbers that belong to an example, prompts from examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..draws.streams import derive
from .task import Examples

SPLITS = ("train", "validation", "test")
ENDLESS = 2**31
"""Length of a split that is generated example by example."""

MASK_SIGN = "□"
"""How the tasks that are text show a mask."""

_WORD = 0xFFFFFFFFFFFFFFFF
_Item = TypeVar("_Item")


def check_split(split: str) -> str:
    """Returns the name of a split.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    return split


def check_index(index: int, length: int) -> int:
    """Returns the index of an example; a negative one counts from the end.

    Raises:
        IndexError: If there is no such example; it ends a loop over the examples.
    """
    if not -length <= index < length:
        raise IndexError(f"example {index} of {length}")
    return index % length


def check_whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Returns a setting that must be a whole number.

    Raises:
        ValueError: If it is not one, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {value!r}")
    return value


class Draws:
    """Random integers of one example: SplitMix64, seeded by `streams.derive` of the labels given.

    The numbers depend on nothing but the labels, whatever the platform, the Python version or the order of examples.

    References:
        Steele, Lea, Flood (2014), "Fast splittable pseudorandom number generators".
    """

    def __init__(self, seed: int, *labels: int | str) -> None:
        self.state = derive(seed, *labels)

    def below(self, n: int) -> int:
        """Returns a uniform integer in `0 .. n - 1`, for `n` up to 2^32; the bias is below n · 2^-64."""
        self.state = z = (self.state + 0x9E3779B97F4A7C15) & _WORD
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
        return ((z ^ (z >> 31)) * n) >> 64

    def pick(self, items: Sequence[_Item]) -> _Item:
        """Returns one of the items, each as likely."""
        return items[self.below(len(items))]

    def sample(self, n: int, k: int) -> list[int]:
        """Returns `k` different integers of `0 .. n - 1` in random order, each choice as likely."""
        pool = list(range(n))
        for i in range(k):
            j = i + self.below(n - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]


def stack(examples: Examples, limit: int) -> tuple[Int[Tensor, "examples length"], Bool[Tensor, "examples length"]]:
    """Stacks the first examples, and which of their tokens may be masked.

    Raises:
        ValueError: If `limit` is below 1.
    """
    check_whole("limit", limit, 1)
    pairs = [examples[index] for index in range(min(limit, len(examples)))]
    return torch.stack([tokens for tokens, _ in pairs]), torch.stack([maskable for _, maskable in pairs])
