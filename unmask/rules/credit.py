"""Credit for tokens that were the most probable before: confidence that builds up over evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.categorical import Marginals
from ..sampling.conversation import Answer, Ask, Conversation, Move, Situation
from ..sampling.view import View, spread
from .budget import Threshold, no_memory, probability
from .history import EVERY
from .order import Confidence
from .speaker import Speaker
from .ties import settled

if TYPE_CHECKING:
    from .ranked import Rule


@dataclass(frozen=True)
class Credits:
    """The credit of each position's tokens: pairs, as many as the position has had most probable tokens.

    Attributes:
        numbers: The numbers that the budget remembers; there are none.
        token: The tokens of each position, -1 where there are no more.
        credit: The credit of each.
    """

    numbers: Float[Tensor, "rows memory"]
    token: Int[Tensor, "rows length kept"] | None = None
    credit: Float[Tensor, "rows length kept"] | None = None

    def paired(self, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Tokens and credits; of no evaluation yet, none."""
        if self.token is None or self.credit is None:
            empty = torch.empty(rows, length, 0, dtype=torch.float64, device=self.numbers.device)
            return empty.long(), empty
        return self.token, self.credit

    def earn(
        self, where: Bool[Tensor, "rows length"], token: Int[Tensor, " positions"], amount: Tensor, decay: float
    ) -> Credits:
        """The credits after an evaluation: the old ones fade, the most probable token of each position earns some."""
        tokens, credits = self.paired(*where.shape)
        now, earned = spread(token, where, -1).unsqueeze(-1), spread(amount.double(), where, 0.0).unsqueeze(-1)
        same = (tokens == now) & where.unsqueeze(-1)
        credits = credits * decay + torch.where(same, earned, 0.0)
        fresh = where.unsqueeze(-1) & ~same.any(-1, keepdim=True)
        tokens = torch.cat([tokens, torch.where(fresh, now, -1)], -1)
        credits = torch.cat([credits, torch.where(fresh, earned, 0.0)], -1)
        # Pairs move to the front, so that there are as many columns as some position needs.
        order = (tokens < 0).to(torch.int8).argsort(dim=-1, stable=True)
        most = int((tokens >= 0).sum(-1).max()) if tokens.numel() else 0
        return replace(self, token=tokens.gather(-1, order)[..., :most], credit=credits.gather(-1, order)[..., :most])

    def select(self, rows: Int[Tensor, " kept"]) -> Credits:
        """Some of the rows, in the given order."""
        if self.token is None or self.credit is None:
            return Credits(self.numbers[rows])
        return Credits(self.numbers[rows], self.token[rows], self.credit[rows])

    def put(self, rows: Int[Tensor, " part"], part: Credits) -> Credits:
        """Returns this memory with some rows replaced."""
        numbers = self.numbers.index_copy(0, rows, part.numbers)
        if part.token is None:
            return replace(self, numbers=numbers)
        mine, theirs = _alike([self, part], part.token.shape[1])
        return Credits(numbers, mine[0].index_copy(0, rows, theirs[0]), mine[1].index_copy(0, rows, theirs[1]))

    def resize(self, length: int) -> Credits:
        """Returns this memory for sequences with more padding, or with less."""
        if self.token is None or self.credit is None:
            return self
        more = (0, 0, 0, length - self.token.shape[1])
        pad = torch.nn.functional.pad
        return replace(self, token=pad(self.token, more, value=-1), credit=pad(self.credit, more))

    def join(self, others: Sequence[Credits]) -> Credits:
        """These rows, then those of the others."""
        parts = [self, *others]
        numbers = torch.cat([part.numbers for part in parts])
        length = next((part.token.shape[1] for part in parts if part.token is not None), None)
        if length is None:
            return Credits(numbers)
        token, credit = (torch.cat(column) for column in zip(*_alike(parts, length), strict=True))
        return Credits(numbers, token, credit)


def _alike(parts: Sequence[Credits], length: int) -> list[tuple[Tensor, Tensor]]:
    """Tokens and credits of each part, with equally many pairs."""
    pairs = [part.paired(len(part.numbers), length) for part in parts]
    most = max(token.shape[-1] for token, _ in pairs)
    pad = torch.nn.functional.pad
    return [
        (pad(token, (0, most - token.shape[-1]), value=-1), pad(credit, (0, most - credit.shape[-1])))
        for token, credit in pairs
    ]


@dataclass(frozen=True)
class Credit(Speaker):
    """Every candidate whose `max p` reaches the threshold, with logits that remember (CreditDecoding); at least one.

    Each position keeps a credit `C` per token. In every evaluation all its credits fade, `C ← beta · C`, and its most
    probable token earns `max p ^ gamma`. Ranking, threshold and draw then use `logits + alpha · log(1 + C)`. A token
    that has been the most probable for some evaluations passes the threshold earlier than its probability says.

    **The draw is biased**: it is not made from the marginal but from one in which the credited token is more probable,
    by a factor of up to `(1 + 1 / (1 - beta)) ^ alpha`, and so even one position at a time with exact conditionals.
    `alpha = 0` is `Threshold`.

    Args:
        threshold: The confidence that the credited marginal must reach.
        alpha: How much credit counts.
        gamma: The power of the probability that is earned, in `[0, 1]` or above.
        beta: What is left of a credit after one evaluation, in `[0, 1)`.

    Raises:
        ValueError: If a setting is out of range.

    References:
        Wang et al. (2025), arXiv:2510.06133; formula and defaults were checked against the code in dInfer
        (`CreditThresholdParallelDecoder`: alpha 0.7, gamma 0.2, beta 0.8).
    """

    threshold: float
    alpha: float = 0.7
    gamma: float = 0.2
    beta: float = 0.8
    own_marginals: ClassVar[bool] = False
    """Tokens are not drawn from the marginals, which no bound on the divergence survives."""
    marginal_free: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        probability("threshold", self.threshold)
        for name in ("alpha", "gamma"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number >= 0, got {getattr(self, name)}")
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is the share of a credit that is left, in [0, 1), got {self.beta}")

    @property
    def history(self) -> int:
        """How many evaluations it looks back: all of them."""
        return EVERY

    def fits(self, rule: Rule) -> None:
        """Raises `ValueError` if another part wants a conversation of its own."""
        if isinstance(rule.order, Speaker) or rule.predictor is not None:
            raise ValueError(f"{self} draws from logits of its own, not with {rule.predictor or rule.order}")

    def start(self, masked: Int[Tensor, " batch"]) -> Float[Tensor, "batch memory"]:
        return no_memory(masked)

    def remember(self, numbers: Float[Tensor, "batch memory"]) -> Credits:
        """The credits of each position, none yet."""
        return Credits(numbers)

    def admit(self, ranked: View) -> tuple[Bool[Tensor, "batch length"], Float[Tensor, "batch memory"]]:
        return Threshold(self.threshold).admit(ranked)

    def turn(self, rule: Rule, seen: Situation) -> Conversation:
        """Asks once, gives credit, and chooses and draws by the credited logits."""
        assert isinstance(seen.memory, Credits)
        answer = yield Ask(seen.candidate, time=rule.time(seen))
        stats = answer.stats
        earned = (-stats.doubt.double()).log1p().mul(self.gamma).exp()  # max p ^ gamma
        memory = seen.memory.earn(seen.candidate, _likeliest(seen, answer), earned, self.beta)
        token, credit = (pairs[seen.candidate] for pairs in memory.paired(*seen.x.shape))
        bonus = torch.where(token >= 0, self.alpha * credit.log1p(), 0.0)
        if isinstance(rule.order, Confidence):
            planned = self.sharpened(answer, token, bonus)
        else:
            everything = credited(answer.logits, token, bonus, stats.log_norm.dtype)
            planned = seen.draw.statistics(everything, answer.row, None)
        chosen, numbers = rule.choose(seen.view(replace(answer, marginals=planned), memory.numbers))
        taken = chosen[seen.candidate].nonzero().squeeze(-1)
        logits = credited(answer.logits[taken], token[taken], bonus[taken], stats.log_norm.dtype)
        return Move(chosen, replace(memory, numbers=numbers), answer, logits=logits)

    def sharpened(self, answer: Answer, token: Int[Tensor, "positions kept"], bonus: Tensor) -> Marginals:
        """Confidence and most probable token of the credited marginals, without a second pass over the logits.

        The most probable token has just earned credit, so the most probable one with credit is among the credited.
        """
        stats = answer.stats
        p = (answer.logits.gather(1, token.clamp(min=0)).double() - stats.log_norm.double().unsqueeze(-1)).exp()
        p = torch.where(token >= 0, p, 0.0)
        gain = p * bonus.expm1()
        best = settled(p + gain).argmax(-1, keepdim=True)
        top, own = token.gather(1, best).squeeze(-1), p.gather(1, best).squeeze(-1)
        # What is left beside it; no small difference of two large numbers, as another token than before has <= 1/2.
        rest = torch.where(top == stats.token, stats.doubt.double(), 1 - own)
        rest = rest + gain.scatter(1, best, 0.0).sum(-1)
        return replace(stats, doubt=rest / (rest + own + gain.gather(1, best).squeeze(-1)), token=top)


def _likeliest(seen: Situation, answer: Answer) -> Int[Tensor, " positions"]:
    """The most probable token of each position, the lowest id among those that differ by rounding alone."""
    log_norm = answer.stats.log_norm
    if log_norm.dtype is not torch.float64:  # `settled` changes nothing there
        return answer.stats.token
    p = (answer.logits - log_norm.unsqueeze(-1)).exp()
    return seen.draw.most_probable(settled(p), log_norm, answer.row, 1)[0].squeeze(-1)


def credited(
    logits: Float[Tensor, "rows vocab"], token: Int[Tensor, "rows kept"], bonus: Tensor, dtype: torch.dtype
) -> Float[Tensor, "rows vocab"]:
    """Logits with what credit adds to some tokens."""
    return logits.to(dtype).scatter_add(1, token.clamp(min=0), bonus.to(dtype))
