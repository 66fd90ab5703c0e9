"""Answers in shards: nothing is lost, doubled or mixed up, whatever is killed, full or damaged."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_cli import run

from unmask import load
from unmask.draws.streams import prompt_streams
from unmask.fleet.answering import Answering, Piece
from unmask.fleet.engine import here
from unmask.fleet.formats import FORMATS
from unmask.fleet.shards import Shards, usual_rows
from unmask.language import LanguageModel

OPTIONS = ["--temperature", "1", "--max-new-tokens", "8", "--batch-size", "4"]
SHARDS = ["--shard-rows", "12"]


def prompts_file(folder: Path, count: int) -> Path:
    """Writes prompts of which every one is there several times."""
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"{n % 17}+{n % 5}="}) + "\n" for n in range(count)))
    return path


def generate(*arguments: object) -> str:
    shards = SHARDS if "--output" in arguments else []
    return run("generate", "chat", *map(str, arguments), *OPTIONS, *shards)


def rows_in(folder: Path) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob("part-*.jsonl")) for line in path.open()]


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Prompts, and the folder of a run over them that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    prompts = prompts_file(folder, 60)
    generate("--input", prompts, "--output", folder / "out")
    return prompts, folder / "out"


def test_a_folder_holds_what_the_screen_shows(whole: tuple[Path, Path]):
    prompts, folder = whole
    shown = json.loads(generate("--input", prompts, "--json"))
    found = rows_in(folder)
    assert [row["row"] for row in found] == list(range(60))
    for row, one in zip(found, shown, strict=True):
        for name in ("prompt", "text", "tokens", "steps", "nfe", "finish_reason", "stream"):
            assert row[name] == one[name]
    assert not {"seconds", "rule"} & found[0].keys()
    assert json.loads((folder / "manifest.json").read_text())["rule"] == shown[0]["rule"]


def test_a_finished_run_is_not_repeated_and_a_lost_or_damaged_shard_is(whole: tuple[Path, Path], tmp_path: Path):
    prompts, folder = whole
    report = json.loads(generate("--input", prompts, "--output", tmp_path / "out", "--json"))
    assert (report["rows"], report["shards"], report["rows_before"]) == (60, 5, 0)
    assert files_in(tmp_path / "out") == files_in(folder)
    (tmp_path / "out" / "part-00001.jsonl").unlink()
    damaged = tmp_path / "out" / "part-00003.jsonl"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    (tmp_path / "out" / ".part-00003.jsonl.99.tmp").write_text("what a killed process left")
    report = json.loads(generate("--input", prompts, "--output", tmp_path / "out", "--json"))
    assert report["rows_before"] == 36
    assert files_in(tmp_path / "out") == files_in(folder)
    report = json.loads(generate("--input", prompts, "--output", tmp_path / "out", "--json"))
    assert (report["rows_before"], report["nfe_mean"]) == (60, None)


def test_a_killed_run_goes_on(whole: tuple[Path, Path], tmp_path: Path):
    prompts, folder = whole
    out = tmp_path / "out"
    command = [sys.executable, "-m", "unmask", "generate", "chat", "--input", str(prompts), "--output", str(out)]
    process = subprocess.Popen([*command, *OPTIONS, *SHARDS])
    wait_for(lambda: len(list(out.glob("part-*"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    report = json.loads(generate("--input", prompts, "--output", out, "--json"))
    assert report["rows_before"] >= 24
    assert files_in(out) == files_in(folder)


def wait_for(happened, process: subprocess.Popen | None = None, seconds: float = 120.0) -> None:
    """Waits until something has happened, as long as a process lives."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        assert process is None or process.poll() is None, "the process has ended"
        time.sleep(0.01)


def test_on_a_full_disk_the_finished_shards_stay(whole: tuple[Path, Path], tmp_path: Path, monkeypatch):
    prompts, folder = whole
    out = tmp_path / "out"
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name.startswith(".part-00002"):
            write(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"No space left on device; free some.*the same command goes on from them"):
        generate("--input", prompts, "--output", out)
    assert sorted(files_in(out)) == ["manifest.json", "part-00000.jsonl", "part-00001.jsonl"]
    monkeypatch.undo()
    generate("--input", prompts, "--output", out)
    assert files_in(out) == files_in(folder)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seed", "1"], "holds another run (seed: 0 there, 1 asked); give the same options, or another folder"),
        (["-p", "1+1="], "rows: 60 there, 61 asked"),
        (["--format", "xml"], "unknown format 'xml'"),
        (["--workers", "2"], "--workers goes with --engine ray"),
        (["--engine", "slurm"], "unknown engine 'slurm'"),
    ],
)
def test_what_does_not_go_together_is_refused(whole: tuple[Path, Path], arguments: list[str], words: str):
    prompts, folder = whole
    before = files_in(folder)
    with pytest.raises(ValueError, match=re.escape(words)):
        generate("--input", prompts, "--output", folder, *arguments)
    assert files_in(folder) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "ray"], "--engine goes with --output FOLDER"),
        (["--shard-rows", "4"], "--shard-rows goes with --output FOLDER"),
        (["--output", "{tmp}"], "holds other files (a.txt, ...)"),
        (["--output", "{tmp}/a.txt"], "cannot write into"),
    ],
)
def test_where_answers_cannot_go_is_said(tmp_path: Path, arguments: list[str], words: str):
    (tmp_path / "a.txt").write_text("mine")
    arguments = [one.replace("{tmp}", str(tmp_path)) for one in arguments]
    with pytest.raises(ValueError, match=re.escape(words)):
        run("generate", "chat", "-p", "1+1=", *arguments)


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path):
    shards = Shards(tmp_path / "out", 3, 2, "jsonl", {"seed": 0})
    with shards.open() as waiting:
        assert waiting == [0, 1]
        with pytest.raises(ValueError, match="another process is writing in"), shards.open():
            pass
    with pytest.raises(ValueError, match="not the rows of shard 1"):
        shards.write(1, [{"row": 1}])


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_keeps_the_rows(form: str, tmp_path: Path):
    rows = [
        {
            "row": number,
            "prompt": "3 < 4 “ ”\n",
            "text": "",
            "tokens": (7, 8),
            "log_probs": (-0.1, -1e-30),
            "steps": (1, 2),
            "nfe": 2,
            "new_tokens": 2,
            "finish_reason": "end",
            "stream": 2**64 - 1,
        }
        for number in range(3)
    ]
    shards = Shards(tmp_path, 3, 3, form, {})
    shards.write(0, rows)
    assert shards.finished(0)
    assert FORMATS[form].encode(rows) == shards.path(0).read_bytes()
    if form == "parquet":
        import pyarrow.parquet

        found = pyarrow.parquet.read_table(shards.path(0)).to_pylist()
    else:
        found = [json.loads(line) for line in shards.path(0).open()]
    assert found == json.loads(json.dumps(rows))


def test_streams_are_those_of_all_prompts_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unmask.fleet.answering._CHUNK", 3)
    model = load("chat", device="meta")
    assert isinstance(model, LanguageModel)
    prompts = ["1+1=", "2+2=", "1+1=", [{"role": "user", "content": "1+1="}], "1+1=", "2+2="]
    settings = {"rule": "topk:k=4", "max_new_tokens": 8}
    answering = Answering(lambda: model, "chat", "", "generate", settings, 4)
    assert answering.streams(model, prompts, 5) == prompt_streams(model.encode(prompts), 5)
    with pytest.raises(ValueError, match=r"prompt 1 has 60 tokens.*prompt 0 being number 3 of all"):
        answering.streams(model, [*prompts[:4], "1" * 60], 5)


def test_gaps_are_filled_into_a_folder_too(tmp_path: Path):
    texts = ["-t", "12+[MASK:2]=47", "-t", "1[MASK:3]", "-t", "12+[MASK:2]=47", "--temperature", "1"]
    run("infill", "chat", *texts, "--output", str(tmp_path / "out"), "--format", "parquet")
    import pyarrow.parquet

    (path,) = (tmp_path / "out").glob("part-*")
    found = pyarrow.parquet.read_table(path).to_pylist()
    shown = json.loads(run("infill", "chat", *texts, "--json"))
    assert [row["text"] for row in found] == [one["text"] for one in shown]
    assert [row["stream"] for row in found] == [one["stream"] for one in shown]


def test_a_worker_refuses_other_weights_and_says_where_a_folder_must_be():
    def loaded() -> LanguageModel:
        raise AssertionError("loaded before it was checked")

    with pytest.raises(Exception, match="the weights of chat are not those that the run began with"):
        Answering(loaded, "chat", "others", "generate", {}, 4).worker()
    with pytest.raises(Exception, match="every worker loads the model: put its folder where all of them find it"):
        Answering(loaded, "/no/such/folder", "others", "generate", {}, 4).worker()


def test_work_is_done_in_order_and_a_worker_only_made_for_work():
    assert list(here(lambda: lambda piece: piece * 2, [(4, 1), (2, 5)])) == [(4, 2), (2, 10)]
    assert list(here(lambda: pytest.fail("made"), [])) == []
    assert Piece(0, ["a"], [1]).first == 0


@pytest.mark.parametrize(
    ("rows", "batch_size", "size"), [(300, 8, 8), (10_000, 8, 160), (10**6, 8, 256), (5, 512, 512)]
)
def test_shards_are_whole_batches(rows: int, batch_size: int, size: int):
    assert usual_rows(rows, batch_size) == size


def test_the_command_line_imports_nothing_of_ray():
    code = "import sys, unmask.cli, unmask.fleet.answering, unmask.fleet.shards; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
