"""One turn of a rule about a batch: carries its questions to whoever evaluates, checks its move, and makes it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Query, check_logits
from ..draws.categorical import check_marginals
from ..errors import LogitsError, RuleError
from .conversation import Answer, AnyRule, Ask, Move, Situation
from .host import HostMasks, all_finite, any_true, sent, to_host, true_places
from .result import StepInfo
from .state import State, put_memory, select_memory
from .view import dependence_bound

MOST_ASKS = 256
"""Questions after which a turn is taken for one that never ends."""


class Turn:
    """An open conversation between a rule and the denoiser, about the unfinished sequences of a state.

    While there is a `query`, evaluate it and `tell` the logits; then `end` gives the next state. So the turns of
    several states, with different rules, can share their forward passes (see `unmask.sampling.pool`).

    Attributes:
        query: What to evaluate next; `None` once the rule has made its move, or if nothing was left to do.
        live: The rows of the state that the turn is about: its unfinished sequences.
        move: The rule's move, once it is made.
        passes: How many answers it got.
    """

    def __init__(self, rule: AnyRule, state: State, vocab_size: int, wants_time: bool = False) -> None:
        self.rule, self.before, self._vocab = rule, state, vocab_size
        self.query: Query | None = None
        self.move: Move | None = None
        self._answers: list[Answer] = []
        self._fine: list[Tensor | bool] = []
        self._masks, device = HostMasks.of(state), state.x.device
        self._alive = self._masks.alive
        if not len(self._alive):
            return
        self.live = sent(self._alive, device)
        self._every = len(self._alive) == state.x.shape[0]
        mine = self._masks.of_rows(self._alive)
        self._pending, self._open = mine.pending, mine.open
        self.seen = Situation(
            x=self._rows(state.x),
            candidate=sent(self._open, device),
            pending=self._rows(state.pending),
            editable=self._rows(state.editable),
            valid=self._rows(state.valid),
            block=self._rows(state.block),
            noise=self._rows(state.order_noise),
            token_noise=self._rows(state.token_noise),
            memory=state.memory if self._every else select_memory(state.memory, self.live),
            streams=self._rows(state.streams),
            nfe=self._rows(state.nfe),
            draw=state.draw if self._every else state.draw.select(self.live),
            mask_id=state.mask_id,
            wants_time=wants_time,
            index=sent(true_places(self._open), device),
        )
        self._slots = self._rows(state.slot)
        self._talk = rule.turn(self.seen)
        self._hear(None)

    @property
    def passes(self) -> int:
        """How many answers the rule has got."""
        return len(self._answers)

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor if self._every else tensor[self.live]

    def _hear(self, answer: Answer | None) -> None:
        """Gives the rule an answer, and takes its next question or its move."""
        try:
            ask = next(self._talk) if answer is None else self._talk.send(answer)
        except StopIteration as end:
            self.query, self.move = None, end.value
            if not isinstance(self.move, Move):
                raise RuleError(f"{self.rule} must end its turn with a Move, got {self.move!r}") from None
            return
        if len(self._answers) >= MOST_ASKS:
            raise RuleError(f"{self.rule} has asked {MOST_ASKS} questions and not moved ({self._who(0)})")
        self.query = self._query(ask)
        self._ask = ask

    def _query(self, ask: Ask) -> Query:
        """A question as the denoiser is asked it."""
        seen = self.seen
        x = seen.x if ask.x is None else ask.x
        if ask.where.shape != x.shape or len(x) != (len(seen.x) if ask.row is None else len(ask.row)):
            raise RuleError(
                f"{self.rule} asked for positions {tuple(ask.where.shape)} of states {tuple(x.shape)} ({self._who(0)})"
            )
        valid, slots, block = seen.valid, self._slots, seen.block
        if ask.row is not None:
            valid, slots, block = valid[ask.row], slots[ask.row], block[ask.row]
        index = seen.index if ask.where is seen.candidate else ask.index
        stepwise = torch.ones_like(slots, dtype=torch.bool) if ask.stepwise else None
        return Query(x, ask.where, valid, slots, ask.time, index, block, stepwise)

    def tell(self, logits: Float[Tensor, "rows vocab"]) -> None:
        """Takes the logits of `query`, one row for each position asked for.

        Raises:
            ValueError: If they have the wrong shape or dtype.
            RuleError: If the rule breaks its contract.
        """
        assert self.query is not None
        ask, index, draw = self._ask, self.query.rows, self.seen.draw
        check_logits(logits, len(index), self._vocab)
        asked, stats = Answer(ask, index, logits), None
        if draw.processes:
            position = index % ask.where.shape[1]
            logits = draw.processed(logits, asked.row, position, self.query.x[asked.state])
        if ask.measure:
            power = None if ask.power is None else ask.power[asked.row]
            stats = draw.statistics(logits, asked.row if len(draw.settings) > 1 else index, power)
            assert stats.top is not None
            sure = stats.top if ask.unsure is None else stats.top.masked_fill(ask.unsure[asked.state], 0.0)
            self._fine.append(all_finite(sure))
        answer = Answer(ask, index, logits, stats)
        self._answers.append(answer)
        self._hear(answer)

    def check(self) -> Bool[np.ndarray, "rows length"]:
        """Checks answers and move, and fetches what was chosen to the host: the one wait for the device.

        Raises:
            LogitsError: If logits are no distribution; it names the row, sequence and position.
            RuleError: If the rule breaks its contract; it names a sequence.
        """
        move = self.move
        assert move is not None
        if move.chosen.shape != self.seen.x.shape:
            raise RuleError(f"{self.rule} chose of {tuple(move.chosen.shape)} positions ({self._who(0)})")
        fine = self._fine
        for ask in (answer.ask for answer in self._answers):
            if ask.where is not self.seen.candidate and ask.where is not move.chosen:
                fine = [*fine, ~(ask.where & ~self._valid(ask)).any()]
        taken, sound = to_host(move.chosen, fine)
        if not sound:
            self._report()
        pending = self._pending
        # A rule that says which rows it draws from may have looked further than the open block.
        wrong = taken > (self._open if move.rows is None else pending)
        idle = any_true(self._open) > any_true(taken)
        if move.erase is not None or move.tokens is not None:
            editable = (self.seen.editable & self.seen.valid).cpu().numpy()
            if move.tokens is not None:
                wrong &= ~(editable & ~pending)
            if move.erase is not None:
                erase = move.erase.cpu().numpy()
                idle &= ~erase.any(-1)
                wrong |= erase & (~editable | (pending & ~taken))
        if move.more is not None:  # it counts its turns, and one of them may change nothing
            idle &= ~move.more.cpu().numpy()
        if np.count_nonzero(idle) or np.count_nonzero(wrong):
            row = int((idle | wrong.any(-1)).argmax())
            raise RuleError(
                f"{self.rule} must unmask at least one candidate of every sequence, and candidates only"
                f" ({self._who(row)})"
            )
        return taken

    def _report(self) -> None:
        """Raises the error that the flags on the device stand for."""
        for answer in self._answers:
            ask, stats = answer.ask, answer.marginals
            if bool((beyond := (ask.where & ~self._valid(ask)).any(-1)).any()):
                state = int(beyond.nonzero()[0])
                row = state if ask.row is None else int(ask.row[state])
                raise RuleError(f"{self.rule} asked for a position that does not exist ({self._who(row)})")
            if stats is None:
                continue
            if ask.unsure is not None:
                assert stats.top is not None
                stats = replace(stats, top=stats.top.masked_fill(ask.unsure[answer.state], 0.0))
            try:
                check_marginals(stats)
            except LogitsError as error:
                position = int(answer.index[error.row]) % ask.where.shape[1]
                place = f" ({self._who(int(answer.row[error.row]))}, position {position})"
                raise LogitsError(error.row, error.reason, place) from None

    def _valid(self, ask: Ask) -> Bool[Tensor, "states length"]:
        """Where the positions of the states of a question exist."""
        return self.seen.valid if ask.row is None else self.seen.valid[ask.row]

    def _who(self, row: int) -> str:
        return f"sequence {int(self._alive[row])}"

    def end(self, candidates: int = 0) -> tuple[State, StepInfo]:
        """Makes the move: draws what the rule chose, and returns the next state and what was done.

        Args:
            candidates: The information also has so many of the most probable tokens of each position unmasked.

        Raises:
            LogitsError: See `check`.
            RuleError: See `check`.
        """
        move, state = self.move, self.before
        if move is None:
            return state, StepInfo.empty(state.x)
        taken = self.check()
        info = self._draw(move, taken, candidates)
        columns = {
            "x": self.seen.x.masked_scatter(move.chosen, info.tokens),
            "pending": self.seen.pending > move.chosen,
            "nfe": self.seen.nfe + self._counts[0],
            "evaluations": self._rows(state.evaluations) + self._counts[1],
        }
        if move.more is not None:
            columns["more"] = move.more
        memory = move.memory
        if not self._every:
            columns = {name: getattr(state, name).index_copy(0, self.live, part) for name, part in columns.items()}
            memory = put_memory(state.memory, self.live, memory)
        new = state.changed(memory=memory, **columns)
        if move.erase is not None:
            return new.mask(torch.zeros_like(state.pending).index_copy(0, self.live, move.erase)), info
        return self._masks.after(new, self._alive, taken, move.more), info

    def _draw(self, move: Move, taken: Bool[np.ndarray, "rows length"], candidates: int) -> StepInfo:
        """Draws a token for each chosen position, and says what was done."""
        seen, answer, chosen, device = self.seen, move.answer, move.chosen, self.live.device
        places = true_places(taken)
        if answer is None:
            if len(places):
                raise RuleError(
                    f"{self.rule} writes without an answer to draw from ({self._who(places[0] // taken.shape[1])})"
                )
            return replace(
                StepInfo.empty(seen.x),
                sequence=self.live,
                candidate=seen.candidate,
                chosen=chosen,
                bound=self._nothing(),
                forward_passes=self.passes,
                evaluations=self._counts[1],
                erased=move.erase,
            )
        stats, row = answer.stats, sent(places // taken.shape[1], device)
        if move.rows is not None:
            picked = move.rows
        elif answer.ask.where is chosen:
            picked = sent(np.arange(len(places)), device)
        else:
            asked = self._open if answer.ask.where is seen.candidate else answer.ask.where.cpu().numpy()
            picked = sent(true_places(taken[asked]), device)
        if move.tokens is not None:
            tokens = move.tokens[picked]
        else:
            power = None if move.power is None else move.power[row]
            uniform = seen.token_noise.take(sent(places, device))
            if move.logits is not None:
                tokens = seen.draw.tokens(move.logits, None, row, uniform, power=power)
            else:
                tokens = seen.draw.tokens(answer.logits, picked, row, uniform, stats, power)
        entropy = stats.entropy.index_select(0, picked)
        info = StepInfo(
            sequence=self.live,
            candidate=seen.candidate,
            chosen=chosen,
            tokens=tokens,
            log_prob=answer.logits[picked, tokens].to(stats.log_norm.dtype) - stats.log_norm.index_select(0, picked),
            entropy=entropy,
            bound=dependence_bound(chosen, entropy) if move.together and len(places) > 1 else self._nothing(),
            forward_passes=self.passes,
            evaluations=self._counts[1],
            erased=move.erase,
        )
        if candidates:
            top = seen.draw.most_probable(answer.logits[picked], stats.log_norm[picked], row, candidates)
            info = replace(info, top_tokens=top[0], top_log_prob=top[1])
        return info

    def _nothing(self) -> Float[Tensor, " rows"]:
        return torch.zeros(len(self.live), dtype=torch.float64, device=self.live.device)

    @cached_property
    def _counts(self) -> tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]:
        """Evaluations that each row took part in, and states of it that were evaluated."""
        if len(self._answers) == 1 and self._answers[0].ask.row is None:
            once = torch.ones_like(self.live)
            return once, once
        nfe = states = torch.zeros_like(self.live)
        for answer in self._answers:
            row = answer.ask.row
            asked = torch.ones_like(states) if row is None else torch.bincount(row, minlength=len(states))
            nfe, states = nfe + asked.clamp(max=1), states + asked
        return nfe, states
