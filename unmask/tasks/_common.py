"""What the tasks share: the names of the splits, random numbers for each example, and the masking of examples."""

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
"""The splits of the tasks for models that others trained."""

ENDLESS = 2**31
"""Number of examples of a split whose examples are generated."""

MASK_SIGN = "□"
"""The character for a mask, in the tasks that show sequences as text."""

_WORD = 0xFFFFFFFFFFFFFFFF
_Item = TypeVar("_Item")


def check_split(split: str, splits: Sequence[str] = SPLITS) -> str:
    """Returns the name of a split, checked.

    Args:
        split: The name.
        splits: The splits that there are.

    Raises:
        ValueError: If there is no such split.
    """
    if split not in splits:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(splits)}")
    return split


def check_index(index: int, length: int) -> int:
    """Returns the index of an example in `0 .. length - 1`; a negative index counts from the end.

    Args:
        index: The index.
        length: Number of examples.

    Raises:
        IndexError: If there is no such example. This also ends a `for` loop over the examples.
    """
    if not -length <= index < length:
        raise IndexError(f"example {index} of {length}")
    return index % length


class Draws:
    """Random integers for one example, from SplitMix64 seeded with `unmask.draws.streams.derive`.

    They depend only on the seed and the labels, not on the platform, the Python version or the order of the examples.

    Args:
        seed: The seed.
        *labels: What the numbers are for, such as the task, the split and the index of the example.

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
        """Returns one of the items, all with equal probability."""
        return items[self.below(len(items))]

    def sample(self, n: int, k: int) -> list[int]:
        """Returns `k` different integers of `0 .. n - 1` in random order, all choices with equal probability."""
        pool = list(range(n))
        for i in range(k):
            j = i + self.below(n - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]


def stack(examples: Examples, limit: int) -> tuple[Int[Tensor, "examples length"], Bool[Tensor, "examples length"]]:
    """Returns the first examples as one tensor, and which of their tokens may be masked.

    Args:
        examples: The examples.
        limit: How many of them; if there are fewer, all.

    Raises:
        ValueError: If `limit` is below 1.
    """
    whole("limit", limit, 1)
    pairs = [examples[index] for index in range(min(limit, len(examples)))]
    return torch.stack([tokens for tokens, _ in pairs]), torch.stack([maskable for _, maskable in pairs])


def gaps(length: int, count: int, span: int, draws: Draws) -> Bool[Tensor, " length"]:
    """Masks `count` spans at random positions, with at least one position between any two that is not masked.

    Args:
        length: Length of the sequence.
        count: Number of spans.
        span: Positions per span.
        draws: The random numbers.

    Returns:
        True where masked. All possible choices have equal probability.

    Raises:
        ValueError: If the spans do not fit.
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
    """Returns the share of the masked tokens of each prompt that were recovered; a remaining mask counts as wrong."""
    masked = prompts.tokens == mask_id
    return (masked & (tokens == prompts.answers)).sum(1).double() / masked.sum(1)
