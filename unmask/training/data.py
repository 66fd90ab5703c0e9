"""The training data of a run: which examples are in each step, and which of their tokens are masked.

All of it is a function of the seed and of the position in the run; nothing is drawn from a global generator. So a
resumed run gets the same batches as an uninterrupted one, and several processes together get those of a single one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.data import Dataset

from ..draws.streams import Purpose, as_streams, derive, uniforms
from ..schedule import Schedule
from ..tasks.task import Examples

Objective = Literal["masked", "causal"]

_WORD = 0xFFFFFFFFFFFFFFFF


class Item(TypedDict):
    """An example at its position in the run.

    `maskable` is True where a token may be masked. `stream` and `stratum` determine the masks, see `Course`.
    """

    tokens: Int[Tensor, " length"]
    maskable: Bool[Tensor, " length"]
    stream: int
    stratum: int


class Batch(TypedDict):
    """The arguments of one call of the loss.

    `x` are the tokens with masks, `where` is True at the positions to predict, `answers` are the tokens without masks,
    and `time` is the diffusion time of each sequence.
    """

    x: Int[Tensor, "batch length"]
    where: Bool[Tensor, "batch length"]
    answers: Int[Tensor, "batch length"]
    time: Float[Tensor, " batch"]


class Course(Dataset[Item]):
    """The examples of a whole run in training order: `steps * batch_size` of them.

    Every epoch goes through all examples in another order, a keyed permutation that takes no memory however many
    examples there are. Item `i` belongs to step `i // batch_size`, and has a stream of random numbers that is a
    function of (seed, epoch, index of the example). Its stratum, one of `batch_size` equal parts of the range of mask
    counts, is assigned by a new permutation in each step.

    Args:
        examples: The training split.
        steps: Length of the run.
        batch_size: Sequences per step, over all processes and accumulated batches.
        seed: The seed of the order and the masks.
    """

    def __init__(self, examples: Examples, steps: int, batch_size: int, seed: int) -> None:
        self.examples, self.steps, self.batch_size, self.seed = examples, steps, batch_size, seed

    def __len__(self) -> int:
        return self.steps * self.batch_size

    def __getitem__(self, item: int) -> Item:
        step, slot = divmod(item, self.batch_size)
        epoch, place = divmod(item, len(self.examples))
        index = shuffled(place, len(self.examples), derive(self.seed, "order", epoch))
        tokens, maskable = self.examples[index]
        stream = derive(self.seed, "masks", epoch, index)
        stratum = shuffled(slot, self.batch_size, derive(self.seed, "strata", step))
        return Item(tokens=tokens, maskable=maskable, stream=stream, stratum=stratum)


@dataclass(frozen=True)
class Collator:
    """Stacks examples and masks them.

    For the masked objective, an example with `L` maskable tokens in stratum `s` of `B` gets
    `n = floor(L (s + u) / B) + 1` masks at uniformly random positions, with `u` uniform on `[0, 1)`. So the counts of a
    batch cover `1..L` evenly, and each of them is uniform on `1..L`. For the causal objective nothing is masked, and
    every maskable token is predicted.

    Attributes:
        mask_id: Id of the mask token.
        batch_size: Number of strata `B`: the sequences of a step, over all processes.
        objective: The training objective.
        schedule: The noise schedule: the time of a sequence with `n` masks is that at which the share `n/L` is masked.
    """

    mask_id: int
    batch_size: int
    objective: Objective
    schedule: Schedule

    def __call__(self, items: list[Item]) -> Batch:
        tokens = torch.stack([item["tokens"] for item in items])
        maskable = torch.stack([item["maskable"] for item in items])
        length = maskable.sum(1)
        if self.objective == "causal":
            return Batch(x=tokens, where=maskable, answers=tokens, time=torch.ones(len(tokens)))
        streams = as_streams(item["stream"] for item in items)
        stratum = torch.tensor([item["stratum"] for item in items])
        share = (stratum + uniforms(streams, torch.zeros_like(streams), Purpose.COUNT)) / self.batch_size
        count = (share * length).long().clamp(max=length - 1) + 1
        noise = uniforms(streams.unsqueeze(1), torch.arange(tokens.shape[1]), Purpose.MASK)
        rank = noise.masked_fill(~maskable, torch.inf).argsort(1).argsort(1)
        where = rank < count.unsqueeze(1)
        time = self.schedule.inverse(1 - count.double() / length).float()
        return Batch(x=torch.where(where, self.mask_id, tokens), where=where, answers=tokens, time=time)


def shuffled(index: int, size: int, key: int) -> int:
    """Returns the image of an index under a keyed pseudorandom permutation of `range(size)`.

    It is a Feistel network on the next power of four, applied again until its result lies in the range (cycle walking).

    Args:
        index: The index, in `range(size)`.
        size: Size of the range.
        key: The key, which selects the permutation.

    References:
        Black, Rogaway (2002), "Ciphers with arbitrary finite domains", the cycle-walking cipher.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for round_ in range(4):
            left, right = right, left ^ (_mixed(key + (round_ << half | right)) & low)
        index = left << half | right
        if index < size:
            return index


def _mixed(z: int) -> int:
    """Returns the output function of SplitMix64 (Steele, Lea, Flood, 2014) at `z` times its increment."""
    z = z * 0x9E3779B97F4A7C15 & _WORD
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _WORD
    return z ^ z >> 31
