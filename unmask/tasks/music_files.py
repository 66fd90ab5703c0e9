"""Files of chorales: reads and writes MIDI, and draws piano rolls."""

from __future__ import annotations

import io
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from ..errors import DataError
from ..files.writing import write_figure, write_output
from ..models.networks.coconet import MASK_ID, STEPS, VOICES
from ..viewing import drawing
from .music import LOWEST, NAMES, pitch_name

TICKS_PER_STEP = 120
"""MIDI ticks per sixteenth note; a quarter note has 480."""

_CHOIR = 52
_DRUMS = 9
_LONGEST = 100_000
_COLOURS = ("#d55e00", "#e6a000", "#009e73", "#0072b2")


@dataclass(frozen=True)
class Note:
    """A pitch held in a voice over several steps.

    Attributes:
        voice: From 0 for the soprano to 3 for the bass.
        pitch: MIDI number of the pitch.
        start: The first step of the note.
        stop: The first step after it.
        given: Whether the note was given, not composed.
    """

    voice: int
    pitch: int
    start: int
    stop: int
    given: bool = False


def notes_of(tokens: Int[Tensor, " 256"], given: Bool[Tensor, " 256"] | None = None) -> list[Note]:
    """Returns the notes of a complete sequence, ordered by voice and start; consecutive equal tokens are one note.

    A note of which only a part was given becomes two notes. The tokens do not say whether a note was repeated or held.

    Args:
        tokens: The sequence.
        given: True where a token was given; default: none was.

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


def read_midi(content: bytes, name: str) -> tuple[tuple[int, ...], ...]:
    """Reads a MIDI file as steps of a sixteenth note: the pitches that sound in each step, from soprano to bass.

    If there are four tracks or channels in each of which one note sounds at a time, they are the four voices, ordered
    by their average pitch. Otherwise the pitches of each step are sorted, as for a piece written for a keyboard. Notes
    begin and end at the nearest step, and last at least one step. Percussion (channel 10) is left out.

    Args:
        content: The bytes of the file.
        name: What messages call the file.

    Raises:
        DataError: If the file is damaged, of type 2 (independent tracks), timed in frames, too long, or has no notes.
        ImportError: If mido is not installed (extra `music`).
    """
    mido = _mido()
    try:
        file = mido.MidiFile(file=io.BytesIO(content), clip=True)
    except Exception as error:  # mido raises errors of many kinds for damaged files
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name} is not a MIDI file that can be read: {said}") from None
    if file.type == 2:
        raise DataError(f"{name} is a MIDI file of type 2, whose tracks are independent; save it as type 1")
    if not 0 < file.ticks_per_beat < 0x8000:
        raise DataError(f"{name} counts time in frames, not in beats; save it with ticks per quarter note")
    voices = [_spans(track, file.ticks_per_beat / 4) for track in file.tracks]
    parts = [
        spans for by_channel in voices for channel, spans in sorted(by_channel.items()) if channel != _DRUMS and spans
    ]
    if not parts:
        raise DataError(f"{name} does not hold any notes")
    length = max(stop for spans in parts for _, stop, _ in spans)
    if length > _LONGEST:
        raise DataError(f"{name} lasts {length} sixteenth notes, more than the {_LONGEST} that are read")
    sounding: list[list[set[int]]] = [[set() for _ in range(length)] for _ in parts]
    for part, spans in zip(sounding, parts, strict=True):
        for start, stop, pitch in spans:
            for step in range(start, stop):
                part[step].add(pitch)
    if len(parts) == VOICES and all(len(pitches) <= 1 for part in sounding for pitches in part):
        mean = [
            sum(pitch * (stop - start) for start, stop, pitch in spans) / sum(b - a for a, b, _ in spans)
            for spans in parts
        ]
        ordered = sorted(range(VOICES), key=lambda voice: -mean[voice])
        return tuple(tuple(pitch for voice in ordered for pitch in sounding[voice][step]) for step in range(length))
    return tuple(tuple(sorted(set().union(*(part[step] for part in sounding)), reverse=True)) for step in range(length))


def _spans(track: Any, step: float) -> dict[int, list[tuple[int, int, int]]]:
    """Returns the notes of a track by channel, each as its first step, the first step after it, and its pitch.

    If a pitch begins again while it sounds, each end belongs to the note that began first. The end of the track ends
    all notes that still sound.
    """
    found: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    sounding: dict[tuple[int, int], list[int]] = defaultdict(list)
    time = 0

    def close(channel: int, pitch: int) -> None:
        if sounding[channel, pitch]:
            start = round(sounding[channel, pitch].pop(0) / step)
            found[channel].append((start, max(start + 1, round(time / step)), pitch))

    for message in track:
        time += message.time
        if message.type == "note_on" and message.velocity > 0:
            sounding[message.channel, message.note].append(time)
        elif message.type in ("note_on", "note_off"):
            close(message.channel, message.note)
    for (channel, pitch), starts in sounding.items():
        while starts:
            close(channel, pitch)
    return found


def _mido() -> ModuleType:
    try:
        import mido
    except ImportError as error:
        raise ImportError('MIDI files need mido: pip install "unmask[music]"') from error
    return mido


def write_midi(tokens: Int[Tensor, " 256"], path: Path, beats_per_minute: float = 72.0) -> None:
    """Writes a sequence as a MIDI file with a track and a channel per voice, and 120 ticks per sixteenth note.

    Args:
        tokens: A complete sequence.
        path: The file to write; an existing file is replaced.
        beats_per_minute: Quarter notes per minute.

    Raises:
        ValueError: If there are not 256 tokens, one is a mask, the tempo is not above 3.6 (MIDI's slowest), or the file
            cannot be written.
        ImportError: If mido is not installed (extra `music`).
    """
    mido = _mido()
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
    content = io.BytesIO()
    file.save(file=content)
    write_output(path, content.getvalue())


def write_piano_roll(
    tokens: Int[Tensor, " 256"], path: Path, given: Bool[Tensor, " 256"] | None = None, title: str = ""
) -> None:
    """Draws a sequence as a piano roll, with a colour per voice; given notes are pale and hatched.

    Args:
        tokens: A complete sequence.
        path: The file to write; its suffix determines the format (`.png`).
        given: True where a token was given; default: none was.
        title: The title of the picture.

    Raises:
        ValueError: If there are not 256 tokens, one is a mask, matplotlib does not know the format, or the file cannot
            be written.
        ImportError: If matplotlib is not installed (extra `plot`).
    """
    pyplot = drawing.pyplot("pictures")
    from matplotlib.patches import Patch

    notes = notes_of(tokens, given)
    figure, axes = pyplot.subplots(figsize=(11, 5), constrained_layout=True)
    for note in notes:
        # Each voice is drawn a little thinner than the one above it, so that voices on the same pitch stay visible.
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
    write_figure(path, figure, dpi=110)
    pyplot.close(figure)
