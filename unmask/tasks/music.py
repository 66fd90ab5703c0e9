"""Four-part chorales: harmonise a given melody, fill in a gap, or compose a whole piece.

A sequence is 64 steps of a sixteenth note in four voices, voice by voice: token `64·voice + step` is a pitch, MIDI
`36 + token`, and 46 is the mask. A note held over several steps is the same token several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..checks import whole
from ..denoiser import Denoiser, NetworkDenoiser
from ..draws.streams import derive
from ..errors import DataError
from ..files.jsonl import read_json
from ..files.reading import decode, read_bytes
from ..likelihood.nelbo import chain_log_likelihood
from ..models.networks.coconet import LENGTH, MASK_ID, PITCHES, STEPS, VOCAB_SIZE, VOICES
from ..models.registry import load
from ..rules import geometry
from ..rules.profile import Relations
from ..viewing.layout import Layout
from ._common import check_split
from .task import Prompts

NAMES = ("soprano", "alto", "tenor", "bass")
LOWEST = 36
"""MIDI number of token 0, the C two octaves below middle C."""

GAP = (24, 40)
"""The steps that the kind `fill` masks, in all voices: 16 of the 64."""

KINDS = {"harmonise": (("soprano",), None), "fill": (NAMES, GAP), "compose": ((), None)}
"""For each kind of prompt: the voices that are shown, and the steps in which they are masked nevertheless."""

SPLITS = {"train": "train", "validation": "valid", "test": "test"}
"""The names of the splits, and their keys in a file."""

_ROW = 16
_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


@dataclass(frozen=True)
class Chorale:
    """A piece of music in a file.

    Attributes:
        split: The split of the piece.
        number: The index of the piece in its split, from 0.
        steps: MIDI pitches of each sixteenth note, from the soprano to the bass; fewer than four where voices rest.
    """

    split: str
    number: int
    steps: tuple[tuple[int, ...], ...]

    def starts(self) -> list[int]:
        """Returns all steps at which a window of 64 steps can begin (see `window`)."""
        wrong = [number for number, step in enumerate(self.steps) if _fault(step)]
        starts, first = [], 0
        for stop in [*wrong, len(self.steps)]:
            starts.extend(range(first, stop - STEPS + 1))
            first = stop + 1
        return starts

    def window(self, start: int | None = None) -> Int[Tensor, " 256"]:
        """Returns the tokens of the 64 steps from `start` on, by default of the last 64 steps.

        Raises:
            DataError: If there are fewer than 64 such steps, one of them does not have four pitches, or a pitch is out
                of range.
        """
        start = len(self.steps) - STEPS if start is None else start
        steps = self.steps[start : start + STEPS] if start >= 0 else ()
        name = f"piece {self.number} of {self.split}"
        if len(steps) < STEPS:
            raise DataError(f"{name} has {len(self.steps)} steps, fewer than {STEPS} from step {max(start, 0)} on")
        for number, step in enumerate(steps, start=start):
            if fault := _fault(step):
                raise DataError(f"{name}, step {number}, {fault}")
        return (torch.tensor(steps) - LOWEST).T.reshape(-1)


def _fault(step: tuple[int, ...]) -> str:
    if len(step) != VOICES:
        return f"has {len(step)} pitches; a sequence has four in every step"
    if not all(LOWEST <= pitch < LOWEST + PITCHES for pitch in step):
        return f"has a pitch outside {LOWEST}..{LOWEST + PITCHES - 1}: {list(step)}"
    return ""


def read_chorales(path: Path | None = None) -> dict[str, list[Chorale]]:
    """Reads chorales: the pieces of each split of a file.

    Args:
        path: A JSON file, gzipped or not, that holds `{"train": [...], "valid": [...], "test": [...]}` or some of these
            keys; a piece is a list of steps, and a step is a list of MIDI pitches. Or a MIDI file, which becomes the
            only piece of the test split (see `unmask.tasks.music_files.read_midi`). Default: the chorales that ship
            with the package.

    Raises:
        DataError: If the file cannot be read, or does not hold such JSON. The message names the piece and the step.
        ImportError: For a MIDI file, if mido is not installed (extra `music`).
    """
    if path is None:
        content, name = resources.files("unmask").joinpath("data/music/chorales.json.gz").read_bytes(), "the chorales"
    else:
        content, name = read_bytes(path, "the chorales"), str(path)
    if content.startswith(b"MThd"):
        from .music_files import read_midi

        return {split: [] for split in SPLITS} | {"test": [Chorale("test", 0, read_midi(content, name))]}
    found = read_json(decode(content, name), name)
    keys = {stored: split for split, stored in SPLITS.items()}
    if not isinstance(found, dict) or not found or set(found) - set(keys):
        shown = f"the keys {', '.join(map(str, found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise DataError(f"{name} must hold an object with the keys train, valid, test or some of them, got {shown}")
    chorales: dict[str, list[Chorale]] = {split: [] for split in SPLITS}
    for key, pieces in found.items():
        for number, piece in enumerate(_list(pieces, f"{name}: {key}")):
            where = f"{name}: piece {number} of {key}"
            steps = [_list(step, f"{where}, step {index}") for index, step in enumerate(_list(piece, where))]
            for index, step in enumerate(steps):
                if any(isinstance(pitch, bool) or not isinstance(pitch, int) for pitch in step):
                    raise DataError(f"{where}, step {index} must be a list of MIDI pitches, got {step!r}")
            chorales[keys[key]].append(Chorale(keys[key], number, tuple(map(tuple, steps))))
    return chorales


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where} must be a list, got {value!r:.40}")
    return value


def masked_part(given: Iterable[str], gap: tuple[int, int] | None = None) -> Bool[Tensor, " 256"]:
    """Returns which notes are masked: those of voices that are not given, and those of all voices in a gap.

    Args:
        given: Names of the voices that are shown.
        gap: The first step of the gap and the first step after it, counted from 0; `None`: there is no gap.

    Raises:
        ValueError: If there is no such voice, the gap is not inside the 64 steps, or nothing is masked.
    """
    voices = tuple(given)
    unknown = sorted(set(voices) - set(NAMES))
    if unknown:
        raise ValueError(f"unknown voice {unknown[0]!r}; choose among {', '.join(NAMES)}")
    masked = torch.tensor([name not in voices for name in NAMES]).unsqueeze(-1).repeat(1, STEPS)
    if gap is not None:
        first, stop = gap
        if not 0 <= first < stop <= STEPS:
            raise ValueError(f"a gap START:STOP has 0 <= START < STOP <= {STEPS}, got {first}:{stop}")
        masked[:, first:stop] = True
    if not bool(masked.any()):
        raise ValueError("all four voices are given and there is no gap: nothing is left to compose")
    return masked.reshape(-1)


def equal_previous(tokens: Int[Tensor, "pieces 256"]) -> Float[Tensor, " pieces"]:
    """Returns the share of tokens that equal the previous token of the same voice; the first ones are not counted."""
    notes = tokens.reshape(-1, VOICES, STEPS)
    return (notes[..., 1:] == notes[..., :-1]).double().mean((1, 2))


def voices_in_order(tokens: Int[Tensor, "pieces 256"]) -> Float[Tensor, " pieces"]:
    """Returns the share of steps where soprano >= alto >= tenor >= bass."""
    notes = tokens.reshape(-1, VOICES, STEPS)
    return (notes[:, :-1] >= notes[:, 1:]).all(1).double().mean(1)


def chain_score(
    judge: Denoiser,
    prompts: Int[Tensor, "prompts 256"],
    tokens: Int[Tensor, "prompts 256"],
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, " prompts"]:
    """Returns the chain log-likelihood of completions, in nats per filled-in token (see `chain_log_likelihood`).

    The order of the tokens is a function of the prompt, so all completions of a prompt are judged in the same order.
    It takes one evaluation of the judge per filled-in token.

    Args:
        judge: The model that judges.
        prompts: The prompts, with masks.
        tokens: The completions.
        on_batch: Called with the number of evaluations just made.

    Raises:
        ValueError: If a completion contains a mask, or the number of completions is not that of the prompts.
    """
    masked = prompts == judge.mask_id
    streams = [derive(0, prompt) for prompt in prompts.tolist()]
    return chain_log_likelihood(judge, tokens, maskable=masked, streams=streams, on_batch=on_batch) / masked.sum(-1)


def _last(chorales: list[Chorale]) -> list[tuple[Chorale, int]]:
    """Returns the first of the last 64 steps of each piece, without the pieces that have a rest there."""
    lasts = [(chorale, len(chorale.steps) - STEPS) for chorale in chorales]
    return [(chorale, last) for chorale, last in lasts if last in chorale.starts()]


def show(tokens: Int[Tensor, " 256"]) -> str:
    """Renders a sequence as text, in rows of 16 steps with a line per voice: `·` is a held note, `?` is a mask."""
    notes = tokens.reshape(VOICES, STEPS).tolist()
    systems = []
    for first in range(0, STEPS, _ROW):
        lines = [f"steps {first} to {first + _ROW - 1}"]
        for name, voice in zip(NAMES, notes, strict=True):
            texts = [_text(voice, step, step == first) for step in range(first, first + _ROW)]
            lines.append(f"{name:>8} " + " ".join(f"{text:<3}" for text in texts).rstrip())
        systems.append("\n".join(lines))
    return "\n\n".join(systems)


def _text(voice: list[int], step: int, first: bool) -> str:
    if voice[step] == MASK_ID:
        return "?"
    if not first and voice[step] == voice[step - 1]:
        return "·"
    return pitch_name(LOWEST + voice[step])


def pitch_name(midi: int) -> str:
    """Returns the name of a MIDI pitch with its octave: 60 is C4, middle C."""
    return f"{_CLASSES[midi % 12]}{midi // 12 - 1}"


class Windows:
    """Examples of 64 steps of a chorale, all of whose tokens may be masked.

    Args:
        places: The chorale and the first step of each example.
    """

    def __init__(self, places: list[tuple[Chorale, int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " 256"], Bool[Tensor, " 256"]]:
        chorale, start = self.places[index]
        return chorale.window(start), torch.ones(LENGTH, dtype=torch.bool)


class MusicTask:
    """Chorales with masked notes, scored by the probability that a model gives to the completion.

    The prompts are the last 64 steps of each piece. Pieces with a rest there are left out: two of validation and two of
    test among the chorales that ship with the package. Training examples are all windows of 64 steps without a rest.

    The score is the chain log-likelihood, in nats per filled-in token (see `chain_log_likelihood`): the tokens are
    judged one at a time, each with an evaluation of the model, in a random order that is the same for all completions
    of a prompt.

    Args:
        kind: `harmonise` shows the soprano and masks the other voices (192 tokens), `fill` masks 16 steps of all
            voices (64 tokens), and `compose` masks everything (256 tokens).
        data: A file of chorales (see `read_chorales`); default: those that ship with the package.
        model: The judge: the name of an embedded model or a checkpoint folder. It is loaded for the first score.
        device: The device of the judge.

    Raises:
        ValueError: If there is no such kind.
        DataError: If the data cannot be read.
    """

    name = "music"
    quality = "chain log-likelihood, nats per filled-in token"
    vocab_size = VOCAB_SIZE
    mask_id = MASK_ID
    length = LENGTH

    def __init__(
        self,
        kind: Literal["harmonise", "fill", "compose"] = "harmonise",
        data: str | None = None,
        model: str = "music",
        device: str = "cpu",
    ) -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
        self.kind, self.model, self.device = kind, model, device
        self._judge: NetworkDenoiser | None = None
        self.chorales = read_chorales(None if data is None else Path(data))

    def examples(self, split: str) -> Windows:
        """Returns windows of 64 steps: all those of `"train"`, and the last one of each piece of the other splits.

        Raises:
            ValueError: If there is no such split.
        """
        chorales = self._split(split)
        if split != "train":
            return Windows(_last(chorales))
        return Windows([(chorale, start) for chorale in chorales for start in chorale.starts()])

    def prompts(self, split: str, limit: int) -> Prompts:
        """Returns prompts of the last 64 steps of the first `limit` pieces of a split that have no rest there.

        Raises:
            ValueError: If there is no such split, or `limit` is below 1.
        """
        whole("limit", limit, 1)
        windows = [chorale.window(start) for chorale, start in _last(self._split(split))[:limit]]
        answers = torch.stack(windows) if windows else torch.zeros(0, LENGTH, dtype=torch.int64)
        return Prompts.of(answers, masked_part(*KINDS[self.kind]).expand_as(answers), MASK_ID)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts 256"]) -> Float[Tensor, " prompts"]:
        """Returns the chain log-likelihood of each completion, in nats per filled-in token.

        Raises:
            AdapterError: If the judge cannot be loaded or is not a model of chorales.
            ValueError: If a completion contains a mask, or the number of completions is not that of the prompts.
        """
        if self._judge is None:
            from .fit import check_model

            judge = load(self.model, device=self.device)
            check_model(self.model, judge, self)
            self._judge = judge
        return chain_score(self._judge, prompts.tokens.to(self.device), tokens.to(self.device)).cpu()

    def geometry(self) -> Relations:
        """Returns which pairs of positions are alike: pairs of notes equally far apart in time, in one voice or two."""
        return geometry.music(VOICES, STEPS)

    def show(self, tokens: Int[Tensor, " 256"]) -> str:
        """Renders a sequence as text (see the function `show`)."""
        return show(tokens)

    def symbol(self, token: int) -> str:
        """Returns the name of a pitch."""
        return pitch_name(LOWEST + token)

    def layout(self, tokens: Int[Tensor, " 256"]) -> Layout:
        """Returns a grid with a row per voice and lines between groups of 16 steps, the same for all sequences."""
        return replace(Layout.grid(VOICES, STEPS, box=(VOICES, _ROW)), rows=NAMES)

    def _split(self, split: str) -> list[Chorale]:
        return self.chorales[check_split(split)]
