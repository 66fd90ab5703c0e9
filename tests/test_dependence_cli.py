"""Profiles and schedules from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_cli import run

from unmask.dependence.calibrate import oracle_profile
from unmask.errors import AdapterError
from unmask.evaluation.frontier import sweep
from unmask.oracles import MarkovDenoiser
from unmask.rules.geometry import geometry_of, maze, music, sudoku
from unmask.rules.profile import Line, Profile, load_profile
from unmask.tasks.named import named_task
from unmask.tasks.of_model import task_of

CHAIN = ("profile", "--oracle", "markov", "--stay", "0.7", "--symbols", "2", "--length", "5", "--json")


def test_a_profile_is_measured_saved_continued_and_drawn(tmp_path: Path):
    whole = json.loads(
        run(*CHAIN, "--contexts", "100", "--out", str(tmp_path / "a"), "--plot", str(tmp_path / "p.png"))
    )
    assert whole["contexts"] == 100
    assert whole["evaluations"] > 300
    assert {"pair", "share", "mean", "error", "count"} <= set(whole["cells"][0])
    assert whole["about"]["oracle"] == "markov"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    run(*CHAIN, "--contexts", "40", "--batch-size", "7", "--out", str(tmp_path / "b"))
    rest = json.loads(run(*CHAIN, "--contexts", "100", "--out", str(tmp_path / "b")))
    assert rest["evaluations"] == whole["evaluations"]
    a, b = Profile.load(tmp_path / "a"), Profile.load(tmp_path / "b")
    torch.testing.assert_close(a.total, b.total)
    again = json.loads(run(*CHAIN, "--contexts", "100", "--out", str(tmp_path / "b")))  # nothing left to do
    assert again["cells"] == rest["cells"]
    # The same as the library measures on the same oracle and seed.
    own = oracle_profile(MarkovDenoiser.lazy(2, 0.7), 5, contexts=100)
    torch.testing.assert_close(a.total, own.total)
    with pytest.raises(AdapterError, match="something else"):
        run(*CHAIN, "--contexts", "100", "--seed", "1", "--out", str(tmp_path / "a"))
    with pytest.raises(ValueError, match="more than the 50"):
        run(*CHAIN, "--contexts", "50", "--out", str(tmp_path / "a"))
    assert "standard errors" in run(*CHAIN[:-1], "--contexts", "100", "--out", str(tmp_path / "a"))


def test_what_is_measured_is_a_model_or_an_oracle():
    for arguments in ((), ("text", "--oracle", "markov")):
        with pytest.raises(ValueError, match="name a model, or"):
            run("profile", *arguments)
    with pytest.raises(ValueError, match="was trained on the task text, not on sudoku"):
        run("profile", "text", "--task", "sudoku")
    with pytest.raises(AdapterError, match="no model at"):
        run("profile", "/nowhere")


def test_a_model_is_measured_on_its_own_task(tmp_path: Path):
    few = ("--contexts", "2", "--draws", "1", "--out", str(tmp_path / "loops"), "--json")
    assert json.loads(run("profile", "maze-loops", *few))["about"]["task"] == "maze"
    options = ("text", "--contexts", "2", "--draws", "1", "--out", str(tmp_path), "--json")
    report = json.loads(run("profile", *options))
    assert report["evaluations"] == 4
    assert report["about"]["task"] == "text"
    assert len(report["about"]["weights"]) == 12


@pytest.mark.parametrize("model", ["sudoku", "maze", "maze-loops", "text", "arithmetic", "chat", "working", "music"])
def test_the_shipped_models_have_profiles_of_their_weights(model: str):
    found = load_profile(model)
    assert found.measured == 400
    assert found.evaluations >= 1800  # five a context, but for those with fewer masks than draws
    assert found.about["model"] == model
    found.geometry.check(task_of(model).length)
    assert bool(found.prices().isfinite().all())
    from unmask.cli.profile import weights_of

    assert found.about["weights"] == weights_of(model)


def test_geometries_tell_pairs_apart():
    four = sudoku(2)
    assert four.names == ("line and box", "line", "box", "none")
    assert [four.names[int(four.matrix[0, j])] for j in (1, 2, 5, 6)] == ["line and box", "line", "box", "none"]
    square = maze(3)
    assert square.names[int(square.matrix[9, 11])] == square.names[int(square.matrix[11, 17])] == "2,0"
    assert square.names[int(square.matrix[0, 11])] == "shown"
    piece = music(2, 5)
    assert piece.names[int(piece.matrix[0, 5])] == "other voice, 0"
    assert piece.names[int(piece.matrix[3, 1])] == "same voice, 2"
    assert isinstance(geometry_of(named_task("text")), Line)
    assert geometry_of(named_task("sudoku")).classes == 4
    assert geometry_of(named_task("maze")).classes > 10
    assert geometry_of(named_task("music")).matrix.shape == (256, 256)  # pyright: ignore


def test_a_task_says_its_own_geometry_whatever_its_name(monkeypatch):
    text = named_task("text")
    monkeypatch.setattr(text, "name", "sudoku")
    assert isinstance(geometry_of(text), Line)
    monkeypatch.setattr(text, "geometry", lambda: sudoku(2), raising=False)
    assert geometry_of(text).classes == 4


def test_compare_measures_an_oracle_for_the_rule_that_asks():
    options = ("compare", "--stay", "0.6", "--symbols", "2", "--length", "6", "--json")
    rows = json.loads(run(*options, "--rules", "dependence-bound:proxy=high-entropy,entropy-bound"))
    ours = [row for row in rows if row["rule"] == "dependence-bound"]
    assert {row["settings"]["profile"] for row in ours} == {"measured"}
    assert {row["settings"]["proxy"] for row in ours} == {"high-entropy"}

    def fewest(rule: str) -> float:
        return min(row["nfe_mean"] for row in rows if row["rule"] == rule and row["kl"] <= 0.01)

    assert fewest("entropy-bound") >= 2 * fewest("dependence-bound")
    assert [one.settings["gamma"] for one in sweep("dependence-bound", 6, "text")][:2] == [0.0, 0.001]
    assert sweep("dependence-bound:gamma=0.3", 6, "text")[0].settings["profile"] == "text"
    with pytest.raises(ValueError, match="needs a value for sizes"):
        sweep("groups", 6)


def test_below_temperature_one_the_command_line_limits_commitment():
    options = ("law", "--rule", "dependence-bound", "--gamma", "0.3", "--length", "4", "--json")
    assert json.loads(run(*options))["settings"]["commitment"] == 1
    assert json.loads(run(*options, "--temperature", "0.5"))["settings"]["commitment"] == 0.1
    assert json.loads(run(*options, "--temperature", "0.5", "-o", "commitment=0.4"))["settings"]["commitment"] == 0.4
