"""The result of a run: the tokens, what they cost, and the steps that led to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from .state import State


@dataclass(frozen=True)
class StepInfo:
    """What one step did. There is a row for each sequence that was evaluated, in the order of the state.

    Attributes:
        sequence: Index of each row's sequence in the state.
        candidate: Positions the rule could choose from.
        chosen: Positions unmasked.
        tokens: The tokens written there, row-major over `chosen`.
        log_prob: Log-probability of each of these tokens under the marginal it was planned with (temperature 1).
        entropy: Entropy of each of these marginals, in nats.
        bound: `ΣH - max H` over each row's chosen positions, in nats.
        forward_passes: Evaluations of the batch: 0 if nothing was pending, more than 1 if the rule asked several times.
        evaluations: States of each row that were evaluated: 1, or more if the rule evaluates ahead.
        erased: Positions masked again; `None` if there are none.
        top_tokens: The most probable tokens at each chosen position, if they were asked for; see `most_probable`.
        top_log_prob: Their log-probabilities.
    """

    sequence: Int[Tensor, " rows"]
    candidate: Bool[Tensor, "rows length"]
    chosen: Bool[Tensor, "rows length"]
    tokens: Int[Tensor, " chosen"]
    log_prob: Float[Tensor, " chosen"]
    entropy: Float[Tensor, " chosen"]
    bound: Float[Tensor, " rows"]
    forward_passes: int
    evaluations: Int[Tensor, " rows"]
    erased: Bool[Tensor, "rows length"] | None = None
    top_tokens: Int[Tensor, "chosen top"] | None = None
    top_log_prob: Float[Tensor, "chosen top"] | None = None

    @staticmethod
    def empty(x: Int[Tensor, "batch length"]) -> StepInfo:
        """The information of a step that had nothing to do."""
        nobody = torch.zeros(0, x.shape[1], dtype=torch.bool, device=x.device)
        nothing = x.new_zeros(0)
        none = torch.zeros(0, dtype=torch.float64, device=x.device)
        return StepInfo(nothing, nobody, nobody, nothing, none, none, none, 0, nothing)


def _by_sequence(bounds: list[tuple[Tensor, Tensor]], sequences: int) -> tuple[tuple[float, ...], ...]:
    """The numbers of each sequence in order of the steps, of steps that say to which sequences theirs belong."""
    if not bounds:
        return ((),) * sequences
    sequence, nats = (torch.cat(column).cpu().numpy() for column in zip(*bounds, strict=True))
    if sequences == 1:
        return (tuple(nats.tolist()),)
    values = nats[sequence.argsort(kind="stable")].tolist()
    ends = np.bincount(sequence, minlength=sequences).cumsum().tolist()
    return tuple([tuple(values[begin:end]) for begin, end in zip([0, *ends], ends, strict=False)])


@dataclass(frozen=True)
class Event:
    """One token written to one position. Rules that mask again or overwrite may write a position several times.

    Attributes:
        step: Number of the evaluation, counted from 1 within the sequence.
        position: The position.
        token: The token written there.
        probability: The probability of that token under its marginal at temperature 1.
        entropy: The entropy of that marginal, in nats.
        candidates: The most probable tokens of that marginal with their probabilities, if they were asked for.
    """

    step: int
    position: int
    token: int
    probability: float
    entropy: float
    candidates: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Result:
    """A finished (or stopped) batch.

    Attributes:
        tokens: The sequences, right-padded with the mask token.
        lengths: Their lengths.
        nfe: Number of evaluations each sequence took part in.
        evaluations: States of each sequence that were evaluated: `nfe`, or more if the rule evaluates ahead.
        forward_passes: Evaluations of the batch.
        bounds: For each sequence, the `ΣH - max H` of each step of this run, in nats. This is a diagnostic: the bound
            on the divergence is an expectation over states drawn from the *data*, while these states are the sampler's.
        masks_left: Masks remaining in each sequence: 0 unless `max_steps` ended the run.
        streams: The random stream of each sequence, as an integer in `[0, 2**64)`.
        initial: The tokens the run began with.
        pending: True where masks remain to be filled in.
        steps: What happened in each step, if a trace was asked for.
    """

    tokens: Int[Tensor, "batch length"]
    lengths: Int[Tensor, " batch"]
    nfe: Int[Tensor, " batch"]
    evaluations: Int[Tensor, " batch"]
    forward_passes: int
    bounds: tuple[tuple[float, ...], ...]
    masks_left: Int[Tensor, " batch"]
    streams: tuple[int, ...]
    initial: Int[Tensor, "batch length"]
    pending: Bool[Tensor, "batch length"]
    steps: tuple[StepInfo, ...] | None

    @staticmethod
    def of(
        state: State,
        initial: Tensor,
        forward_passes: int,
        bounds: list[tuple[Tensor, Tensor]],
        steps: list[StepInfo] | None,
    ) -> Result:
        """Collects the result of a run that ended in `state`."""
        return Result(
            tokens=state.x,
            lengths=state.valid.sum(-1),
            nfe=state.nfe,
            evaluations=state.evaluations,
            forward_passes=forward_passes,
            bounds=_by_sequence(bounds, len(state.x)),
            masks_left=state.pending.sum(-1),
            streams=tuple(state.streams.cpu().numpy().view(np.uint64).tolist()),
            initial=initial,
            pending=state.pending,
            steps=None if steps is None else tuple(steps),
        )

    @property
    def finished(self) -> Bool[Tensor, " batch"]:
        """True where no mask remains."""
        return self.masks_left == 0

    @property
    def bound(self) -> Float[Tensor, " batch"]:
        """Realised `Σ_steps (ΣH - max H)` of each sequence, in nats."""
        return torch.tensor([sum(nats) for nats in self.bounds], dtype=torch.float64)

    @property
    def sequences(self) -> list[list[int]]:
        """The sequences as lists of their own lengths."""
        return [row[:n] for row, n in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)]

    def trace(self, sequence: int = 0) -> list[Event]:
        """Returns every token written to one sequence, in order of steps and positions.

        Raises:
            ValueError: If the run kept no trace.
            IndexError: If there is no such sequence.
        """
        if self.steps is None:
            raise ValueError("this run kept no trace; pass trace=True")
        if not -len(self.nfe) <= sequence < len(self.nfe):
            raise IndexError(f"there is no sequence {sequence} in a batch of {len(self.nfe)}")
        events: list[Event] = []
        for number, (info, row) in enumerate(self._turns(sequence), 1):
            of_row = info.chosen.nonzero()[:, 0] == row
            columns = (info.tokens, info.log_prob.exp(), info.entropy)
            where = info.chosen[row].nonzero().squeeze(-1).tolist()
            candidates = [()] * len(where)
            if info.top_tokens is not None and info.top_log_prob is not None:
                pairs = zip(info.top_tokens[of_row].tolist(), info.top_log_prob[of_row].exp().tolist(), strict=True)
                candidates = [tuple(zip(tokens, masses, strict=True)) for tokens, masses in pairs]
            values = zip(where, *(column[of_row].tolist() for column in columns), candidates, strict=True)
            events.extend(Event(number, *value) for value in values)
        return events

    def _turns(self, sequence: int) -> Iterator[tuple[StepInfo, int]]:
        """Yields the steps that a sequence took part in, with its row in each."""
        for info in self.steps or ():
            row = (info.sequence == sequence % len(self.nfe)).nonzero()
            if len(row):
                yield info, int(row[0, 0])

    def erasures(self, sequence: int = 0) -> list[tuple[int, int]]:
        """Returns the positions of one sequence that were masked again: pairs of step and position, in order.

        Raises:
            ValueError: If the run kept no trace.
        """
        if self.steps is None:
            raise ValueError("this run kept no trace; pass trace=True")
        pairs = []
        for number, (info, row) in enumerate(self._turns(sequence), 1):
            if info.erased is not None:
                pairs += [(number, position) for position in info.erased[row].nonzero().squeeze(-1).tolist()]
        return pairs

    def render(
        self, sequence: int = 0, decode: Callable[[int], str] = str, mask: str = "_", color: bool = False
    ) -> str:
        """Shows one sequence's trace as text: a line per evaluation, with what it unmasked in brackets.

        Args:
            sequence: Index of the sequence.
            decode: Turns a token into text.
            mask: The text shown for a mask.
            color: Use ANSI colours instead of brackets.

        Raises:
            ValueError: If the run kept no trace.
        """
        events, erased = self.trace(sequence), self.erasures(sequence)
        length = int(self.lengths[sequence])
        hidden = {event.position for event in events} | {at for at in range(length) if self.pending[sequence, at]}
        tokens = self.initial[sequence, :length].tolist()
        texts = [mask if at in hidden else decode(token) for at, token in enumerate(tokens)]
        lines = []
        for step in range(max([0, *(event.step for event in events), *(number for number, _ in erased)]) + 1):
            cells, fresh = list(texts), [event for event in events if event.step == step]
            for event in fresh:
                texts[event.position] = decode(event.token)
                text = texts[event.position]
                cells[event.position] = f"\x1b[1;33m{text}\x1b[0m" if color else f"[{text}]"
            for position in (at for number, at in erased if number == step):
                texts[position] = cells[position] = mask
            note = f"   p >= {min(event.probability for event in fresh):.3f}" if fresh else ""
            lines.append(f"{step:>4}  {' '.join(cells)}{note}")
        return "\n".join(lines)

    def trace_json(self, sequence: int = 0) -> dict[str, Any]:
        """Returns one sequence's trace as plain data, ready for `json.dumps`."""
        length = int(self.lengths[sequence])
        return {
            "stream": self.streams[sequence],
            "initial": self.initial[sequence, :length].tolist(),
            "tokens": self.tokens[sequence, :length].tolist(),
            "nfe": int(self.nfe[sequence]),
            "evaluations": int(self.evaluations[sequence]),
            "bounds": list(self.bounds[sequence]),
            "events": [vars(event) for event in self.trace(sequence)],
            **({"erased": erased} if (erased := self.erasures(sequence)) else {}),
        }
