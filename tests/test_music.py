"""Chorales: the data, the task's prompts and score, what is written, and the command."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import hypothesis
import mido
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from matplotlib.image import imread
from typer.testing import CliRunner

from unmask import Query, chain_log_likelihood, derive
from unmask.cli import app
from unmask.errors import DataError
from unmask.models.registry import load
from unmask.tasks.music import (
    Chorale,
    MusicTask,
    equal_previous,
    masked_part,
    pitch_name,
    read_chorales,
    show,
    voices_in_order,
)
from unmask.tasks.music_files import Note, notes_of, read_midi, write_midi, write_piano_roll
from unmask.tasks.task import Prompts, Task


@pytest.fixture(scope="module")
def task() -> MusicTask:
    return MusicTask()


def test_the_chorales_are_all_there_and_those_with_rests_left_out(task: MusicTask):
    assert isinstance(task, Task)
    chorales = read_chorales()
    assert {split: len(pieces) for split, pieces in chorales.items()} == {"train": 229, "validation": 76, "test": 77}
    assert {split: len(task.prompts(split, 1000)) for split in chorales} == {"train": 226, "validation": 74, "test": 75}
    for number in (23, 71):
        with pytest.raises(DataError, match=rf"piece {number} of test, step \d+, has \d pitches"):
            chorales["test"][number].window()
    answers = task.prompts("test", 1000).answers
    assert torch.equal(answers[0], chorales["test"][0].window())
    assert torch.equal(answers[23], chorales["test"][24].window())
    notes = torch.tensor(chorales["test"][5].steps[-64:])
    assert torch.equal(chorales["test"][5].window().reshape(4, 64) + 36, notes.T)


def test_the_statistics_of_real_chorales_are_the_published_ones(task: MusicTask):
    answers = task.prompts("test", 1000).answers
    assert float(equal_previous(answers).mean()) == pytest.approx(0.78, abs=0.005)
    assert float(voices_in_order(answers).mean()) == pytest.approx(0.98, abs=0.005)
    crossed = answers[:1].reshape(4, 64).flip(0).reshape(1, 256)
    assert float(voices_in_order(crossed)) < 0.05
    moving = torch.arange(256).remainder(46).unsqueeze(0)
    assert float(equal_previous(moving)) == 0


def test_training_examples_are_every_stretch_without_a_rest(task: MusicTask):
    train = task.examples("train")
    assert len(train) == sum(len(chorale.starts()) for chorale in read_chorales()["train"]) > 39_000
    assert len(task.examples("test")) == 75
    first, second = train[0][0].reshape(4, 64), train[1][0].reshape(4, 64)
    assert torch.equal(first[:, 1:], second[:, :-1])
    assert bool(train[len(train) - 1][1].all())
    steps: list[tuple[int, ...]] = [(60, 55, 52, 48)] * 200
    steps[70] = (60, 55, 52)
    broken = Chorale("train", 0, tuple(steps))
    assert broken.starts() == [*range(7), *range(71, 137)]
    for start in range(200):
        if start in broken.starts():
            broken.window(start)
        else:
            with pytest.raises(DataError):
                broken.window(start)
    assert Chorale("test", 0, tuple(steps[:60])).starts() == []


@pytest.mark.parametrize(("kind", "masks"), [("harmonise", 192), ("fill", 64), ("compose", 256)])
def test_prompts_mask_what_their_kind_says(kind: Any, masks: int):
    task = MusicTask(kind)
    prompts = task.prompts("validation", 3)
    masked = prompts.tokens == 46
    assert masked.sum(-1).tolist() == [masks] * 3
    assert torch.equal(prompts.tokens[~masked], prompts.answers[~masked])
    assert torch.equal(task.prompts("validation", 3).tokens, prompts.tokens)
    voices = masked[0].reshape(4, 64)
    if kind == "harmonise":
        assert not bool(voices[0].any())
    if kind == "fill":
        assert torch.equal(voices[0].nonzero().squeeze(-1), torch.arange(24, 40))


def test_the_score_is_the_chain_likelihood_and_knows_music(task: MusicTask):
    answers = task.prompts("test", 2).answers
    masked = masked_part(("soprano", "alto", "tenor", "bass"), (30, 34)).expand_as(answers)
    prompts = Prompts.of(answers, masked, 46)
    scores = task.score(prompts, answers)
    streams = [derive(0, row) for row in prompts.tokens.tolist()]
    by_hand = chain_log_likelihood(load("music"), answers, maskable=masked, streams=streams) / 16
    assert torch.equal(scores, by_hand)
    noise = torch.randint(0, 46, (2, 256), generator=torch.Generator().manual_seed(0))
    rubbish = task.score(prompts, torch.where(masked, noise, answers))
    assert bool((scores > -1.5).all())
    assert bool((rubbish < scores - 3).all())
    with pytest.raises(ValueError, match="contain the mask"):
        task.score(prompts, prompts.tokens)


@torch.no_grad()
def test_the_model_predicts_real_chorales_as_well_as_measured(task: MusicTask):
    """Cross-entropy of 12 test chorales at three masking rates, against the figures for all of them.

    The spread over pieces is about a third of the mean; the bounds are four standard errors.
    """
    answers, denoiser = task.prompts("test", 12).answers, load("music")
    generator = torch.Generator().manual_seed(0)
    for rate, expected in ((0.25, 0.20), (0.75, 0.76), (1.0, 2.69)):
        masked = torch.rand(answers.shape, generator=generator) < rate
        logits = denoiser(Query.of(torch.where(masked, 46, answers), 46))
        found = float(torch.nn.functional.cross_entropy(logits, answers[masked]))
        assert found == pytest.approx(expected, rel=0.4)


def test_notes_are_held_and_split_where_given_ends():
    tokens = torch.zeros(4, 64, dtype=torch.int64)
    tokens[0, 10:] = 24
    given = torch.zeros(4, 64, dtype=torch.bool)
    given[0, :32] = True
    notes = notes_of(tokens.reshape(-1), given.reshape(-1))
    soprano = [Note(0, 36, 0, 10, True), Note(0, 60, 10, 32, True), Note(0, 60, 32, 64, False)]
    assert notes == [*soprano, *(Note(voice, 36, 0, 64) for voice in (1, 2, 3))]
    assert notes_of(tokens.reshape(-1))[:2] == [Note(0, 36, 0, 10), Note(0, 60, 10, 64)]
    tokens[1, 5] = 46
    with pytest.raises(ValueError, match="1 notes are still masked"):
        notes_of(tokens.reshape(-1))
    with pytest.raises(ValueError, match="256 tokens"):
        notes_of(tokens)
    assert [pitch_name(pitch) for pitch in (36, 60, 61, 81)] == ["C2", "C4", "C#4", "A5"]


def test_what_midi_says_is_what_was_written(task: MusicTask, tmp_path: Path):
    tokens = task.prompts("test", 4).answers[3]
    path = tmp_path / "chorale.mid"
    write_midi(tokens, path, beats_per_minute=60)
    file = mido.MidiFile(path)
    assert file.length == pytest.approx(16.0)  # 64 sixteenths at a quarter a second
    read = torch.full((4, 64), -1)
    for voice, track in enumerate(file.tracks[1:]):
        assert track.name == ("soprano", "alto", "tenor", "bass")[voice]
        now, sounding = 0, -1
        for message in track:
            assert message.time % 120 == 0
            if message.time:
                read[voice, now : now + message.time // 120] = sounding
                now += message.time // 120
            if message.type == "note_on":
                assert message.channel == voice
                sounding = message.note - 36
            elif message.type == "note_off":
                assert message.note - 36 == sounding
        assert now == 64
    assert torch.equal(read.reshape(-1), tokens)
    before = path.read_bytes()
    write_midi(tokens, path, beats_per_minute=60)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="tempo"):
        write_midi(tokens, path, beats_per_minute=0)


def area(path: Path, colour: tuple[int, int, int]) -> int:
    """How many pixels have a colour, up to rounding."""
    return int((np.abs(255 * imread(path)[..., :3] - np.array(colour)).max(-1) <= 2).sum())


def test_midi_is_read_back_as_it_was_written(task: MusicTask, tmp_path: Path):
    path = tmp_path / "chorale.mid"
    window = task.prompts("test", 3).answers[2]
    write_midi(window, path)
    steps = read_midi(path.read_bytes(), "it")
    assert torch.equal(Chorale("test", 0, steps).window(), window)
    assert torch.equal(MusicTask(data=str(path)).prompts("test", 9).answers, window.unsqueeze(0))
    file = mido.MidiFile(path)
    # A piano's file: all notes on one track, a held one struck twice; drums are no voice.
    flat = mido.MidiTrack(mido.merge_tracks(file.tracks))
    for message in flat:
        if message.type in ("note_on", "note_off"):
            message.channel = 3
    flat.append(mido.Message("note_on", note=40, velocity=9, channel=9))
    mido.MidiFile(tracks=[flat], ticks_per_beat=480).save(path)
    sounding = [tuple(sorted(set(step), reverse=True)) for step in steps]
    assert list(read_midi(path.read_bytes(), "it"))[: len(steps)] == sounding
    (tmp_path / "packed.mid.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert len(read_chorales(tmp_path / "packed.mid.gz")["test"]) == 1
    mido.MidiFile(tracks=[mido.MidiTrack()]).save(path)
    with pytest.raises(DataError, match="does not hold any notes"):
        read_chorales(path)
    for content, words in ((b"MThd", "is not a MIDI file that can be read"), (b"RIFF", "is not JSON")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=words):
            read_chorales(path)


@hypothesis.given(
    cut=st.integers(0, 200), changed=st.dictionaries(st.integers(0, 199), st.integers(0, 255), max_size=4)
)
def test_any_midi_file_is_read_or_refused(cut: int, changed: dict[int, int]):
    track = mido.MidiTrack([mido.Message("program_change", program=5, time=3)])
    for note in (60, 62, 64):
        track += [mido.Message("note_on", note=note, time=60), mido.Message("note_off", note=note, time=120)]
    stream = io.BytesIO()
    mido.MidiFile(tracks=[track, track]).save(file=stream)
    content = bytearray(stream.getvalue())
    for place, value in changed.items():
        content[place % len(content)] = value
    try:
        steps = read_midi(bytes(content[: max(4, cut)]), "it")
    except DataError as error:
        refusal, steps = str(error), ()
    else:
        refusal = ""
    assert len(refusal.splitlines()) == bool(refusal)
    assert bool(refusal) != bool(steps)


def test_the_piano_roll_shows_each_voice_and_what_was_given(task: MusicTask, tmp_path: Path):
    prompts = task.prompts("test", 1)
    plain, given = tmp_path / "plain.png", tmp_path / "given.png"
    write_piano_roll(prompts.answers[0], plain)
    write_piano_roll(prompts.answers[0], given, prompts.tokens[0] != 46, "Harmonised")
    # The colour of each voice, drawn at 95 % on white: many pixels, but few of the soprano where it was given.
    voices = [(215, 102, 13), (231, 165, 13), (13, 163, 122), (13, 121, 182)]
    assert all(area(plain, colour) > 500 for colour in voices)
    assert area(given, voices[0]) < 100
    assert all(area(given, colour) > 500 for colour in voices[1:])


def test_a_sequence_is_shown_with_holds_and_masks(task: MusicTask):
    prompts = task.prompts("test", 1)
    lines = task.show(prompts.tokens[0]).splitlines()
    assert len(lines) == 4 * 5 + 3
    assert lines[0] == "steps 0 to 15"
    assert lines[1].split() == ["soprano", "A4", *"·······", "G4", *"·······"]
    assert lines[2].split() == ["alto", *"?" * 16]
    assert "?" not in show(prompts.answers[0])


def test_bad_data_is_refused(tmp_path: Path):
    path = tmp_path / "pieces.json"
    good = [[60, 55, 52, 48]] * 64
    cases: list[tuple[Any, str]] = [
        ("{", "is not JSON"),
        ([good], "got a list"),
        ({}, "train, valid, test"),
        ({"dev": [good]}, "got the keys dev"),
        ({"test": good[0]}, "piece 0 of test must be a list, got 60"),
        ({"test": [good, [60]]}, "piece 1 of test, step 0 must be a list"),
        ({"test": [[*good, [60.5, 55, 52, 48]]]}, r"piece 0 of test, step 64 must be a list of MIDI pitches"),
    ]
    for content, message in cases:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DataError, match=message):
            read_chorales(path)
    path.write_bytes(gzip.compress(json.dumps({"test": [good]}).encode())[:-9])
    with pytest.raises(DataError, match="damaged gzip"):
        read_chorales(path)
    with pytest.raises(DataError, match="nowhere"):
        MusicTask(data=str(tmp_path / "nowhere.json"))
    path.write_bytes(gzip.compress(json.dumps({"valid": [good[:63], [*good, [90, 60, 55, 50]], good]}).encode()))
    task = MusicTask(data=str(path))
    assert len(task.prompts("validation", 9)) == 1
    assert task.prompts("test", 9).tokens.shape == (0, 256)
    for number, message in ((0, "has 63 steps"), (1, "step 64, has a pitch outside 36..81")):
        with pytest.raises(DataError, match=message):
            task.chorales["validation"][number].window()


def test_bad_settings_are_refused(task: MusicTask):
    with pytest.raises(ValueError, match="unknown kind 'improvise'"):
        MusicTask("improvise")  # pyright: ignore[reportArgumentType]
    for method in (task.examples, lambda split: task.prompts(split, 1)):
        with pytest.raises(ValueError, match="unknown split 'valid'"):
            method("valid")
    with pytest.raises(ValueError, match="limit"):
        task.prompts("test", 0)
    for given, gap, message in (
        (("violin",), None, "unknown voice 'violin'"),
        (("soprano",), (40, 40), "gap START:STOP"),
        (("soprano",), (-1, 4), "gap START:STOP"),
        (("soprano",), (60, 65), "gap START:STOP"),
        (("soprano", "alto", "tenor", "bass"), None, "nothing is left"),
    ):
        with pytest.raises(ValueError, match=message):
            masked_part(given, gap)


def compose(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["compose", *arguments, "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_gap_is_filled_judged_and_written(tmp_path: Path, task: MusicTask):
    midi, png = tmp_path / "out.mid", tmp_path / "out.png"
    arguments = (
        "--given",
        "all",
        "--gap",
        "24:28",
        "--piece",
        "3",
        "--seed",
        "7",
        "--count",
        "2",
        "--temperature",
        "2",
    )
    report = compose(*arguments, "--rule", "topk", "--k", "8", "--midi", str(midi), "--png", str(png))
    assert (report["rule"], report["settings"]["k"], report["temperature"], report["seed"]) == ("topk", 8, 2, 7)
    assert (report["split"], report["piece"], report["masked"], report["nfe_mean"]) == ("test", 3, 16, 2)
    one, other = report["versions"]
    answer = task.prompts("test", 4).answers[3:]
    masked = masked_part(("soprano", "alto", "tenor", "bass"), (24, 28)).unsqueeze(0)
    prompts, piece = Prompts.of(answer, masked, 46), answer.reshape(4, 64) + 36
    for version in (one, other):
        notes = torch.tensor([version["pitches"][name] for name in ("soprano", "alto", "tenor", "bass")])
        assert torch.equal(notes[:, :24], piece[:, :24])
        assert torch.equal(notes[:, 28:], piece[:, 28:])
        notes = notes.reshape(1, 256) - 36
        assert version["log_likelihood"] == pytest.approx(float(task.score(prompts, notes)))
        assert version["equal_previous"] == pytest.approx(float(equal_previous(notes)))
    assert one["pitches"] != other["pitches"]
    assert report["log_likelihood"] == pytest.approx((one["log_likelihood"] + other["log_likelihood"]) / 2)
    for number in (1, 2):
        assert mido.MidiFile(tmp_path / f"out-{number}.mid").length > 10
        assert imread(tmp_path / f"out-{number}.png").std() > 0.05
    assert not midi.exists()
    again = compose(*arguments, "--rule", "topk", "--k", "8", "--batch-size", "1", "--no-score")
    assert [version["pitches"] for version in again["versions"]] == [one["pitches"], other["pitches"]]
    assert again["log_likelihood"] is None


def test_the_same_rule_composes_from_nothing_and_prints():
    arguments = ["compose", "--given", "none", "--rule", "steps", "--steps", "2", "--no-score"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "256 of 256 tokens composed" in result.stdout
    assert "steps 48 to 63" in result.stdout
    report = compose(*arguments[1:])
    assert (report["piece"], report["given"], report["masked"], report["nfe_mean"]) == (None, [], 256, 2)


def test_what_a_composer_gets_wrong_is_said_before_the_work(tmp_path: Path):
    for arguments, message in [
        (("--given", "cello"), "unknown voice 'cello'"),
        (("--given", "all"), "nothing is left"),
        (("--gap", "3"), "START:STOP, two whole numbers"),
        (("--piece", "77"), "test has 77 pieces"),
        (("--piece", "23"), "piece 23 of test, step"),
        (("--split", "valid"), "unknown split 'valid'"),
        (("--given", "none", "--piece", "1"), "go with something given"),
        (("--model", "sudoku"), "not one of chorales"),
        (("--rule", "topk", "--gamma", "1"), "gamma does not apply"),
        (("--data", str(tmp_path / "none.json")), "none.json"),
        (("--midi", str(tmp_path / "none" / "out.mid")), "out.mid"),
    ]:
        with pytest.raises((ValueError, OSError), match=message):
            compose(*arguments)
