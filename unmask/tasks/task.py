"""The protocol of a task: examples for training, prompts with masks, and a score of completions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@runtime_checkable
class Examples(Protocol):
    """Sequences for training or evaluation, which depend only on their index.

    Generated data may have any number of examples, such as `2**31`; each is made from its index and a seed.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " length"], Bool[Tensor, " length"]]:
        """Returns the tokens of an example, and which of them may be masked; the others are never masked."""
        ...


@dataclass(frozen=True)
class Prompts:
    """Sequences with masks, which a sampler is to complete.

    Attributes:
        tokens: Sequences of one length, with the mask token where something is to be filled in.
        answers: The held-out sequences without masks; a score may compare completions with them, but need not.

    Raises:
        ValueError: If the two have different shapes.
    """

    tokens: Int[Tensor, "prompts length"]
    answers: Int[Tensor, "prompts length"]

    def __post_init__(self) -> None:
        if self.tokens.shape != self.answers.shape:
            raise ValueError(
                f"prompts and answers must have one shape, got {tuple(self.tokens.shape)} and"
                f" {tuple(self.answers.shape)}"
            )

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, part: slice) -> Prompts:
        return Prompts(self.tokens[part], self.answers[part])

    @staticmethod
    def of(answers: Int[Tensor, "prompts length"], masked: Bool[Tensor, "prompts length"], mask_id: int) -> Prompts:
        """Makes prompts from held-out sequences by masking given positions.

        Args:
            answers: The held-out sequences.
            masked: True where a token is masked.
            mask_id: Id of the mask token.
        """
        return Prompts(torch.where(masked, torch.full_like(answers, mask_id), answers), answers)


@runtime_checkable
class Task(Protocol):
    """A kind of data with a vocabulary, splits and a score.

    The splits are `"train"`, `"validation"` and `"test"`. Settings are chosen on validation, and results are reported
    on test.

    Attributes:
        name: The name of the task on the command line.
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
        """Returns the first `limit` prompts of a split, or all if there are fewer; always the same prompts."""
        ...

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts length"]) -> Float[Tensor, " prompts"]:
        """Returns a score of each completed sequence; the mean over the prompts is the sampler's quality."""
        ...

    def show(self, tokens: Int[Tensor, " length"]) -> str:
        """Renders a sequence, including its masks, as text for people to read."""
        ...


@runtime_checkable
class Foreign(Protocol):
    """A task in the vocabulary of a model that others trained, whose sequences have different lengths.

    Attributes:
        fill_id: The padding token, which makes all sequences equally long. No model is given it.
        special_ids: Tokens with which no mask is ever filled; `fill_id` is one of them.
    """

    fill_id: int
    special_ids: tuple[int, ...]


def own_lengths(
    task: Foreign, x: Int[Tensor, "batch length"]
) -> tuple[list[Int[Tensor, " own"]], Bool[Tensor, "batch longest"]]:
    """Returns the sequences of a task without padding, and where a batch of them has no special tokens.

    Args:
        task: The task.
        x: The sequences, with padding at their ends.

    Returns:
        The sequences, each with its own length, and a mask of the length of the longest: True where a token is not
        special.
    """
    rows = [row[row != task.fill_id] for row in x]
    special = torch.isin(x, torch.tensor(task.special_ids, device=x.device))
    return rows, ~special[:, : max(map(len, rows), default=0)]
