"""The law of a loop that does something else than it claims, by enumerating all its draws.

It shares no code with the samplers of this package: if a peer's samples follow a law found here, and not the one that
the peer claims, the difference is the peer's and not that of the code that runs it.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .oracle import Answers

Score = Callable[[Tensor, Tensor], Tensor]
"""Scores of the masked positions, given their marginals and their drawn tokens: the highest is written first."""
Count = Callable[[Tensor, Tensor, int], int]
"""How many are written, given marginals and scores in the order of the scores, and the number of the evaluation."""


Tokens = tuple[int, ...]


class Process(Protocol):
    """What a loop's code does, as a Markov chain of sequences and a number that it remembers.

    Attributes:
        says: What it does, for the page.
        start: The number at the start.
    """

    @property
    def says(self) -> str: ...

    @property
    def start(self) -> int: ...

    def step(self, model: Answers, tokens: Tokens, number: int) -> Iterable[tuple[Tokens, int, float]]:
        """What one evaluation can make of a sequence: the next one, the next number, the probability of both."""
        ...


@dataclass(frozen=True)
class Loop:
    """A loop that draws a token for every mask, and writes some of them.

    Attributes:
        says: What it does, for the page.
        score: Ranks the masked positions.
        count: How many it writes.
        start: Evaluations made at the start.
    """

    says: str
    score: Score
    count: Count
    start: int = 0

    def step(self, model: Answers, tokens: Tokens, number: int) -> Iterator[tuple[Tokens, int, float]]:
        """One evaluation, for every combination of draws; the number is that of the evaluation."""
        for p, masks, drawn, chance in draws(model, tokens):
            scores = self.score(p, drawn)
            order = scores.argsort(descending=True, stable=True)
            after = list(tokens)
            for index in order[: self.count(p[order], scores[order], number)].tolist():
                after[masks[index]] = int(drawn[index])
            yield tuple(after), number + 1, chance


def draws(model: Answers, tokens: Tokens) -> Iterator[tuple[Tensor, list[int], Tensor, float]]:
    """The marginals of the masks, their places, and every combination of draws with its probability."""
    masks = [place for place, token in enumerate(tokens) if token == model.mask_id]
    p = model.logits(torch.tensor([tokens]))[0, masks, : model.symbols].softmax(-1)
    for drawn in map(torch.tensor, itertools.product(range(model.symbols), repeat=len(masks))):
        yield p, masks, drawn, float(by_draws(p, drawn).prod())


DRAWN = "ranks by drawn tokens"
"""What most loops do that follow another law than they claim."""


def by_draws(p: Tensor, drawn: Tensor) -> Tensor:
    """The probabilities of the drawn tokens."""
    return p[torch.arange(len(p)), drawn]


def by_entropy(p: Tensor, drawn: Tensor) -> Tensor:
    """The negative entropies of the marginals."""
    return -entropy(p)


def by_margin(p: Tensor, drawn: Tensor) -> Tensor:
    """How much more probable the most probable token is than the second."""
    best = p.topk(2).values
    return best[:, 0] - best[:, 1]


def entropy(p: Tensor) -> Tensor:
    """Entropies of marginals, in nats."""
    return torch.special.entr(p).sum(-1)


def quota(*sizes: int) -> Count:
    """A fixed number in each evaluation."""
    return lambda p, scores, evaluation: sizes[evaluation]


def above(threshold: float) -> Count:
    """All whose score exceeds a threshold, at least one."""
    return lambda p, scores, evaluation: max(int((scores > threshold).sum()), 1)


def within(gamma: float, own: bool = False, always: float | None = None) -> Count:
    """As many as fit `sum H - max H <= gamma`.

    With `own`, the last entropy is subtracted instead of the largest; with `always`, that number is, whatever they are.
    """

    def count(p: Tensor, scores: Tensor, evaluation: int) -> int:
        h = entropy(p)
        less = always if always is not None else h if own else h.cummax(0).values
        return max(int((h.cumsum(0) - less <= gamma).sum()), 1)

    return count


def law_of(process: Process, model: Answers) -> Tensor:
    """The law of a process over all sequences in lexicographic order, and the rest."""
    q = torch.zeros(model.symbols**model.length + 1, dtype=torch.float64)
    reached = {((model.mask_id,) * model.length, process.start): 1.0}
    while reached:
        following: dict[tuple[Tokens, int], float] = defaultdict(float)
        for (tokens, number), weight in reached.items():
            for after, then, chance in process.step(model, tokens, number):
                following[after, then] += weight * chance
        for after, then in [state for state in following if model.mask_id not in state[0]]:
            q[_place(after, model.symbols)] += following.pop((after, then))
        reached = following
    return q


def _place(tokens: Tokens, symbols: int) -> int:
    """The place of a sequence in lexicographic order."""
    place = 0
    for token in tokens:
        place = place * symbols + token
    return place
