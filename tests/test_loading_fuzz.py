"""Folders with one or two things wrong: they work, or are refused in one line of our own; see `folders.py`."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from folders import MAKERS, attempt, pristine_folders, try_folder

QUICK, FULL = 40, 1000


@pytest.fixture
def no_question(monkeypatch):
    def ask(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)


def test_a_folder_with_anything_wrong_works_or_is_refused_in_a_line(tmp_path, no_question):
    pristine = pristine_folders(tmp_path)
    for kind in MAKERS:
        assert try_folder(kind, pristine[kind]) == "works", kind
    found = Counter(attempt(seed, pristine, tmp_path)[1] == "works" for seed in range(QUICK))
    assert min(found[True], found[False]) >= QUICK // 8  # the changes neither always matter nor never
    assert not (tmp_path / "pristine" / "ran").exists(), "code of a checkpoint was run"


@pytest.mark.slow
def test_a_thousand_folders_neither_crash_nor_ask(tmp_path):
    """In a process of its own with 12 GB of address space, of which a minute for one folder would be the end."""
    here = Path(__file__).parent
    command = [sys.executable, str(here / "folders.py"), str(QUICK), str(FULL), str(tmp_path)]
    result = subprocess.run(
        command, input="y\n" * FULL, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(here.parent)}
    )
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert result.returncode == 0, f"ended with {result.returncode} after {lines[-1:]}: {result.stderr[-2000:]}"
    assert [line for line in lines if "failed" in line] == []
    assert sum("found" in line for line in lines) == FULL
    assert "custom code" not in result.stdout + result.stderr
    assert not (tmp_path / "pristine" / "ran").exists(), "code of a checkpoint was run"
