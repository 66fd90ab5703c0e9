"""What to do with a chorale: hear it (MIDI) and look at it (a piano roll)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Int
from torch import Tensor

from ..models.networks.coconet import MASK_ID, STEPS, VOICES
from .music import LOWEST, NAMES, pitch_name

TICKS_PER_STEP = 120
"""MIDI ticks of a sixteenth note: 480 a quarter note."""

_CHOIR = 52
_COLOURS = ("#d55e00", "#e6a000", "#009e73", "#0072b2")


@dataclass(frozen=True)
class Note:
    """A pitch held in a voice over several steps.

    Attributes:
        voice: 0 for the soprano to 3 for the bass.
        pitch: MIDI number.
        start: First step.
        stop: First step after it.
        given: Whether it was given, not composed.
    """

    voice: int
    pitch: int
    start: int
    stop: int
    given: bool = False


def notes_of(tokens: Int[Tensor, " 256"], given: Bool[Tensor, " 256"] | None = None) -> list[Note]:
    """Returns the notes of a complete sequence, by voice and start; equal tokens in a row are one held note.

    A note that is partly given is two. What the tokens do not say is whether a note was struck again.

    Raises:
        ValueError: If there are not 256 tokens, or one is a mask.
    """
    if tuple(tokens.shape) != (VOICES * STEPS,):
        raise ValueError(f"a chorale is {VOICES * STEPS} tokens, got shape {tuple(tokens.shape)}")
    if bool((tokens == MASK_ID).any()):
        raise ValueError(f"{int((tokens == MASK_ID).sum())} notes are still masked: there is nothing to write for them")
    shown = [[False] * STEPS] * VOICES if given is None else given.reshape(VOICES, STEPS).tolist()
    notes = []
    for voice, row in enumerate(tokens.reshape(VOICES, STEPS).tolist()):
        start = 0
        for step in range(1, STEPS + 1):
            if step == STEPS or (row[step], shown[voice][step]) != (row[start], shown[voice][start]):
                notes.append(Note(voice, LOWEST + row[start], start, step, shown[voice][start]))
                start = step
    return notes


def write_midi(tokens: Int[Tensor, " 256"], path: Path, beats_per_minute: float = 72.0) -> None:
    """Writes a sequence as a MIDI file: a track and a channel per voice, sixteenth notes of 120 ticks.

    Args:
        tokens: A complete sequence.
        path: Where to; an existing file is replaced.
        beats_per_minute: Quarter notes per minute.

    Raises:
        ValueError: If there are not 256 tokens, one is a mask, or the tempo is not above 3.6 (MIDI's slowest).
        ImportError: If mido is not installed (extra `music`).
        OSError: If the file cannot be written.
    """
    try:
        import mido
    except ImportError as error:
        raise ImportError('MIDI files need mido: pip install "unmask[music]"') from error
    if not 3.6 <= beats_per_minute <= 6e7:
        raise ValueError(f"the tempo must be 3.6 beats per minute or more, got {beats_per_minute}")
    notes = notes_of(tokens)
    tempo = mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(beats_per_minute))
    file = mido.MidiFile(type=1, ticks_per_beat=4 * TICKS_PER_STEP, tracks=[mido.MidiTrack([tempo])])
    for voice, name in enumerate(NAMES):
        track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
        track.append(mido.Message("program_change", program=_CHOIR, channel=voice))
        for note in notes:
            if note.voice == voice:
                ticks = TICKS_PER_STEP * (note.stop - note.start)
                track.append(mido.Message("note_on", note=note.pitch, velocity=72, time=0, channel=voice))
                track.append(mido.Message("note_off", note=note.pitch, velocity=0, time=ticks, channel=voice))
        file.tracks.append(track)
    file.save(path)


def write_piano_roll(
    tokens: Int[Tensor, " 256"], path: Path, given: Bool[Tensor, " 256"] | None = None, title: str = ""
) -> None:
    """Draws a sequence as a piano roll, a colour per voice; what was given is pale and hatched.

    Args:
        tokens: A complete sequence.
        path: Where to; the suffix says the format (`.png`).
        given: Which notes were given.
        title: Above the picture.

    Raises:
        ValueError: If there are not 256 tokens, one is a mask, or matplotlib does not know the format.
        ImportError: If matplotlib is not installed (extra `plot`).
        OSError: If the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "unmask[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    notes = notes_of(tokens, given)
    figure, axes = pyplot.subplots(figsize=(11, 5), constrained_layout=True)
    for note in notes:
        # Voices that meet on one pitch stay visible: each is a little lower and thinner than the one above.
        axes.broken_barh(
            [(note.start, note.stop - note.start)],
            (note.pitch - 0.45, 0.9 - 0.18 * note.voice),
            facecolor=_COLOURS[note.voice],
            alpha=0.35 if note.given else 0.95,
            hatch="///" if note.given else None,
            edgecolor="black",
            linewidth=0.5,
        )
    pitches = [note.pitch for note in notes]
    low, high = min(pitches) - 2, max(pitches) + 2
    axes.set(xlim=(0, STEPS), ylim=(low, high), xlabel="step (sixteenth notes)", title=title)
    axes.set_xticks(range(0, STEPS + 1, 4))
    axes.set_yticks([pitch for pitch in range(low, high + 1) if pitch % 12 in (0, 4, 7)])
    axes.set_yticklabels([pitch_name(int(pitch)) for pitch in axes.get_yticks()])
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    patches = [Patch(facecolor=colour, label=name) for name, colour in zip(NAMES, _COLOURS, strict=True)]
    if any(note.given for note in notes):
        patches.append(Patch(facecolor="white", edgecolor="black", hatch="///", label="given"))
    axes.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=5, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
