"""Four-part chorales: given a melody, harmonise it; fill in a gap; compose from nothing.

A sequence is 64 steps of a sixteenth note in four voices, voice by voice: token `64·voice + step` is a pitch, MIDI
`36 + token`, and 46 is the mask. A note held over several steps is the same token several times.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..denoiser import Denoiser, NetworkDenoiser
from ..draws.streams import derive
from ..errors import DataError
from ..likelihood.nelbo import chain_log_likelihood
from ..models.networks.coconet import LENGTH, MASK_ID, PITCHES, STEPS, VOCAB_SIZE, VOICES
from ..models.registry import load
from ..viewing.layout import Layout
from .task import Prompts

NAMES = ("soprano", "alto", "tenor", "bass")
LOWEST = 36
"""MIDI number of token 0, the C two octaves below middle C."""

GAP = (24, 40)
"""The steps that the kind `fill` masks, in all voices: 16 of the 64."""

KINDS = {"harmonise": (("soprano",), None), "fill": (NAMES, GAP), "compose": ((), None)}
"""What is shown of a chorale in each kind of prompt: voices, and the steps in which they are masked all the same."""

SPLITS = {"train": "train", "validation": "valid", "test": "test"}
"""Names of the splits, and of the keys that hold them in a file."""

_ROW = 16
_CLASSES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


@dataclass(frozen=True)
class Chorale:
    """A piece of a file.

    Attributes:
        split: The split it is in.
        number: Its place there, counted from 0.
        steps: MIDI pitches of each sixteenth note, from the soprano to the bass; fewer than four where voices rest.
    """

    split: str
    number: int
    steps: tuple[tuple[int, ...], ...]

    def starts(self) -> list[int]:
        """Returns every step from which on 64 steps can be written as tokens (see `window`)."""
        wrong = [number for number, step in enumerate(self.steps) if _fault(step)]
        starts, first = [], 0
        for stop in [*wrong, len(self.steps)]:
            starts.extend(range(first, stop - STEPS + 1))
            first = stop + 1
        return starts

    def window(self, start: int | None = None) -> Int[Tensor, " 256"]:
        """Returns the tokens of 64 steps from `start` on, by default the last 64.

        Raises:
            DataError: If there are no 64 such steps, one of them has not four pitches, or a pitch is out of range.
        """
        start = len(self.steps) - STEPS if start is None else start
        steps = self.steps[start : start + STEPS] if start >= 0 else ()
        name = f"piece {self.number} of {self.split}"
        if len(steps) < STEPS:
            raise DataError(f"{name} has {len(self.steps)} steps, not {STEPS} from step {max(start, 0)} on")
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
        path: JSON, perhaps gzipped: `{"train": [...], "valid": [...], "test": [...]}` or some of these; a piece is a
            list of steps, a step a list of MIDI pitches. Default: the chorales that ship with the package.

    Raises:
        DataError: If the file is not such JSON; the message names the piece and the step.
        OSError: If it cannot be read.
    """
    if path is None:
        content, name = resources.files("unmask").joinpath("data/music/chorales.json.gz").read_bytes(), "the chorales"
    else:
        content, name = path.read_bytes(), str(path)
    try:
        found = json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{name} is not JSON ({error})") from error
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
    """Returns which notes are masked: of the voices that are not given, and of all voices in a gap.

    Args:
        given: Voices that are shown.
        gap: First step of the gap, and the first one after it; steps are counted from 0.

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
    """Returns the share of tokens equal to the same voice's previous step, of those that have one."""
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
    """Returns the chain log-likelihood of completions in nats per filled-in token (see `chain_log_likelihood`).

    The order in which the tokens of a completion are judged is a function of its prompt: any two completions of a
    prompt are compared in the same order. It takes one evaluation per filled-in token.

    Args:
        judge: The model.
        prompts: What was completed, with masks.
        tokens: The completions.
        on_batch: Called with the number of evaluations just made.

    Raises:
        ValueError: If a completion contains a mask, or there are not as many as prompts.
    """
    masked = prompts == judge.mask_id
    streams = [derive(0, prompt) for prompt in prompts.tolist()]
    return chain_log_likelihood(judge, tokens, maskable=masked, streams=streams, on_batch=on_batch) / masked.sum(-1)


def _last(chorales: list[Chorale]) -> list[tuple[Chorale, int]]:
    """The last 64 steps of each piece that has no rest there."""
    lasts = [(chorale, len(chorale.steps) - STEPS) for chorale in chorales]
    return [(chorale, last) for chorale, last in lasts if last in chorale.starts()]


def show(tokens: Int[Tensor, " 256"]) -> str:
    """Renders a sequence in rows of 16 steps, a line per voice: `·` while a note is held, `?` where masked."""
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
    """Examples: 64 steps of chorales, every token maskable.

    Args:
        places: Each one's chorale and first step.
    """

    def __init__(self, places: list[tuple[Chorale, int]]) -> None:
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Int[Tensor, " 256"], Bool[Tensor, " 256"]]:
        chorale, start = self.places[index]
        return chorale.window(start), torch.ones(LENGTH, dtype=torch.bool)


class MusicTask:
    """Chorales with something to be filled in, scored by how probable a model finds what was.

    The prompts are of the last 64 steps of each piece. Pieces with a rest there are left out: of the chorales that ship
    with the package, two of validation and two of test. Training examples are all stretches of 64 steps without a rest.

    The score is the chain log-likelihood per filled-in token in nats (see `chain_log_likelihood`): one token at a time
    in a random order that is the same for all completions of a prompt, one evaluation of the model each.

    Args:
        kind: `harmonise` shows the soprano and masks the other voices (192 tokens), `fill` masks 16 steps of all
            voices (64), `compose` everything (256).
        data: A file of chorales (see `read_chorales`); default: those that ship with the package.
        model: The judge: an embedded model or a checkpoint folder; loaded when the first score is asked for.
        device: Where the judge computes.

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
        try:
            self.chorales = read_chorales(None if data is None else Path(data))
        except OSError as error:
            raise DataError(f"cannot read the chorales {data} ({error})") from error

    def examples(self, split: str) -> Windows:
        """Returns stretches of 64 steps: every one of `"train"`, the last of each piece of the other splits.

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
        if limit < 1:
            raise ValueError(f"limit must be >= 1, got {limit}")
        windows = [chorale.window(start) for chorale, start in _last(self._split(split))[:limit]]
        answers = torch.stack(windows) if windows else torch.zeros(0, LENGTH, dtype=torch.int64)
        return Prompts.of(answers, masked_part(*KINDS[self.kind]).expand_as(answers), MASK_ID)

    def score(self, prompts: Prompts, tokens: Int[Tensor, "prompts 256"]) -> Float[Tensor, " prompts"]:
        """Returns the chain log-likelihood of each completion, in nats per filled-in token.

        Raises:
            ValueError: If a completion contains a mask, or there are not as many as prompts.
        """
        if self._judge is None:
            self._judge = load(self.model, device=self.device)
        return chain_score(self._judge, prompts.tokens.to(self.device), tokens.to(self.device)).cpu()

    def show(self, tokens: Int[Tensor, " 256"]) -> str:
        """Renders a sequence for a person to read (see the function `show`)."""
        return show(tokens)

    def symbol(self, token: int) -> str:
        """Returns the name of a pitch."""
        return pitch_name(LOWEST + token)

    def layout(self, tokens: Int[Tensor, " 256"]) -> Layout:
        """Returns a row per voice, with lines between stretches of 16 steps, of whatever sequence."""
        return replace(Layout.grid(VOICES, STEPS, box=(VOICES, _ROW)), rows=NAMES)

    def _split(self, split: str) -> list[Chorale]:
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        return self.chorales[split]
