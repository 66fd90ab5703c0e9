"""The models of a server: which requests each can answer, and the text of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from ..denoiser import NetworkDenoiser
from ..folders import EMBEDDED
from ..language import Completion, LanguageModel, Prompt
from ..language.asked import Asked, Settings
from ..language.texts import Continuation
from ..models.pretrained.cache import Cached, exact_cache
from ..tasks.of_model import trained_on
from ..tasks.sudoku import MASK
from .by_length import ByLength
from .runner import Runner
from .within_memory import WithinMemory

SHIPPED = ("chat", "sudoku", "rxnmapper")
"""What is served if no model is named."""

CELLS = 81
"""Of a Sudoku."""

KINDS = ("reactions", "antibodies")
"""Tasks whose models are language models with a language of their own."""


@dataclass(frozen=True)
class Served:
    """A model under the name that requests know it by.

    Attributes:
        name: Its name.
        denoiser: The model.
        folder: Where it was loaded from, as `load` takes it.
        cached: The model with kept keys and values.
    """

    name: str
    denoiser: NetworkDenoiser
    folder: str = ""
    cached: Cached | WithinMemory | None = None
    _texts: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def kind(self) -> str:
        """`"sudoku"`, `"text"`, or what the texts of the model are: one of `KINDS`."""
        if not isinstance(self.denoiser, LanguageModel):
            return "sudoku"
        task = trained_on(self.folder).task if self.folder in EMBEDDED else None
        return task if task in KINDS else "text"

    @property
    def language(self) -> LanguageModel:
        """The model as a language model.

        Raises:
            ValueError: If it is not a language model.
        """
        if not isinstance(self.denoiser, LanguageModel):
            raise ValueError(f"the model {self.name} is a {self.kind} model and takes no text; ask it by /v1/unmask")
        return self.denoiser

    def runner(self) -> Runner:
        """Returns a runner, which works on sequences of this model."""
        on_processor = isinstance(self.denoiser, LanguageModel) and self.denoiser.device.type == "cpu"
        return Runner(ByLength(self.denoiser) if on_processor else self.denoiser, self.cached)

    @cached_property
    def max_length(self) -> int | None:
        """The largest number of tokens of a prompt and its answer together; `None` if there is no limit."""
        return self.denoiser.max_length if isinstance(self.denoiser, LanguageModel) else CELLS

    def about(self) -> dict[str, Any]:
        """Returns what `GET /v1/models` reports about the model."""
        about: dict[str, Any] = {
            "kind": self.kind,
            "max_length": self.max_length,
            "vocab_size": self.denoiser.vocab_size,
        }
        if isinstance(self.denoiser, LanguageModel):
            chat = self.denoiser.tokenizer is not None and bool(self.denoiser.tokenizer.chat_template)
            about |= {"chat": chat, "block_causal": self.denoiser.block_causal}
        return about

    def token_text(self, token: int) -> str:
        """The text of a token by itself, special tokens written out."""
        if token not in self._texts:
            self._texts[token] = self._token_text(token)
        return self._texts[token]

    def _token_text(self, token: int) -> str:
        if not isinstance(self.denoiser, LanguageModel):
            return str(token)
        if self.denoiser.tokenizer is None:
            return ""
        # After another token: a decoder drops the space that a text begins with.
        return Continuation(self.denoiser.tokenizer, [_some_token(self.denoiser)]).text([token], special=True)

    def puzzle(self, text: str, seed_stream: int, settings: Settings) -> Asked:
        """Returns what to ask for a Sudoku of 81 characters. Empty cells are `.` or `0`; white space is ignored.

        Raises:
            ValueError: If the text is not a Sudoku, or has no empty cells.
        """
        cells = "".join(text.split()).replace(".", "0")
        if len(cells) != CELLS or not (cells.isascii() and cells.isdigit()):
            raise ValueError(f"a Sudoku is {CELLS} digits, with . or 0 for an empty cell, got {text!r:.60}")
        row = tuple(MASK if cell == "0" else int(cell) for cell in cells)
        if MASK not in row:
            raise ValueError("the Sudoku has no empty cell")
        return Asked(Prompt(cells, row), row, seed_stream, settings)

    def text(self, asked: Asked, completion: Completion) -> str:
        """Returns the text of an answer; for a Sudoku, its 81 digits."""
        if isinstance(self.denoiser, LanguageModel):
            return completion.text
        tokens = iter(completion.tokens)
        return "".join(str(next(tokens) if token == MASK else token) for token in asked.row)


@lru_cache(maxsize=16)
def _some_token(model: LanguageModel) -> int:
    assert model.tokenizer is not None
    return next(iter(model.tokenizer("a", add_special_tokens=False)["input_ids"]), 0)


def serve_models(
    models: Sequence[str], *, cache: str | None = None, rows: int = 32, memory: int | None = None, **options: Any
) -> list[Served]:
    """Loads models to be served. A model in a folder is named by the last part of its path.

    Args:
        models: Names or folders of the models, as for `load`.
        cache: Which keys and values to keep, one of `CACHES`; default: for each model, those that change no answer.
        rows: The number of sequences whose keys and values are kept at once.
        memory: Bytes that the kept keys and values of a model may take; default: as many as the rows take.
        **options: Options of `load`.

    Raises:
        AdapterError: If a model cannot be loaded.
        ValueError: If a model is neither a language model with a tokenizer nor a Sudoku model, two models have the same
            name, or the cache does not go with a model.
    """
    from ..models.registry import load

    served: list[Served] = []
    for model in models:
        denoiser = load(model, **options)
        name = model if model in EMBEDDED else Path(model).name
        if not isinstance(denoiser, LanguageModel) and trained_on(model).task != "sudoku":
            raise ValueError(
                f"cannot serve {model}: it is neither a language model with a tokenizer nor one of Sudokus"
            )
        if name in [one.name for one in served]:
            raise ValueError(f"two models are called {name}; give folders with different names")
        served.append(Served(name, denoiser, model, _kept(denoiser, cache, rows, memory)))
    return served


def _kept(denoiser: NetworkDenoiser, cache: str | None, rows: int, memory: int | None) -> Cached | WithinMemory | None:
    """Returns the model with kept keys and values, or `None` if none are to be kept."""
    if not isinstance(denoiser, LanguageModel):
        return None
    cache = exact_cache(denoiser.network) if cache is None else cache
    if cache == "none":
        return None
    cached = Cached(denoiser, cache, rows)
    return cached if memory is None else WithinMemory(cached, memory)
