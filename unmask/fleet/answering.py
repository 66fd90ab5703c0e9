"""Answers to many prompts, shard by shard: the same rows whichever process answers which shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..draws.streams import prompt_streams
from ..errors import AdapterError
from ..evaluation.study import fingerprint
from ..language import LanguageModel
from ..language.asked import asked_generate, asked_infill
from .engine import Engine
from .formats import Row
from .shards import Shards

_CHUNK = 1024
"""Prompts encoded at once."""


@dataclass(frozen=True)
class Piece:
    """The prompts of a shard.

    Attributes:
        first: The number of the first of them.
        prompts: Texts or chats.
        streams: The random stream of each.
    """

    first: int
    prompts: Sequence[Any]
    streams: Sequence[int]


@dataclass(frozen=True)
class Answering:
    """How prompts are answered; it can be sent to another machine.

    Attributes:
        load: Loads the model.
        name: The model's name, as `unmask.load` takes it.
        weights: What identifies its weights; a worker that finds others under the name refuses them.
        kind: `"generate"`: prompts are continued or answered; `"infill"`: gaps in texts are filled in.
        settings: Arguments of `LanguageModel.generate` or `infill`, besides prompts, streams and batch size.
        batch_size: Prompts per batch.
    """

    load: Callable[[], LanguageModel]
    name: str
    weights: str
    kind: Literal["generate", "infill"]
    settings: Mapping[str, Any]
    batch_size: int

    def worker(self) -> Callable[[Piece], list[Row]]:
        """Loads the model, and returns what answers the prompts of a shard with it.

        Raises:
            AdapterError: If the model is not there, or its weights are others.
        """
        try:
            found = fingerprint(self.name)
        except AdapterError as error:
            raise AdapterError(
                f"{error}; every worker loads the model: put its folder where all of them find it under that name, or"
                " name a model of the hub"
            ) from None
        if found != self.weights:
            raise AdapterError(f"the weights of {self.name} are not those that the run began with: copy them anew")
        return self.answers(self.load())

    def answers(self, model: LanguageModel) -> Callable[[Piece], list[Row]]:
        """Returns what answers the prompts of a shard with a model."""
        ask = model.generate if self.kind == "generate" else model.infill

        def answer(piece: Piece) -> list[Row]:
            options = {**self.settings, "streams": piece.streams, "batch_size": self.batch_size}
            found = ask(piece.prompts, **options)
            return [_row(number, one.as_json()) for number, one in enumerate(found, start=piece.first)]

        return answer

    def streams(self, model: LanguageModel, prompts: Sequence[Any], seed: int) -> list[int]:
        """Returns the random stream of every prompt, as `LanguageModel.generate` gives them to all at once.

        Every prompt is encoded and checked for it, before the work. The model need not have weights.

        Raises:
            ValueError: If a setting is out of range, or a prompt cannot be encoded or is too long.
        """
        return prompt_streams(self._encoded(model, prompts), seed)

    def _encoded(self, model: LanguageModel, prompts: Sequence[Any]) -> Iterator[tuple[int, ...]]:
        """The token ids of every prompt."""
        ask = asked_generate if self.kind == "generate" else asked_infill
        for start in range(0, len(prompts), _CHUNK):
            try:
                asked = ask(model, prompts[start : start + _CHUNK], **self.settings)
            except ValueError as error:
                raise ValueError(f"{error} (prompt 0 being number {start} of all)" if start else str(error)) from None
            yield from (one.prompt.tokens for one in asked)


def _row(number: int, answer: Row) -> Row:
    """An answer as it is written: without the time that it took, which no seed decides."""
    return {"row": number, **{name: value for name, value in answer.items() if name != "seconds"}}


def digest(prompts: Sequence[Any]) -> str:
    """Identifies prompts, texts and chats."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:12]


@dataclass
class Totals:
    """What a run did.

    Attributes:
        rows: Rows answered.
        nfe: Evaluations that they took part in.
        new_tokens: Their tokens.
    """

    rows: int = 0
    nfe: int = 0
    new_tokens: int = 0

    def add(self, rows: Sequence[Row]) -> None:
        """Counts rows."""
        self.rows += len(rows)
        self.nfe += sum(row["nfe"] for row in rows)
        self.new_tokens += sum(row["new_tokens"] for row in rows)


def fill(
    shards: Shards,
    waiting: Sequence[int],
    prompts: Sequence[Any],
    streams: Sequence[int],
    make: Callable[[], Callable[[Piece], list[Row]]],
    engine: Engine,
    on_rows: Callable[[int], None],
) -> Totals:
    """Answers the prompts of the shards that are not finished, and writes each shard as it is answered.

    Args:
        shards: Where the answers go.
        waiting: The shards to make, as `Shards.open` tells them.
        prompts: All prompts of the run.
        streams: The random stream of each.
        make: Makes a worker.
        engine: Carries out the work.
        on_rows: Called with the number of rows just written.

    Raises:
        ValueError: If a shard cannot be written, for instance on a full disk.
    """
    totals = Totals()
    work = []
    for number in waiting:
        part = shards.range(number)
        work.append((number, Piece(part.start, prompts[part.start : part.stop], streams[part.start : part.stop])))
    for number, rows in engine(make, work):
        shards.write(number, rows)
        totals.add(rows)
        on_rows(len(rows))
    return totals
