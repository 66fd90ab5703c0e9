"""`unmask compare --task` and `unmask tune`."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from unmask.cli import app, common, study
from unmask.errors import DataError

MAZES = ["--task", "maze", "--limit", "3", "--batch-size", "3"]


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout)


def test_rules_are_compared_on_a_task_and_go_on_from_a_file(tmp_path: Path):
    arguments = ["compare", *MAZES, "--rules", "top1-entropy,entropy-bound:gamma=0.1,all", "--json"]
    files = ["--out", str(tmp_path / "kept.jsonl"), "--csv", str(tmp_path / "rows.csv")]
    rows = run(*arguments, *files, "--plot", str(tmp_path / "plot.png"))
    assert [row["rule"] for row in rows] == ["top1-entropy", "entropy-bound", "all"]
    assert rows[0]["nfe_mean"] == 36
    assert rows[0]["difference"] == 0
    assert rows[2]["nfe_mean"] == 1 <= rows[1]["nfe_mean"] < 36
    for row in rows:
        assert {"settings", "quality", "quality_ci95", "seconds", "quality_is"} <= set(row)
        assert 0 <= row["quality"] <= 1
    with (tmp_path / "rows.csv").open() as stream:
        assert [line["settings"] for line in csv.DictReader(stream)][1] == "gamma=0.1,proxy=entropy"
    assert (tmp_path / "plot.png").stat().st_size > 5_000
    assert run(*arguments, *files) == rows  # read from the file: even the seconds are the same


@pytest.mark.parametrize(
    ("columns", "said"), [("80", "only in --json and --csv: nelbo, entropy, distinct_n"), ("160", "distinct_n")]
)
def test_no_figure_is_cut_in_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, columns: str, said: str):
    measures = {"nelbo": 0.74, "entropy": 2.39, "distinct_n": 0.85}
    figures = {"quality": 0.8272, "quality_ci95": 0.04, "difference": -0.009, "difference_ci95": 0.011}
    row = {"rule": "entropy-bound", "settings": {"gamma": 0.1}, "temperature": 1.0, "nfe_mean": 6.03, "seconds": 0.8}
    monkeypatch.setattr(common, "out", Console(width=int(columns), file=io.StringIO()))
    study.show([{**row, **figures, **measures}], list(measures))
    printed = common.out.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert said in printed
    assert "…" not in printed
    assert "0.827 ± 0.040" in printed
    assert "-0.009 ± 0.011" in printed


def test_tune_says_which_sampler_to_use_and_why():
    report = run(
        "tune", *MAZES, "--rules", "entropy-bound,topk", "--reference", "steps:steps=6", "--tolerance", "0.2", "--json"
    )
    used = [trial for trial in report["trials"] if trial["accepted"]]
    best = min(used, key=lambda trial: trial["nfe_mean"])
    assert report["use"].startswith(best["rule"])
    assert report["speed_up"] == pytest.approx(6 / best["nfe_mean"])
    assert report["reference"]["nfe_mean"] == 6


def test_tune_takes_a_folder_of_prompts(tmp_path: Path):
    start = "First Citizen: Before we proceed any further, hear me speak. All: Speak, speak. "
    for number, gap in enumerate((8, 20)):
        rest = ("x" * 128)[: 128 - len(start) - gap]
        (tmp_path / f"{number}.txt").write_text(f"{start}[MASK:{gap - 1}]□{rest}\n")
    folder = ["--prompts", str(tmp_path), "--model", "text"]
    report = run("tune", *folder, "--rules", "topk", "--reference", "all", "--tolerance", "9", "--json")
    assert report["quality_is"].startswith("minus the NELBO")
    assert report["reference"]["quality"] < 0
    assert report["reference"]["nfe_mean"] == 1
    (tmp_path / "2.txt").write_text("□ too short")
    with pytest.raises(DataError, match=r"2\.txt has 11 tokens; the model takes 128"):
        run("tune", *folder)
    (tmp_path / "2.txt").write_text("no gap at all")
    with pytest.raises(DataError, match=r"2\.txt has no mask"):
        run("tune", *folder)
    for size in ("129", "9" * 12, "9" * 5000):
        (tmp_path / "2.txt").write_text(f"a[MASK:{size}]b")
        with pytest.raises(DataError, match=rf"2\.txt has a gap of {size:.20} tokens; the model takes 128 in all"):
            run("tune", *folder)
    (tmp_path / "2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"2\.txt is not UTF-8 text: byte 0xe9 in line 1"):
        run("tune", *folder)
    with pytest.raises(DataError, match=r"0\.txt has characters outside the vocabulary"):
        run("tune", *folder, "--encoding", "latin-1")
    with pytest.raises(ValueError, match="the model maze is of maze"):
        run("tune", "--prompts", str(tmp_path), "--model", "maze")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tune"], "--prompts"),
        (["tune", "--prompts", "."], "needs --model"),
        (["tune", "--prompts", "/nowhere", "--model", "text"], "/nowhere has no prompts"),
        (["compare", "--task", "maze", "--device", "nothing"], "cannot compute on the device 'nothing'"),
        (["compare", "--task", "maze", "--rules", "topk:k=2.7"], "k must be a whole number, got '2.7'"),
        (["compare", "--task", "chess"], "chess"),
        (["compare", "--model", "maze", "--csv", "rows.csv"], "--model, --csv: only with --task"),
        (["compare", "--task", "maze:walls=3"], "walls does not apply"),
        (["compare", "--task", "maze:walls"], "key=value"),
        (["compare", "--task", "maze", "--model", "sudoku"], "'sudoku' was trained on the task sudoku, not on maze"),
        (["compare", "--task", "maze", "--model", "maze-loops"], "takes sequences of 128 tokens"),
        (["compare", "--task", "text", "--model", "judge"], "is causal"),
        (["compare", "--task", "maze", "--model", "/nowhere"], "/nowhere"),
        (["compare", "--task", "maze", "--temperature", "hot"], "hot"),
        (["compare", "--task", "maze", "--judge", "x", "--limit", "1"], "--judge goes with"),
        (["compare", "--task", "maze", "--split", "dev"], "dev"),
        (["tune", "--task", "maze", "--tolerance", "-1"], "tolerance"),
    ],
)
def test_mistakes_are_named(arguments: list[str], message: str):
    result = CliRunner().invoke(app, arguments)
    assert result.exception is not None
    assert message in str(result.exception)
