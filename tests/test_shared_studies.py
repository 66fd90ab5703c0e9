"""Studies whose work others do give the same tables, and a file of results that either goes on from."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_cli import run

from unmask.cli.engines import EngineOptions

SUDOKU = ["--task", "sudoku", "--limit", "2", "--batch-size", "1"]


def elsewhere(make: Callable[[], Any], work: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """An engine as Ray is one: what it is given and gives back is copied, and the order is another."""
    do = pickle.loads(pickle.dumps(make))()
    for number, piece in reversed(work):
        yield number, pickle.loads(pickle.dumps(do(pickle.loads(pickle.dumps(piece)))))


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options by which others do the work."""
    monkeypatch.setattr(EngineOptions, "chosen", lambda self: elsewhere if self.engine == "ray" else None)
    return ["--engine", "ray"]


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("seconds", "tokens_per_second")
        return {name: without_seconds(one) for name, one in value.items() if name not in timed}
    return [without_seconds(one) for one in value] if isinstance(value, list) else value


def table(*arguments: str) -> Any:
    return without_seconds(json.loads(run(*arguments, "--json")))


def test_compare_gives_the_same_table(shared: list[str], tmp_path: Path):
    arguments = ["compare", *SUDOKU, "--rules", "topk:k=40,topk:k=20", "--seeds", "2", "--temperature", "0.5,1"]
    alone = table(*arguments, "--out", str(tmp_path / "kept.jsonl"))
    assert table(*arguments, *shared) == alone
    assert len(alone) == 4
    kept = (tmp_path / "kept.jsonl").read_bytes()
    assert table(*arguments, *shared, "--out", str(tmp_path / "kept.jsonl")) == alone
    assert (tmp_path / "kept.jsonl").read_bytes().strip() == kept.strip()  # nothing was answered again
    assert table(*arguments, *shared, "--out", str(tmp_path / "anew.jsonl")) == alone
    assert table(*arguments, "--out", str(tmp_path / "anew.jsonl")) == alone


def test_tune_gives_the_same_trials(shared: list[str]):
    arguments = ["tune", *SUDOKU, "--rules", "threshold,topk:k=30", "--reference", "topk:k=40"]
    alone = table(*arguments, "--tolerance", "1")
    assert len(alone["trials"]) > 2
    assert table(*arguments, "--tolerance", "1", *shared) == alone


def test_samples_that_are_judged_are_judged_by_the_workers(shared: list[str]):
    arguments = ["compare", "--task", "text", "--limit", "1", "--rules", "topk:k=64", "--judge", "judge"]
    alone = table(*arguments, "--batch-size", "1")
    assert {"nelbo", "judge", "entropy"} <= alone[0].keys()
    assert table(*arguments, "--batch-size", "1", *shared) == alone


def test_an_oracle_is_computed_here(shared: list[str]):
    with pytest.raises(ValueError, match="--engine goes with --task"):
        run("compare", *shared)


def test_eval_gives_the_same_table(shared: list[str], tmp_path: Path):
    arguments = ["eval", "chat", "--tasks", "instructions", "--limit", "4", "--batch-size", "2", "--temperature", "1"]
    alone = table(*arguments, "--out", str(tmp_path / "kept.jsonl"))
    assert alone["tasks"][0]["nfe_mean"] > 0
    assert table(*arguments, *shared, "--out", str(tmp_path / "others.jsonl")) == alone
    kept, others = (answers_in(tmp_path / name) for name in ("kept.jsonl", "others.jsonl"))
    assert kept == others
    assert len(kept) == 4


def answers_in(path: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {line["key"]: without_seconds(line["value"]) for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", *SUDOKU, "--rules", "topk:k=40,topk:k=20"],
        ["tune", *SUDOKU, "--rules", "topk:k=30", "--reference", "topk:k=40", "--tolerance", "1"],
        ["eval", "chat", "--tasks", "instructions", "--limit", "4", "--batch-size", "2", "--temperature", "1"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_ray_gives_the_same_tables(arguments: list[str]):
    said = run(*arguments, "--engine", "ray", "--workers", "2", "--json")
    begin = min(place for place in (said.find("{\n"), said.find("[\n")) if place >= 0)
    assert without_seconds(json.loads(said[begin:])) == table(*arguments)
