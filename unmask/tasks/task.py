"""What a task is: examples to train on, prompts with masks to complete, and a score."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Examples(Protocol):
    """Sequences to train or to judge on: example `index` is a function of the index alone.

    Generated data is as long as one likes (`2**31` examples, say), and makes each from its index and the seed.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        """Returns the tokens of an example, and which of them may be masked; the others are always shown."""
        ...


@dataclass(frozen=True)
class Prompts:
    """What a sampler is to complete.

    Attributes:
        tokens: Sequences of one length, the mask token where something is to be filled in.
        answers: The held-out sequences they came from; the score may, but need not, compare with them.
    """

    tokens: Int[Tensor, "prompts length"]
    answers: Int[Tensor, "prompts length"]

    def __post_init__(self) -> None:
        if self.tokens.shape != self.answers.shape:
            raise ValueError(f"{tuple(self.tokens.shape)} prompts with {tuple(self.answers.shape)} answers")

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Prompts:
        return Prompts(self.tokens[part], self.answers[part])

    @staticmethod
    def of(answers: Int[Tensor, "prompts length"], masked: Bool[Tensor, "prompts length"], mask_id: int) -> Prompts:
        """Masks held-out sequences at given positions."""
        return Prompts(torch.where(masked, torch.full_like(answers, mask_id), answers), answers)


@runtime_checkable
class Task(Protocol):
    """A kind of data with a vocabulary, splits and a score.

    Splits are `"train"`, `"validation"` and `"test"`. Settings are chosen on validation, reported on test.

    Attributes:
        name: What the command line calls it.
        quality: What `score` measures, in a few words; higher is better.
        vocab_size: Number of token ids, the mask token included.
        mask_id: Id of the mask token.
        length: Tokens per sequence.
    """

    name: str
    quality: str
    vocab_size: int
    mask_id: int
    length: int

    def examples(self, split: str) -> Examples:
        """Returns the sequences of a split.

        Raises:
            ValueError: If there is no such split.
            DataError: If the task's data cannot be read.
        """
        ...

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns the first `limit` prompts of a split, or as many as there are; always the same ones."""
        ...

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Judges each completed sequence; the mean over prompts is the sampler's quality."""
        ...

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Renders a sequence, masks included, for a person to read."""
        ...


@runtime_checkable
class Foreign(Protocol):
    """A task in the vocabulary of a model that others trained, whose sequences have lengths of their own.

    Attributes:
        fill_id: Fills sequences up to one length. No model is shown it.
        special_ids: Tokens that never fill a mask, `fill_id` among them.
    """

    fill_id: int
    special_ids: tuple[int, ...]


def own_lengths(
    task: Foreign, x: Int[Tensor, "batch length"]
) -> tuple[list[Int[Tensor, " own"]], Bool[Tensor, "batch longest"]]:
    """Returns sequences of a task without what fills them up, and where they have no special tokens."""
    rows = [row[row != task.fill_id] for row in x]
    special = torch.isin(x, torch.tensor(task.special_ids, device=x.device))
    return rows, ~special[:, : max(map(len, rows), default=0)]
