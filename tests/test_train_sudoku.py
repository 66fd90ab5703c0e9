"""Training the Sudoku network: resuming is exact, and what can go wrong is said."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("numba")

from unmask.errors import AdapterError, UnmaskError
from unmask.models.networks.checkpoint import load_checkpoint
from unmask.models.networks.sudoku import SudokuConfig
from unmask.tasks.sudoku_puzzles import StateMix
from unmask.training.sudoku import SudokuRecipe, export_sudoku, train_sudoku

TINY = SudokuRecipe(
    steps=6,
    decay_steps=2,
    warmup_steps=2,
    batch_size=3,
    puzzles=60,
    mix=StateMix(random=40, any=30, few=0, hard=30),
    network=SudokuConfig(channels=8, messages=4, hidden=8, passes=3),
    window=2,
    warm_passes=2,
    compile=False,
)


def contents(state: Path) -> dict[str, torch.Tensor]:
    saved = torch.load(state, weights_only=True)
    flat = {f"{part}.{name}": value for part in ("net", "ema") for name, value in saved[part].items()}
    for index, moments in saved["optimiser"]["state"].items():
        flat |= {f"optimiser.{index}.{name}": value for name, value in moments.items()}
    return flat | {"step": torch.tensor(saved["step"]), "loss": torch.tensor(saved["loss"])}


def assert_same_bits(one: Path, other: Path) -> None:
    a, b = contents(one), contents(other)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a), [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "sudoku"
    train_sudoku(out, TINY, log_every=1)
    return out


def test_a_run_leaves_a_checkpoint_a_card_and_a_log(finished: Path):
    net = load_checkpoint(finished / "checkpoint")
    assert net.config == TINY.network
    training = json.loads((finished / "checkpoint" / "config.json").read_text())["training"]
    assert training["steps"] == 6
    assert training["recipe"] == dataclasses.asdict(TINY)
    card = (finished / "checkpoint" / "README.md").read_text()
    assert "unmask train sudoku" in card
    assert "60 minimal puzzles" in card
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(0 < line["loss"] < 4 for line in lines)


@pytest.mark.parametrize("stop", [1, 4])
def test_an_interrupted_run_ends_with_the_same_bits(finished: Path, tmp_path: Path, stop: int):
    train_sudoku(tmp_path, TINY, stop_after=stop, log_every=1)
    assert not (tmp_path / "checkpoint").exists()
    train_sudoku(tmp_path, TINY, log_every=1)
    assert_same_bits(finished / "state.pt", tmp_path / "state.pt")
    assert (tmp_path / "checkpoint" / "model.safetensors").read_bytes() == (
        finished / "checkpoint" / "model.safetensors"
    ).read_bytes()


def test_a_killed_run_ends_with_the_same_bits(finished: Path, tmp_path: Path):
    # Killed after step 5, the last state of which is that of step 4, while a state is being written.
    script = f"""
import os, signal
from pathlib import Path
from unmask.models.networks.sudoku import SudokuConfig
from unmask.tasks.sudoku_puzzles import StateMix
from unmask.training.sudoku import SudokuRecipe, train_sudoku
out = Path({str(tmp_path)!r})

def die(step, loss):
    if step == 5:
        (out / ".state.pt.1.tmp").write_bytes(b"half a state")
        os.kill(os.getpid(), signal.SIGKILL)

train_sudoku(out, {TINY!r}, save_every=2, log_every=1, on_step=die)
"""
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 4
    train_sudoku(tmp_path, TINY, log_every=1)
    assert_same_bits(finished / "state.pt", tmp_path / "state.pt")
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_finished_run_stays_as_it_is(finished: Path):
    before = (finished / "state.pt").read_bytes()
    train_sudoku(finished, TINY)
    assert (finished / "state.pt").read_bytes() == before


def test_another_recipe_is_refused_by_the_field_that_differs(finished: Path):
    with pytest.raises(ValueError, match=r"lr: 0\.003 there, 0\.001 here"):
        train_sudoku(finished, dataclasses.replace(TINY, lr=1e-3))


def test_the_length_may_change_until_the_decay_begins(tmp_path: Path, finished: Path):
    train_sudoku(tmp_path, dataclasses.replace(TINY, steps=9, decay_steps=3), stop_after=4)
    train_sudoku(tmp_path, TINY)
    assert_same_bits(finished / "state.pt", tmp_path / "state.pt")
    with pytest.raises(ValueError, match="steps: 6 there, 9 here"):
        train_sudoku(tmp_path, dataclasses.replace(TINY, steps=9))


def test_a_used_folder_is_refused_without_resume(finished: Path):
    with pytest.raises(ValueError, match="already holds a run"):
        train_sudoku(finished, TINY, resume=False)


def test_a_folder_in_use_is_refused(tmp_path: Path):
    def second(step: int, loss: float) -> None:
        with pytest.raises(ValueError, match="another process"):
            train_sudoku(tmp_path, TINY)

    train_sudoku(tmp_path, TINY, stop_after=1, on_step=second)


@pytest.mark.parametrize("name", ["state.pt", "recipe.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str):
    train_sudoku(tmp_path, TINY, stop_after=2)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(AdapterError, match=name):
        train_sudoku(tmp_path, TINY)
    with pytest.raises(AdapterError, match=name):
        export_sudoku(tmp_path)


def test_damaged_puzzles_are_made_again(finished: Path, tmp_path: Path):
    train_sudoku(tmp_path, TINY, stop_after=2)
    (tmp_path / "pool.npz").write_bytes(b"PK")
    train_sudoku(tmp_path, TINY)
    assert_same_bits(finished / "state.pt", tmp_path / "state.pt")


def test_a_full_disk_is_said_and_costs_nothing(finished: Path, tmp_path: Path):
    train_sudoku(tmp_path, TINY, stop_after=2)
    before = (tmp_path / "state.pt").read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))  # writing more fails, as on a full disk
        with pytest.raises(UnmaskError, match="last saved state is intact"):
            train_sudoku(tmp_path, TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "state.pt").read_bytes() == before
    assert not list(tmp_path.glob(".*.tmp"))
    train_sudoku(tmp_path, TINY)
    assert_same_bits(finished / "state.pt", tmp_path / "state.pt")


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnmaskError, match="could not write"):
        train_sudoku(tmp_path / "file" / "run", TINY)


def test_the_unfinished_can_be_exported(tmp_path: Path):
    train_sudoku(tmp_path, TINY, stop_after=3)
    to = export_sudoku(tmp_path, tmp_path / "early")
    assert load_checkpoint(to).config == TINY.network
    assert "an unfinished run of 6 steps" in (to / "README.md").read_text()


def test_the_loss_falls(tmp_path: Path):
    recipe = dataclasses.replace(
        TINY, steps=60, decay_steps=None, batch_size=8, warmup_steps=5, dtype="float32", lr=1e-2
    )
    seen: list[float] = []
    train_sudoku(tmp_path, recipe, on_step=lambda step, loss: seen.append(loss))
    assert sum(seen[-10:]) / 10 < sum(seen[:5]) / 5 - 0.3


def test_the_learning_rate_warms_up_stays_and_decays():
    recipe = SudokuRecipe(steps=100, warmup_steps=10, decay_steps=50, lr=1.0)
    rates = [recipe.learning_rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)
    assert SudokuRecipe(steps=30).decay_steps == 12


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("decay_steps", 7),
        ("seed", -1),
        ("lr", 0.0),
        ("lr", float("nan")),
        ("ema", 1.0),
        ("dtype", "float16"),
    ],
)
def test_wrong_recipes_are_refused(field: str, value: object):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(TINY, **{field: value})  # type: ignore[arg-type]


def test_a_missing_compiler_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match="compiler"):
        train_sudoku(tmp_path, dataclasses.replace(TINY, compile=True))
