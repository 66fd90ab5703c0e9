"""What the tasks share: the names of splits, random numbers that belong to an example, prompts from examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..draws.streams import derive
from .task import Examples, Prompts

SPLITS = ("train", "validation", "test")
HALVES = ("validation", "test")
"""The splits of data for models that others trained."""

ENDLESS = 2**31
"""Length of a split that is generated example by example."""

MASK_SIGN = "□"
"""How the tasks that are text show a mask."""

_WORD = 0xFFFFFFFFFFFFFFFF
_Item = TypeVar("_Item")


def check_split(split: str, splits: Sequence[str] = SPLITS) -> str:
    """Returns the name of a split.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in splits:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(splits)}")
    return split


def check_index(index: int, length: int) -> int:
    """Returns the index of an example; a negative one counts from the end.

    Raises:
        IndexError: If there is no such example; it ends a loop over the examples.
    """
    if not -length <= index < length:
        raise IndexError(f"example {index} of {length}")
    return index % length


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
    whole("limit", limit, 1)
    pairs = [examples[index] for index in range(min(limit, len(examples)))]
    return torch.stack([tokens for tokens, _ in pairs]), torch.stack([maskable for _, maskable in pairs])


def gaps(length: int, count: int, span: int, draws: Draws) -> Bool[Tensor, " length"]:
    """Masks `count` spans of `span` positions each at random places, with at least one shown position between any two.

    Raises:
        ValueError: If they do not fit.
    """
    shown = length - count * span
    if count > shown + 1:
        raise ValueError(f"{count} gaps of {span} with a shown token between any two do not fit into {length} tokens")
    # Choosing distinct slots among the shown positions keeps one between any two gaps.
    masked = torch.zeros(length, dtype=torch.bool)
    for number, slot in enumerate(sorted(draws.sample(shown + 1, count))):
        masked[slot + number * span : slot + (number + 1) * span] = True
    return masked


def recovered(prompts: Prompts, tokens: Int[Tensor, "prompts length"], mask_id: int) -> Float[Tensor, " prompts"]:
    """Returns the share of the masked tokens of each prompt that came back exactly; a mask that is left is wrong."""
    masked = prompts.tokens == mask_id
    return (masked & (tokens == prompts.answers)).sum(1).double() / masked.sum(1)
