"""The README's code runs as printed, and its table is the one the benchmark saved."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks.sudoku import checkpoint_sha, table
from unmask.rules.named import FAMILIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS)
def test_the_examples_run_as_printed(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed
    if "exact_law" in code:
        assert "one at a time: True" in printed
        assert len([line for line in code.splitlines() if line.strip()]) <= 15


def test_every_rule_of_the_command_line_is_in_the_table():
    rows = "\n".join(line for line in README.splitlines() if line.startswith("|"))
    for name in FAMILIES:
        assert f"`{name}" in rows


def test_the_sudoku_table_is_generated_from_the_saved_figures():
    saved = json.loads((ROOT / "docs/results/sudoku-test.json").read_text())
    shown = README.split("<!-- sudoku:begin -->")[1].split("<!-- sudoku:end -->")[0].strip()
    assert shown == table(saved)
    assert saved["checkpoint_sha256"] == checkpoint_sha(), "the figures are of another checkpoint"
