"""The commands as a user runs them: in a process of their own where that matters, in this one elsewhere."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from typer.testing import CliRunner

from unmask.cli import app
from unmask.cli.common import print_json
from unmask.oracles import random_table
from unmask.rules.named import FAMILIES
from unmask.tasks.sudoku import demo_puzzles

HEADER = "puzzle,solution,grade"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "unmask", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def puzzles(tmp_path: Path) -> Path:
    path = tmp_path / "puzzles.csv"
    rows = [p for p in demo_puzzles() if p.columns["grade"] in ("easy", "medium")]
    rows = rows[:3] + rows[-2:]
    lines = [
        "".join(map(str, p.cells)) + "," + "".join(map(str, p.solution or ())) + "," + p.columns["grade"] for p in rows
    ]
    path.write_text("\n".join([HEADER, *lines]) + "\n")
    return path


def test_version_and_help():
    from unmask import __version__

    assert run("--version").strip() == f"unmask {__version__}"
    for command in ("demo", "solve", "law", "compare", "doctor", "train"):
        assert command in run("--help")
        assert "--json" in run(command, "--help")


def test_what_a_user_gets_wrong_is_one_line_and_no_traceback():
    for arguments, message in [
        (("law", "--gamma", "-1"), "gamma must be a number of nats >= 0"),
        (("law", "--gamma", "nan"), "gamma must be a number of nats >= 0"),
        (("law", "--rule", "best"), "unknown rule 'best'"),
        (("law", "--rule", "topk", "--gamma", "1"), "gamma does not apply"),
        (("solve", "/nowhere.csv"), "/nowhere.csv"),
        (("solve", "--model", "/nowhere"), "no model at '/nowhere'"),
        (("train", "chess"), "no recipe for 'chess'"),
        (("law", "--oracle", "sudoku4", "--length", "9"), "--length goes with hmm or markov or table"),
        (("law", "--stay", "0.9", "--oracle-seed", "1"), "--oracle-seed goes with"),
    ]:
        done = process(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert process("solve", "--gama", "1").returncode == 2


def test_solve_reports_every_figure_and_a_row_per_group(puzzles: Path):
    report = json.loads(run("solve", str(puzzles), "--by", "grade", "--json"))
    assert {"puzzles", "solved", "cells_correct", "nfe_mean", "nfe_ci95", "forward_passes", "seconds"} <= set(report)
    assert (report["rule"], report["settings"]["loss"], report["temperature"]) == ("auto", 0.01, 0)
    assert [(row["grade"], row["puzzles"]) for row in report["by"]] == [("easy", 3), ("medium", 2)]
    assert report["puzzles"] == 5
    assert report["solved"] >= 4
    assert 0.9 < report["cells_correct"] <= 1
    options = ("--rule", "top1-entropy", "--limit", "2", "--batch-size", "2", "--json")
    top1 = json.loads(run("solve", str(puzzles), *options))
    empty = [list(p.cells).count(0) for p in demo_puzzles()[:2]]
    assert top1["nfe_mean"] == pytest.approx(sum(empty) / 2)
    assert top1["forward_passes"] == max(empty)
    assert report["nfe_mean"] < top1["nfe_mean"] / 4
    assert "medium" in run("solve", str(puzzles), "--by", "grade")


def test_answers_depend_neither_on_place_nor_neighbours_nor_batch_size(puzzles: Path, tmp_path: Path):
    header, *lines = puzzles.read_text().splitlines()
    shuffled = tmp_path / "shuffled.csv"
    shuffled.write_text("\n".join([header, *lines[::-1], lines[0]]) + "\n")
    answers: list[dict[tuple[str, int], list[str]]] = []
    for file, batch in ((puzzles, "64"), (puzzles, "1"), (shuffled, "4")):
        out = tmp_path / "answers.csv"
        run("solve", str(file), "--temperature", "1", "--seed", "3", "--batch-size", batch, "--output", str(out))
        seen: dict[tuple[str, int], list[str]] = {}
        for row in csv.DictReader(out.open()):
            copy = sum(key[0] == row["puzzle"] for key in seen)
            seen[row["puzzle"], copy] = [row["answer"], row["nfe"], row["stream"], row["grade"]]
        answers.append(seen)
    assert answers[0] == answers[1]
    assert answers[0].items() <= answers[2].items()
    first = lines[0].split(",")[0]
    assert answers[2][first, 0][2] != answers[2][first, 1][2]  # copies differ


def test_a_bad_line_is_named_and_the_rest_solved(puzzles: Path, tmp_path: Path):
    puzzles.write_text(puzzles.read_text() + "123,,easy\n")
    result = CliRunner().invoke(app, ["solve", str(puzzles), "--json"])
    report = json.loads(result.stdout)
    assert report["puzzles"] == 5
    assert report["rejected"][0]["line"] == 7
    assert "81 characters" in report["rejected"][0]["reason"]
    assert "line 7 left out" in result.stderr
    with pytest.raises(ValueError, match="no column 'level'"):
        run("solve", str(puzzles), "--by", "level")
    (tmp_path / "clash.csv").write_text(puzzles.read_text().replace("grade", "solved", 1))
    with pytest.raises(ValueError, match="columns named solved"):
        run("solve", str(tmp_path / "clash.csv"), "--output", str(tmp_path / "out.csv"))
    with pytest.raises(ValueError, match=r"cannot write /nowhere/out.csv: there is no .*\(mkdir -p /nowhere\)"):
        run("solve", str(puzzles), "--output", "/nowhere/out.csv")
    puzzles.write_text(HEADER + "\n")
    with pytest.raises(ValueError, match="no usable puzzle"):
        run("solve", str(puzzles))


def test_nothing_is_written_over_what_is_read(puzzles: Path, tmp_path: Path):
    puzzles.write_text(puzzles.read_text() + "123,,easy\n" + puzzles.read_text().splitlines()[1][:90] + ",caf\n")
    before = puzzles.read_bytes()
    link = tmp_path / "link.csv"
    link.symlink_to(puzzles)
    for option in ("--output", "--rejected"):
        for path in (puzzles, link):
            with pytest.raises(ValueError, match=f"{option} .* is a file that is read"):
                run("solve", str(puzzles), option, str(path))
    assert puzzles.read_bytes() == before
    out, left = tmp_path / "out.csv", tmp_path / "left.csv"
    report = json.loads(run("solve", str(puzzles), "--output", str(out), "--rejected", str(left), "--json"))
    assert puzzles.read_bytes() == before
    assert len(list(csv.DictReader(out.open()))) == report["puzzles"] == 5
    header, *lines = left.read_text().splitlines()
    assert header == HEADER
    assert lines[1::2] == before.decode().splitlines()[-2:]
    assert lines[0].startswith("# line 7: a puzzle has 81 characters, got 3")
    left.write_text(left.read_text().replace("\n123,,easy", "\n" + before.decode().splitlines()[1]))
    mended = json.loads(run("solve", str(left), "--json"))  # the comments are passed over
    assert (mended["puzzles"], [line["line"] for line in mended["rejected"]]) == (1, [5])
    for arguments in (
        ("compare", "--task", f"sudoku:data={puzzles}", "--csv", str(puzzles)),
        ("compare", "--task", "sudoku", "--data", str(puzzles), "--out", str(puzzles)),
        ("compare", "--task", "sudoku", "--plot", str(out), "--csv", str(out)),
        ("trace", "--task", f"sudoku:data={puzzles}", "--html", str(puzzles)),
        ("tune", "--task", "sudoku", "--data", str(puzzles), "--out", str(puzzles)),
        ("profile", "sudoku", "--data", str(puzzles), "--plot", str(puzzles)),
        ("compose", "--data", str(puzzles), "--midi", str(puzzles)),
        ("compare", "--joint", str(puzzles), "--oracle", "table", "--plot", str(puzzles)),
    ):
        with pytest.raises(ValueError, match=r"is a file that is read|name the same file|is not JSON"):
            run(*arguments)
    assert puzzles.read_bytes() == before


def test_a_model_of_another_task_is_refused_by_name():
    for model in ("text", "chat", "working", "maze", "maze-loops", "judge", "arithmetic", "music"):
        kind = "is causal" if model == "judge" else "not on sudoku"
        with pytest.raises(ValueError, match=f"the model '{model}' .*{kind}.*; give one of sudoku, such as sudoku"):
            run("solve", "--model", model)
    for command in (
        ("trace", "--model", "text"),
        ("compare", "--task", "sudoku", "--model", "text"),
        ("tune", "--task", "sudoku", "--model", "text"),
        ("profile", "text", "--task", "sudoku"),
        ("schedule", "text", "--task", "sudoku", "--evaluations", "4"),
        ("compare", "--task", "music:model=text", "--limit", "1", "--rules", "all", "--batch-size", "1"),
    ):
        with pytest.raises(ValueError, match="the model 'text' was trained on the task text, not on"):
            run(*command)
    with pytest.raises(ValueError, match="the model 'text' is not one of chorales"):
        run("compose", "--model", "text")


def test_a_setting_is_given_in_the_name_by_o_or_by_its_own_option():
    spellings = (
        ["--rule", "topk:k=3,proxy=margin"],
        ["--rule", "topk", "-o", "k=3", "-o", "proxy=margin"],
        ["--rule", "topk:proxy=margin", "--k", "3"],
        ["--rule", "topk", "-o", "k=3,proxy=margin", "--k", "3"],
    )
    for spelling in spellings:
        assert json.loads(run("law", *spelling, "--json"))["settings"] == {"k": 3, "proxy": "margin"}
    for twice in (["-o", "k=2", "-o", "k=3"], ["-o", "k=2", "--k", "3"], ["-o", "k=2,k=3"]):
        with pytest.raises(ValueError, match=r"k is given twice, as \d and as \d"):
            run("law", "--rule", "topk", *twice)
    with pytest.raises(ValueError, match="expected key=value"):
        run("law", "--rule", "topk", "-o", "3")
    with pytest.raises(ValueError, match="gamma does not apply to the rule topk"):
        run("law", "--rule", "topk:k=3", "--gamma", "0.1")


def test_every_command_that_takes_a_rule_takes_its_settings_alike():
    root: Any = typer.main.get_command(app)
    taking = 0
    for command in root.commands.values():
        options = {name for parameter in command.params for name in parameter.opts}
        if "--rule" in options:
            taking += 1
            assert {"-o", "--gamma", "--k", "--threshold", "--steps"} <= options
    assert taking == 8


def test_a_default_belongs_to_the_family_of_a_rule():
    for name in ("entropy-bound", "entropy-bound:proxy=margin", "entropy-bound:gamma=0.05"):
        report = json.loads(run("law", "--rule", name, "--json"))
        assert report["settings"]["gamma"] == 0.05
    assert json.loads(run("law", "--rule", "entropy-bound:gamma=0.2", "--json"))["settings"]["gamma"] == 0.2
    with pytest.raises(ValueError, match=r"gamma is given twice, as 0.2 in the rule .* and as 0.1 beside it"):
        run("law", "--rule", "entropy-bound:gamma=0.2", "--gamma", "0.1")
    composed = run("compose", "--rule", "entropy-bound:proxy=margin", "--gap", "0:2", "--given", "all", "--json")
    assert json.loads(composed)["settings"] == {"gamma": 0.01, "proxy": "margin"}
    tuned = run("tune", "--task", "sudoku", "--limit", "2", "--reference", "entropy-bound:proxy=margin",
                "--rules", "topk:k=30", "--json")  # fmt: skip
    assert json.loads(tuned)["reference"]["settings"]["gamma"] == 0.05


def test_what_the_system_refuses_is_said_in_a_line(tmp_path: Path):
    for arguments, words in (
        (("solve", str(tmp_path)), "it is a folder"),
        (("solve", "--output", str(tmp_path)), "it is a folder; name a file in it"),
        (("law", "--oracle", "table", "--joint", str(tmp_path)), "it is a folder"),
        (("train", str(tmp_path / "none.yaml")), "cannot read the configuration"),
        (("infill", "--input", str(tmp_path)), "cannot read the prompts"),
        (("compare", "--task", "text", "--data", str(tmp_path)), "cannot read the text"),
        (("compare", "--plot", str(tmp_path / "none" / "x.png")), "make it first"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            run(*arguments)
        assert "Errno" not in str(caught.value)
        assert "\n" not in str(caught.value)
    (tmp_path / "file").write_text("")
    done = process("train", "sudoku", "--out", str(tmp_path / "file" / "run"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "a part of the path is a file, not a folder" in done.stderr
    assert "Errno" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_markup_quotes_and_byte_order_marks_do_no_harm(puzzles: Path):
    header, first, *rest = puzzles.read_text().splitlines()
    cells, solution, _ = first.split(",")
    lines = [f"{cells},{solution},[/x]", "[/x]bad,,easy", '"oops,b', *rest]
    puzzles.write_text("\ufeff" + "\n".join([header, *lines]) + "\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["solve", str(puzzles), "--by", "grade"])
    assert result.exit_code == 0
    assert "[/x]" in result.stdout
    assert "line 3 left out" in result.stderr
    assert "line 4 left out" in result.stderr
    assert json.loads(run("solve", str(puzzles), "--json"))["puzzles"] == 5


BIASED = {"llada-quota", "maskgit", "moment", "credit", "p2"}
AGAIN = {"remdm", "p2", "wino", "edit", "gibbs"}


@pytest.mark.parametrize("name", FAMILIES)
def test_law_knows_every_rule(name: str):
    setting = FAMILIES[name].setting
    options = ["-o", f"{setting}={FAMILIES[name].settings[setting].example}"] if setting else []
    report = json.loads(run("law", "--rule", name, *options, "--oracle", "hmm", "--length", "4", "--json"))
    if name in ("lookahead", "s2d2"):  # the law is that of a rule inside, and its evaluations are not computed
        assert report["nfe_mean"] is None
        return
    assert 1 <= report["nfe_mean"] <= (3 if name == "independence-test" or name in AGAIN else 1) * 4 + 1e-9
    if name in BIASED:
        assert report["kl"] is None or report["kl"] > 1e-3
    if name in BIASED | AGAIN or name in ("first-hitting-extrapolated", "independence-test"):
        assert report["bound"] is None
        return
    assert 0 <= report["kl"] <= report["bound"] + 1e-9
    assert {"tv", "nfe_mean_data"} <= set(report)
    if setting is None and name not in ("all", "dilated", "auto"):
        assert report["kl"] <= 1e-9


def test_law_reads_a_joint_and_tests_the_loop_against_it(tmp_path: Path):
    path = tmp_path / "joint.npy"
    weights = random_table(2, 3, 5).weights.reshape(2, 2, 2).numpy()
    np.save(path, weights)
    options = ["law", "--oracle", "table", "--joint", str(path), "--json", "--samples", "5000", "--rule", "all"]
    report = json.loads(run(*options))
    assert report["support"] == 8
    assert report["kl"] > 1e-4
    assert report["nfe_mean"] == 1
    assert report["pvalue"] > 1e-6
    few = json.loads(run(*options[:-4], "--samples", "3"))
    assert few["pvalue"] is None
    for array in (weights.astype(str), weights.astype(complex)):
        np.save(path, array)
        with pytest.raises(ValueError, match="real numbers"):
            run(*options)
    for content in (b"not numpy", b""):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="npy"):
            run(*options)
    np.save(path, weights * 2)
    with pytest.raises(ValueError, match="sum 1"):
        run(*options)
    with pytest.raises(ValueError, match="--joint goes with"):
        run("law", "--joint", str(path))


def test_infinite_gamma_survives_json():
    report = json.loads(run("law", "--gamma", "inf", "--json"))
    assert report["settings"]["gamma"] == "inf"
    assert report["nfe_mean"] == 1


def test_the_demo_solves_real_puzzles_with_fewer_evaluations():
    report = json.loads(run("demo", "--limit", "1", "--json"))
    assert [row["grade"] for row in report["rows"]][-1] == "all"
    one, bound = report["rows"][-1]["samplers"]
    assert report["rows"][-1]["speed_up"] == pytest.approx(one["nfe_mean"] / bound["nfe_mean"])
    assert report["rows"][-1]["speed_up"] > 4
    shown = run("demo", "--limit", "1", "--pause", "0")
    assert "Top-1" in shown
    assert "evaluations instead of" in shown


def test_the_demo_takes_a_few_puzzles_or_all(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("unmask.cli.demo.demo_puzzles", lambda: demo_puzzles()[:2])
    for options, puzzles in ((("--limit", "1"), 1), (("--limit", "1", "--all"), 2)):
        report = json.loads(run("demo", *options, "--json"))
        assert [row["puzzles"] for row in report["rows"]] == [puzzles, puzzles]


def test_json_is_strict(capsys: pytest.CaptureFixture[str]):
    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": None}})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": ["inf", 1.5], "c": {"d": None}}


def test_importing_the_library_needs_torch_and_jaxtyping_only():
    code = """
import sys, time
import torch, jaxtyping
before, began = set(sys.modules), time.perf_counter()
import unmask
print(time.perf_counter() - began)
new = {name.split('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names) - {'unmask'}
print(sorted(new))
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert float(lines[0]) < 2
    assert lines[1] == "[]"
    assert torch is not None


def test_bench_fhs_reports_ratios_evaluations_and_random_numbers():
    report = json.loads(run("bench", "fhs", "--length", "16", "--vocab", "2048", "--json"))
    assert {"ratio_categorical_ancestral", "ratio_two_draw_ancestral", "scaling"} <= set(report)
    names = {row["name"]: row for row in report["samplers"]}
    assert names["first-hitting"]["nfe"] == 16
    assert names["two-draw-ancestral"]["nfe"] <= 16
    assert names["first-hitting"]["draws"] == 32
    assert names["categorical-ancestral"]["draws"] > 1000 * names["first-hitting"]["draws"]
    assert report["ratio_categorical_ancestral"] > 0
    assert "FHS" in run("bench", "fhs", "--length", "8", "--vocab", "64")


def test_compare_puts_samplers_side_by_side(tmp_path: Path):
    picture = tmp_path / "frontier.png"
    options = ["compare", "--stay", "0.9", "--symbols", "2", "--length", "4"]
    rules = "entropy-bound:gamma=0.1,proxy=margin,topk,first-hitting,ancestral"
    rows = json.loads(run(*options, "--rules", rules, "--json", "--plot", str(picture)))
    assert {"rule", "settings", "kl", "tv", "bound", "nfe_mean"} <= set(rows[0])
    assert [row["rule"] for row in rows].count("entropy-bound") == 1
    assert rows[0]["settings"] == {"gamma": 0.1, "proxy": "margin"}
    assert [row["settings"]["k"] for row in rows if row["rule"] == "topk"] == [1, 2, 3, 4]
    steps = [row for row in rows if row["rule"] == "ancestral"]
    assert [row["settings"]["steps"] for row in steps] == [1, 2, 4, 8, 16, 32]
    assert [row["kl"] for row in steps] == sorted((row["kl"] for row in steps), reverse=True)
    assert all(row["kl"] <= row["bound"] + 1e-9 for row in rows)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "topk:k=2" in run(*options, "--rules", "topk")
    with pytest.raises(ValueError, match="unknown rule"):
        run(*options, "--rules", "greedy")
