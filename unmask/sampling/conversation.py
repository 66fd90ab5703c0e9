"""A rule is a conversation: it *asks* for evaluations, gets *answers*, and ends its turn with a *move*.

    def turn(self, seen):
        answer = yield Ask(seen.candidate)
        chosen, memory = ...
        return Move(chosen, memory, answer)

The loop carries questions to the denoiser and moves to the state, and treats all rules alike. A rule that looks at the
marginals before it chooses asks once, about all candidates. A rule that chooses without them asks only about what it
has chosen. A rule that verifies a draft asks about several states of a sequence at once, and a rule that tests its
choice asks several times. A rule may also mask positions again.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.categorical import Marginals
from ..draws.streams import Purpose, uniforms
from .draw import Draw
from .state import Memory
from .view import View


@dataclass(frozen=True)
class Ask:
    """A question to the denoiser: the states to evaluate, and the positions whose logits are wanted.

    Attributes:
        where: True at the positions whose logits are wanted, in each state.
        x: The tokens of the states; `None` stands for the sequences as they are, one state each, in order.
        row: The row of the situation that each state belongs to; `None` stands for one state per row, in order.
        time: The diffusion time of each state, for denoisers that are conditioned on it.
        index: The positions as indices into the flattened states, if they are known already.
        power: A power `β >= 1` for each row of the situation, for `Marginals.log_moment`.
        unsure: True for states that may turn out impossible: it is not an error if their logits are not a distribution.
        measure: Whether the statistics of the logits are wanted; if not, `Answer.marginals` is `None`.
        stepwise: Whether the states are evaluated autoregressively by a model with block-causal attention (see
            `Query.stepwise`).
    """

    where: Bool[Tensor, "states length"]
    x: Int[Tensor, "states length"] | None = None
    row: Int[Tensor, " states"] | None = None
    time: Float[Tensor, " states"] | None = None
    index: Int[Tensor, " positions"] | None = None
    power: Float[Tensor, " rows"] | None = None
    unsure: Bool[Tensor, " states"] | None = None
    measure: bool = True
    stepwise: bool = False


@dataclass(frozen=True)
class Answer:
    """The denoiser's answer: one row of logits per position asked for, in row-major order.

    Attributes:
        ask: The question.
        index: The positions as indices into the flattened states.
        logits: The denoiser's logits after the sequences' processors; forbidden tokens are not removed yet.
        marginals: Their statistics without the forbidden tokens; `None` if they were not wanted. The end of the turn
            checks that they are distributions.
    """

    ask: Ask
    index: Int[Tensor, " positions"]
    logits: Float[Tensor, "positions vocab"]
    marginals: Marginals | None = None

    @cached_property
    def state(self) -> Int[Tensor, " positions"]:
        """The state that each row of the logits belongs to."""
        return self.index.div(self.ask.where.shape[1], rounding_mode="floor")

    @cached_property
    def row(self) -> Int[Tensor, " positions"]:
        """The row of the situation that each row of the logits belongs to."""
        return self.state if self.ask.row is None else self.ask.row[self.state]

    @property
    def stats(self) -> Marginals:
        """The statistics of the logits; only available if the question asked for them."""
        assert self.marginals is not None
        return self.marginals


@dataclass(frozen=True)
class Move:
    """How a rule ends its turn: what to write and what to mask again.

    Attributes:
        chosen: Positions to write: masks of the open block, or, if `tokens` is given, also positions with a token.
        memory: The rule's memory after the turn.
        answer: The answer whose rows the chosen positions are drawn from; `None` if nothing is written.
        rows: The row of the answer that each chosen position (row-major) is drawn from; `None` if that follows from
            `chosen`.
        tokens: The token of each row of the answer, if the rule has drawn them itself.
        logits: Log-probabilities to draw the chosen positions from instead of the answer, one row each.
        power: The power to which the marginals are raised before drawing, one per row.
        together: Whether positions written in one row were drawn independently, so that `ΣH - max H` bounds the loss.
        erase: Positions to mask again; they must have been masked at the start.
        more: True for rows where the rule has more to do even if no mask remains, and where a turn may change nothing;
            `None` leaves it as it was. A rule that uses it must count its turns, so that it ends.
    """

    chosen: Bool[Tensor, "rows length"]
    memory: Memory
    answer: Answer | None
    rows: Int[Tensor, " chosen"] | None = None
    tokens: Int[Tensor, " positions"] | None = None
    logits: Float[Tensor, "chosen vocab"] | None = None
    power: Float[Tensor, " rows"] | None = None
    together: bool = True
    erase: Bool[Tensor, "rows length"] | None = None
    more: Bool[Tensor, " rows"] | None = None


@dataclass(frozen=True)
class Situation:
    """What a rule is told when its turn begins: the unfinished sequences of a batch, one row each.

    Attributes:
        x: The tokens of each sequence.
        candidate: True at the masks of the open block, the block that is being filled in.
        pending: All masks that are still to be written.
        editable: Positions that were masked at the start.
        valid: False at padding.
        block: The number of the block of each position.
        noise: A uniform random number per position for random orders and clocks, fixed for the whole sequence.
        token_noise: The uniform random number that draws the next token of each position.
        memory: What the rule remembers of each sequence.
        streams: The random stream of each sequence.
        nfe: Number of evaluations each sequence has taken part in.
        draw: How tokens are drawn.
        mask_id: Id of the mask token.
        wants_time: Whether the denoiser is conditioned on the diffusion time.
        index: The candidates as indices into the flattened rows.
    """

    x: Int[Tensor, "rows length"]
    candidate: Bool[Tensor, "rows length"]
    pending: Bool[Tensor, "rows length"]
    editable: Bool[Tensor, "rows length"]
    valid: Bool[Tensor, "rows length"]
    block: Int[Tensor, "rows length"]
    noise: Float[Tensor, "rows length"]
    token_noise: Float[Tensor, "rows length"]
    memory: Memory
    streams: Int[Tensor, " rows"]
    nfe: Int[Tensor, " rows"]
    draw: Draw
    mask_id: int
    wants_time: bool
    index: Int[Tensor, " candidates"] | None = None

    @property
    def masked(self) -> Bool[Tensor, "rows length"]:
        """True at positions without a token, even if they are not to be written."""
        return (self.x == self.mask_id) & self.valid

    @property
    def share(self) -> Float[Tensor, " rows"]:
        """The share of each sequence that is still to be written."""
        return self.pending.sum(-1).double() / self.valid.sum(-1)

    @property
    def numbers(self) -> Float[Tensor, "rows memory"]:
        """The memory of a rule that remembers only numbers."""
        assert isinstance(self.memory, Tensor)
        return self.memory

    def view(self, answer: Answer | None = None, numbers: Float[Tensor, "rows memory"] | None = None) -> View:
        """Returns what orders and budgets may look at. Without an answer it has no marginals.

        Args:
            answer: The answer to a question about the candidates of the sequences as they are.
            numbers: The budget's memory, if the rule remembers more than that.
        """
        view = self._blank(self.numbers if numbers is None else numbers)
        return view if answer is None else view.measured(answer.stats, self.late(answer))

    def late(self, answer: Answer) -> Bool[Tensor, " positions"] | None:
        """True where a candidate has to wait for the others; `None` if none has to, as far as the host knows.

        Args:
            answer: The answer to a question about the candidates of the sequences as they are.
        """
        if not self.draw.waits:
            return None
        late = self.draw.late(answer.stats.token, answer.row)
        return late if not late.is_cpu or bool(late.any()) else None  # a device would have to be asked

    def _blank(self, numbers: Float[Tensor, "rows memory"]) -> View:
        """A view without marginals, whose `masked` and `known` are made when they are looked at."""
        blank = View.blank(self.candidate, self.noise, numbers)

        def make(name: str) -> Tensor | None:
            if name == "masked":
                return self.masked
            return self.valid & ~self.masked if name == "known" else getattr(blank, name)

        return View.of(make)

    def fresh(self, purpose: Purpose) -> Float[Tensor, "rows length"]:
        """Returns a uniform random number per position, new for every evaluation of the sequence."""
        position = torch.arange(self.x.shape[1], device=self.x.device)
        return uniforms(self.streams.unsqueeze(-1), position, purpose, self.nfe.unsqueeze(-1))


Conversation = Generator[Ask, Answer, Move]
"""A turn of a rule: it yields questions, is sent answers, and returns a move."""


class LawKind(StrEnum):
    """How `unmask.oracles.exact_law` computes the exact law of a rule, which depends on how it chooses positions."""

    PATH = "path"
    """The state and noise that is fixed for the sequence: a sequence tells in which steps it was drawn."""
    SCORES = "scores"
    """Scores with fresh noise in every step, of marginals or of drawn tokens (`ScoredOrder`)."""
    DRAFTS = "drafts"
    """Tests of drawn tokens."""
    VISITS = "visits"
    """Its own turns, which mask again or overwrite: followed from state to state, as many as the memory counts."""
    COINS = "coins"
    """A coin per position in each of `steps` steps; its method `rates` gives the chances to write and to mask again."""
    CORRECTED = "corrected"
    """That of the rule in its attribute `rule`, whose tokens it draws again one at a time (`visits`, `position`)."""
    SAME = "same"
    """That of the rule in its attribute `rule`, in fewer evaluations."""
    ONE = "one"
    """It is that of one position at a time, in the same order."""
    NONE = "none"
    """It is not computed: `AnyRule.no_law` says why."""


REVISITS = frozenset({LawKind.VISITS, LawKind.COINS, LawKind.CORRECTED})
"""The laws of rules that mask again or overwrite what they have written."""


@runtime_checkable
class AnyRule(Protocol):
    """What the loop needs of a rule. A rule is stateless: what it remembers of a sequence is in the state.

    Attributes:
        asks_once: True if a turn asks one question, about the sequences as they are. Another library's loop and a cache
            of keys and values can serve such rules only.
        waits: True if it looks at the marginals of all candidates before it chooses, and so can let some tokens wait
            for the others (`Settings.last`).
        law: How its exact law is computed.
        no_law: Why its law is not computed; empty if it is.
    """

    @property
    def asks_once(self) -> bool:
        """Whether a turn asks one question, about the sequences as they are."""
        ...

    @property
    def waits(self) -> bool:
        """Whether the rule can let some tokens wait for the others."""
        ...

    @property
    def law(self) -> LawKind:
        """How the rule's exact law is computed."""
        ...

    @property
    def no_law(self) -> str:
        """Why the rule's exact law is not computed; empty if it is."""
        ...

    def start(self, masked: Int[Tensor, " batch"]) -> Memory:
        """Returns the initial memory of sequences that start with this many masks each."""
        ...

    def turn(self, seen: Situation) -> Conversation:
        """Takes one turn: from a situation, by way of questions, to a move."""
        ...
