"""Processors of logits: a bias, or the only tokens that a position may take. They act before planning and drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checks import whole
from .draw import Processor


def _token(token: object) -> int:
    return whole("a token id", token, least=0)


@dataclass(frozen=True)
class LogitBias:
    """Adds a number to the logits of some tokens, at every position.

    Args:
        bias: What is added to the logit of each token id; `-inf` forbids the token.

    Raises:
        ValueError: If a token is not an integer >= 0, or a bias is NaN or `+inf`.
    """

    bias: tuple[tuple[int, float], ...]

    def __init__(self, bias: Mapping[int, float]) -> None:
        pairs = tuple(sorted((_token(token), float(value)) for token, value in bias.items()))
        if any(math.isnan(value) or value == math.inf for _, value in pairs):
            raise ValueError(f"a bias is a number or -inf, got {dict(pairs)}")
        object.__setattr__(self, "bias", pairs)

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], position: Int[Tensor, " rows"], x: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows vocab"]:
        """Returns the logits with the bias added."""
        if not self.bias:
            return logits
        if self.bias[-1][0] >= logits.shape[1]:
            raise ValueError(f"a bias of token {self.bias[-1][0]} is outside the vocabulary 0..{logits.shape[1] - 1}")
        token = torch.tensor([token for token, _ in self.bias], device=logits.device)
        value = torch.tensor([value for _, value in self.bias], dtype=logits.dtype, device=logits.device)
        return logits.index_add(1, token, value.expand(len(logits), -1))


@dataclass(frozen=True)
class Allowed:
    """The only tokens that some positions may take, such as the labels of a slot; all other positions are free.

    The probabilities of the labels are those of the marginal among them: ask for as many `candidates`, and the trace
    has them.

    Args:
        tokens: For each position that is not free, the tokens that it may take.

    Raises:
        ValueError: If a position or a token is not an integer >= 0, or a position may take none.
    """

    tokens: tuple[tuple[int, tuple[int, ...]], ...]

    def __init__(self, tokens: Mapping[int, Sequence[int]]) -> None:
        pairs = []
        for position, allowed in sorted(tokens.items()):
            whole("a position", position, least=0)
            if not len(allowed):
                raise ValueError(f"position {position} may take no token; name at least one")
            pairs.append((position, tuple(sorted({_token(token) for token in allowed}))))
        object.__setattr__(self, "tokens", tuple(pairs))

    @cached_property
    def _of(self) -> dict[int, tuple[int, ...]]:
        return dict(self.tokens)

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], position: Int[Tensor, " rows"], x: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows vocab"]:
        """Returns the logits with everything else at `-inf`."""
        logits = logits.clone()
        for row, place in enumerate(position.tolist()):
            allowed = self._of.get(place)
            if allowed is None:
                continue
            if allowed[-1] >= logits.shape[1]:
                raise ValueError(f"token {allowed[-1]} is outside the vocabulary 0..{logits.shape[1] - 1}")
            kept = logits[row, list(allowed)]
            logits[row] = -torch.inf
            logits[row, list(allowed)] = kept
        return logits


@dataclass(frozen=True)
class Choices:
    """Some sequences of tokens, of which the positions from a first one on must become one.

    A position may take the tokens of those choices that agree with all that is written. So what is written one position
    at a time is one of them; two positions written in one evaluation may be of two different ones.

    Args:
        first: The first position.
        choices: The sequences.

    Raises:
        ValueError: If there is no choice, or one is empty.
    """

    first: int
    choices: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.choices or not all(self.choices):
            raise ValueError("there must be a choice, and each must have a token")

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], position: Int[Tensor, " rows"], x: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows vocab"]:
        """Returns the logits with all other tokens at `-inf`; positions behind every choice are free."""
        longest = max(map(len, self.choices))
        logits = logits.clone()
        for row, (place, own) in enumerate(zip(position.tolist(), x[:, self.first :].tolist(), strict=True)):
            at = place - self.first
            if not 0 <= at < longest:
                continue
            fits = [
                one for one in self.choices if all(a == b for a, b in zip(own, one, strict=False) if a in self._used)
            ]
            allowed = sorted({one[at] for one in fits if at < len(one)})
            if allowed:
                kept = logits[row, allowed]
                logits[row] = -torch.inf
                logits[row, allowed] = kept
        return logits

    @cached_property
    def _used(self) -> frozenset[int]:
        """Tokens of the choices; the mask is none of them."""
        return frozenset(token for one in self.choices for token in one)


@dataclass(frozen=True)
class Chain:
    """Several processors, one after the other."""

    processors: tuple[Processor, ...]

    def __call__(
        self, logits: Float[Tensor, "rows vocab"], position: Int[Tensor, " rows"], x: Int[Tensor, "rows length"]
    ) -> Float[Tensor, "rows vocab"]:
        """Returns what the last one makes of the logits."""
        for processor in self.processors:
            logits = processor(logits, position, x)
        return logits
