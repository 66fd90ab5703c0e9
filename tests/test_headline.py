"""The picture of the front page shows the saved figures: what it holds is compared with them, bar by bar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from figures import saved

from benchmarks.headline import PICTURE, RESULTS, TASKS, bars, described, draw, published

Image = pytest.importorskip("PIL.Image")


def test_the_picture_holds_the_saved_figures(tmp_path: Path):
    assert Image.open(PICTURE).text["Description"] == described(bars(), published())
    draw(bars(), published(), tmp_path / "again.png")
    again = Image.open(tmp_path / "again.png")
    assert again.text["Description"] == Image.open(PICTURE).text["Description"]
    assert again.size == Image.open(PICTURE).size
    corner = again.convert("RGB").getpixel((0, 0))
    assert corner == (255, 255, 255)  # on a dark page, too, its words are dark on light


def test_a_bar_is_hollow_where_the_interval_leaves_zero_out():
    for name, task in TASKS.items():
        for bar in (bar for bar in bars() if bar.task == task):
            rows = [row for row in saved(f"tasks-{name}")["test"] if row["rule"] == bar.rule and row["why"] == "chosen"]
            row = next(row for row in rows if row["speed_up"] == bar.fewer)
            assert bar.kept == (row["difference"] >= -row["difference_ci95"])
    assert {(bar.task, bar.rule) for bar in bars() if not bar.kept} == {
        ("sums of three-digit numbers", "threshold"),
        ("gaps in text, characters", "threshold"),
    }


def test_another_figure_gives_another_picture(tmp_path: Path):
    """The control: one evaluation more in a saved file is seen."""
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    report = saved("tasks-maze")
    chosen = next(row for row in report["test"] if row["why"] == "chosen")
    chosen["speed_up"] += 1
    (tmp_path / "tasks-maze.json").write_text(json.dumps(report), encoding="utf-8")
    assert described(bars(tmp_path), published()) != Image.open(PICTURE).text["Description"]
