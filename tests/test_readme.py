"""The README's code runs as printed; commands and tables of the pages are what the package does and what was saved."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

import unmask
from benchmarks.pages import between
from benchmarks.sudoku import checkpoint_sha, table
from unmask import rules
from unmask.cli.app import app
from unmask.rules.named import FAMILIES, FLOOR, named_rule
from unmask.rules.profile import load_profile

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))]
IN_LINE = re.compile(r"`(unmask [a-z][^`]*)`")
LINES = [line.split("#")[0] for page in PAGES for line in page.splitlines() if line.startswith("unmask ")]
COMMANDS = sorted({line.strip() for line in [*LINES, *(line for page in PAGES for line in IN_LINE.findall(page))]})
"""What the pages tell to type, in blocks and in sentences."""

CARDS = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "unmask").rglob("README.md"))]
DOTTED = re.compile(r"(?:`|::: )(unmask(?:\.[A-Za-z_]\w*)+)")
NAMES = sorted({name for page in [*PAGES, *CARDS] for name in DOTTED.findall(page)})
"""What pages and model cards call by its place in the package."""

TABLE = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
SAMPLERS = TABLE.split("| sampler | composition | command line | source |\n")[1].split("\n\n")[0].splitlines()[1:]
"""The rows of the table of samplers."""


def test_there_is_code_to_run():
    assert len(BLOCKS) == 1
    assert len(COMMANDS) >= 40


@pytest.mark.parametrize("code", BLOCKS)
def test_the_examples_run_as_printed(code, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert re.fullmatch(r"KL 0\.\d{4} <= 0\.\d{4}, \d\.\d\d evaluations, p = 0\.\d\d\n", capsys.readouterr().out)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split(" | ")]


def named(row: str) -> tuple[str, list[str]]:
    """The rule that a row of the table gives for the command line, and the words after it."""
    name, *words = shlex.split(cells(row)[2].strip("`"))
    return name, [word for word in words if word != "-o"]


def test_every_rule_of_the_command_line_has_a_row_and_every_row_names_a_rule():
    assert {named(row)[0].partition(":")[0] for row in SAMPLERS} == set(FAMILIES)


VALUES: dict[str, Any] = {
    "gamma": 0.25, "epsilon": 0.125, "k": 3, "n": 6, "steps": 6, "p": 0.75, "f": 1.5, "t": 0.9, "kl": 0.01,
    "history": 2, "floor": FLOOR, "gumbel": 4.5, "alpha": 4.5, "sizes": (3, 2, 1),
}  # fmt: skip
"""What the letters of the table's compositions stand for."""

WORDS = {"threshold": "p", "factor": "f", "draft": "k", "steps": "n"}
"""The letter of a composition that an option is about, where it has another name."""


@pytest.mark.parametrize("row", SAMPLERS, ids=lambda row: named(row)[0])
def test_a_composition_of_the_table_is_the_rule_of_the_command_line_beside_it(row):
    """What the second column says, evaluated, equals what the third builds; the needed settings are in the third."""
    profile = load_profile("text")
    name, words = named(row)
    options: dict[str, Any] = {}
    while words:
        option = words.pop(0).removeprefix("--")
        assert option in FAMILIES[name].settings
        options[option] = words.pop(0) if words and not words[0].startswith("--") else VALUES[WORDS.get(option, option)]
    if "profile" in FAMILIES[name.partition(":")[0]].settings:
        options["profile"] = profile
    code = cells(row)[1].split("`")[1]
    library = {**vars(unmask), **vars(rules)}
    composed = eval(code, library, {**VALUES, "profile": profile})
    assert repr(named_rule(name, **options).rule) == repr(composed)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_pages_exists_with_its_options(line):
    command: Any = typer.main.get_command(app)
    _, *words = shlex.split(line)
    context = command.make_context("unmask", ["--version"], resilient_parsing=True)
    while hasattr(command, "commands") and words:
        command = command.get_command(context, words.pop(0))
        assert command is not None, line
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= known


def test_pages_and_cards_name_places_of_the_package():
    assert len(NAMES) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_a_place_that_a_page_or_a_card_names_exists(name: str):
    found: Any = unmask
    for at, part in enumerate(name.split(".")[1:], start=2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(name.split(".")[:at]))
            except ImportError as error:
                if (error.name or "unmask").partition(".")[0] == "unmask":
                    raise
                pytest.skip(f"needs {error.name}")
        found = getattr(found, part)


def test_the_sudoku_table_is_generated_from_the_saved_figures():
    saved = json.loads((ROOT / "docs/results/sudoku-test.json").read_text())
    assert between((ROOT / "docs" / "results.md").read_text(encoding="utf-8"), "sudoku-test") == table(saved)
    assert saved["checkpoint_sha256"] == checkpoint_sha(), "the figures are of another checkpoint"
