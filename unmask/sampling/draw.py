"""How each sequence of a batch is drawn: its temperature, truncation, forbidden tokens and processor."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..draws.categorical import Marginals, check_draw, draw_rows, ids, marginals, most_probable


@runtime_checkable
class Processor(Protocol):
    """Changes the logits of a sequence before anything is planned or drawn, such as a logit bias.

    It sees one position at a time and what is written anywhere in the sequence; it must not depend on other sequences.
    """

    def __call__(
        self,
        logits: Float[Tensor, "rows vocab"],
        position: Int[Tensor, " rows"],
        x: Int[Tensor, "rows length"],
    ) -> Float[Tensor, "rows vocab"]:
        """Returns new logits.

        Args:
            logits: The logits of masked positions of sequences with this processor; must not be changed in place.
            position: The position of each row in its sequence.
            x: The sequence of each row, with the mask token where it is masked.
        """
        ...


@dataclass(frozen=True)
class Settings:
    """The settings shared by all sequences that are drawn in the same way.

    Attributes:
        top_k: Keep the `k` most probable tokens when drawing; `None` keeps all.
        top_p: Keep the fewest tokens whose probabilities sum to at least this when drawing; `None` keeps all.
        forbidden: Tokens that must not appear, the mask token among them; planning does not see them either.
        last: Tokens that are written after the others (see `View.measured`).
        processor: Changes the logits before planning and drawing; `None` leaves them.
    """

    top_k: int | None = None
    top_p: float | None = None
    forbidden: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    processor: Processor | None = None

    @staticmethod
    def of(
        vocab_size: int,
        mask_id: int,
        top_k: int | None = None,
        top_p: float | None = None,
        forbidden: Iterable[int] = (),
        last: Iterable[int] = (),
        processor: Processor | None = None,
    ) -> Settings:
        """Checks settings against a vocabulary; the mask token becomes one of the forbidden tokens.

        Raises:
            ValueError: If a setting is out of range, a token id outside the vocabulary, or every token forbidden.
        """
        check_draw(1.0, top_k, top_p)
        banned = sorted({operator.index(token) for token in forbidden} | {mask_id})
        outside = [token for token in banned if not 0 <= token < vocab_size]
        if outside:
            raise ValueError(f"forbidden tokens {outside} are outside the vocabulary 0..{vocab_size - 1}")
        if len(banned) == vocab_size:
            raise ValueError("every token of the vocabulary is forbidden")
        return Settings(top_k, top_p, tuple(banned), tuple(sorted(set(last))), processor)


@dataclass(frozen=True)
class Draw:
    """How the tokens of each sequence are drawn. Sequences with equal settings are worked on together.

    Attributes:
        temperature: Divides the logits of a draw; 0 takes the argmax. Planning does not see it.
        kind: Index in `settings` of each sequence's settings; on the host.
        settings: The distinct settings.
        common: The temperature of all sequences, if it is the same: known without asking the device.
    """

    temperature: Float[Tensor, " batch"]
    kind: Int[Tensor, " batch"]
    settings: tuple[Settings, ...]
    common: float | None = None

    @staticmethod
    def of(temperature: Float[Tensor, " batch"], settings: Sequence[Settings]) -> Draw:
        """Gathers the settings of each sequence: one for all, or one a sequence."""
        distinct: list[Settings] = []
        for one in settings:
            if one not in distinct:
                distinct.append(one)
        if len(settings) == 1:
            kind = torch.zeros(len(temperature), dtype=torch.int64)
        else:
            kind = torch.tensor([distinct.index(one) for one in settings], dtype=torch.int64)
        values = set(temperature.tolist())
        return Draw(temperature, kind, tuple(distinct), values.pop() if len(values) == 1 else None)

    def select(self, rows: Int[Tensor, " kept"]) -> Draw:
        """Returns some of the sequences, in the given order."""
        kind = torch.zeros(len(rows), dtype=torch.int64) if len(self.settings) == 1 else self.kind[rows.cpu()]
        return Draw(self.temperature[rows], kind, self.settings, self.common)

    @staticmethod
    def join(parts: Sequence[Draw]) -> Draw:
        """Joins the parts one after the other; equal settings are merged."""
        settings: list[Settings] = []
        kinds = []
        for part in parts:
            for one in part.settings:
                if one not in settings:
                    settings.append(one)
            number = torch.tensor([settings.index(one) for one in part.settings])
            kinds.append(number[part.kind])
        common = parts[0].common if len({part.common for part in parts}) == 1 else None
        return Draw(torch.cat([part.temperature for part in parts]), torch.cat(kinds), tuple(settings), common)

    def parts(
        self, row: Int[Tensor, " values"], *names: str
    ) -> Iterator[tuple[Settings, Int[Tensor, " part"] | slice]]:
        """Which of some values, each of a sequence, have which settings: indices, or everything if all are alike.

        Args:
            row: The sequence of each value.
            *names: The settings that matter; sequences that differ in others are alike.
        """
        if len(self.settings) == 1:
            yield self.settings[0], slice(None)
            return
        keys = [tuple(getattr(one, name) for name in names) for one in self.settings]
        first = [keys.index(key) for key in keys]
        if not any(first):
            yield self.settings[0], slice(None)
            return
        kind = torch.tensor(first)[self.kind].to(row.device)[row]
        for number in sorted(set(first)):
            index = (kind == number).nonzero().squeeze(-1)
            if len(index):
                yield self.settings[number], index

    def processed(
        self, logits: Float[Tensor, "rows vocab"], row: Int[Tensor, " rows"], position: Int[Tensor, " rows"], x: Tensor
    ) -> Float[Tensor, "rows vocab"]:
        """Returns the logits after the processors of their sequences.

        Args:
            logits: The logits of some positions.
            row: The sequence of each position, as a row of this object.
            position: The place of each position in its sequence.
            x: The state of each sequence that was evaluated, a row for each row of the logits.
        """
        changed = logits.clone()
        for settings, index in self.parts(row, "processor"):
            if settings.processor is not None:
                changed[index] = settings.processor(logits[index], position[index], x[index]).to(logits.dtype)
        return changed

    def statistics(
        self, logits: Float[Tensor, "rows vocab"], row: Int[Tensor, " rows"], power: Float[Tensor, " rows"] | None
    ) -> Marginals:
        """Returns `marginals` of each row without the tokens that its sequence forbids; not checked."""
        if len(self.settings) == 1:
            return marginals(logits, self.settings[0].forbidden, power, check=False)
        whole: dict[str, Tensor] = {}
        for settings, index in self.parts(row, "forbidden"):
            if isinstance(index, slice):
                return marginals(logits, settings.forbidden, power, check=False)
            some = None if power is None else power[index]
            part = marginals(logits[index], settings.forbidden, some, check=False)
            for field in fields(Marginals):
                values = getattr(part, field.name)
                if values is not None and field.name != "tops":
                    empty = values.new_empty(len(row))
                    whole.setdefault(field.name, empty)[index] = values
        if not whole:
            return marginals(logits, (), power, check=False)
        return Marginals(**whole)

    def tokens(
        self,
        logits: Float[Tensor, "all vocab"],
        rows: Int[Tensor, " drawn"] | None,
        row: Int[Tensor, " drawn"],
        uniform: Float[Tensor, " drawn"],
        stats: Marginals | None = None,
        power: Float[Tensor, " drawn"] | None = None,
    ) -> Int[Tensor, " drawn"]:
        """Draws one token from some rows of logits, each with the settings of its sequence.

        Args:
            logits: Rows to draw from.
            rows: The row to draw each token from; `None` takes each row once.
            row: The sequence of each token.
            uniform: The uniform random number of each token.
            stats: Statistics of the same logits, if known: they save work and change no draw.
            power: The power to which the marginals are raised before drawing.
        """
        if self.common == 0 and stats is not None:  # the argmax, which is known
            return stats.token if rows is None else stats.token.index_select(0, rows)
        tau = 1.0 if self.common == 1 else self.temperature[row]
        tau = tau if power is None else tau / power
        drawn: Tensor | None = None
        for one, index in self.parts(row, "top_k", "top_p", "forbidden"):
            if isinstance(index, slice):
                return draw_rows(logits, rows, uniform, tau, one.top_k, one.top_p, one.forbidden, stats)
            drawn = torch.empty_like(row) if drawn is None else drawn
            rows = torch.arange(len(row), device=row.device) if rows is None else rows
            tau = torch.as_tensor(tau, dtype=torch.float64, device=row.device).expand(len(row))
            drawn[index] = draw_rows(
                logits, rows[index], uniform[index], tau[index], one.top_k, one.top_p, one.forbidden, stats
            )
        return row if drawn is None else drawn  # no part: nothing to draw

    def most_probable(
        self, logits: Float[Tensor, "rows vocab"], log_norm: Float[Tensor, " rows"], row: Tensor, count: int
    ) -> tuple[Int[Tensor, "rows top"], Float[Tensor, "rows top"]]:
        """Returns the most probable tokens of each row; where fewer are allowed, the rest is token 0 at `-inf`."""
        count = min(count, logits.shape[1] - min(len(one.forbidden) for one in self.settings))
        token = torch.zeros(len(row), count, dtype=torch.int64, device=row.device)
        log_p = torch.full((len(row), count), -torch.inf, dtype=log_norm.dtype, device=row.device)
        for one, index in self.parts(row, "forbidden"):
            best = most_probable(logits[index], log_norm[index], count, one.forbidden)
            token[index, : best[0].shape[1]], log_p[index, : best[0].shape[1]] = best
        return token, log_p

    @property
    def processes(self) -> bool:
        """Whether any sequence has a processor."""
        return any(one.processor is not None for one in self.settings)

    @property
    def waits(self) -> bool:
        """Whether any sequence lets some tokens wait for the others, and may write them at all."""
        return any(not set(one.last) <= set(one.forbidden) for one in self.settings if one.last)

    def late(self, token: Int[Tensor, " rows"], row: Int[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
        """True where a token is one that has to wait for the others in its sequence."""
        if len(self.settings) == 1:
            return _among(token, self.settings[0].last)
        late = torch.zeros(len(token), dtype=torch.bool, device=token.device)
        for one, index in self.parts(row, "last"):
            late[index] = _among(token[index], one.last)
        return late


def _among(token: Int[Tensor, " rows"], some: tuple[int, ...]) -> Bool[Tensor, " rows"]:
    """True where a token is one of some."""
    return token == some[0] if len(some) == 1 else torch.isin(token, ids(some, token.device))
