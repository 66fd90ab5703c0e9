"""The code of front page, tutorials and pages that print runs from top to bottom, as a reader would type it.

Python runs; a file in YAML is saved under the name in its first line; in a block marked `sh` every line is typed. What
a page shows under a block as printed is what it prints; where that depends on the machine it is called an example, and
may have other figures and other texts in quotes.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from unmask.cli import app

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(
    r"```(python|sh|yaml)\n(.*?)```(?:\n\n(It prints|For example):\n\n```text\n(.*?)```)?", re.DOTALL | re.MULTILINE
)
"""A block, and what is shown under it."""

SAID = {
    "index.md": ["KL 0"],
    "process.md": ["TopK\\(k=1\\): 6 evaluations, 0.000 nats lost", "All\\(\\): 1 evaluations, [12]"],
    "entropy-bound.md": ["γ 3.0: KL 1"],
    "first-hitting.md": ["first-hitting: 5.00 evaluations, 0.0000", "ancestral, 30: 4"],
    "exact-laws.md": ["by confidence: KL 0.0000", "most probable draw: KL 1"],
    "batch-invariance.md": ["True tensor\\(True\\)"],
    "choosing.md": ["γ 0.5: [34]"],
    "evaluate.md": ["16.0 -> 1."],
    "adapter.md": ["alone as in a batch: True"],
    "tutorials/first-sampler.md": [
        "54 evaluations",
        "\n3 evaluations",
        "the same grid: True",
        "γ 0.05: 14 of 16 solved",
    ],
    "tutorials/own-denoiser.md": [
        "1 at a time: 6 evaluations, total variation 0.000",
        "2 at a time: 3 evaluations",
    ],
    "tutorials/molecules.md": [re.escape("OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1")],
    "tutorials/train.md": [
        r"240 'the .*□□□.*' -> 'the .*' \d+ evaluations",
        r"\n[01]\.\d+\n",  # the NELBO, far below that of knowing nothing
        r"'the cat sat on the log; the log had a cat\.\\n' \d evaluations for 6 gaps",
        "top1-entropy",
    ],
}
"""What each page is about, in what it prints: regular expressions."""


def trimmed(printed: str) -> str:
    """Without spaces at the ends of lines, and without empty lines at the end."""
    return "\n".join(line.rstrip() for line in printed.splitlines()).strip("\n")


def of_any_machine(printed: str) -> str:
    """Without figures, texts in quotes, and widths of columns."""
    words = re.sub(r"[+-]?\d+(\.\d+)?", "0", re.sub(r"'[^'\n]*'", "''", printed))
    return re.sub(r"\s+", " ", re.sub("─+", "─", words)).strip()


@pytest.mark.parametrize("name", SAID)
def test_a_page_runs_as_printed(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    blocks = BLOCK.findall((DOCS / name).read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    reader: dict[str, object] = {"__name__": "reader"}
    everything = ""
    for language, code, kind, shown in blocks:
        typed = ""
        if language == "python":
            exec(compile(code, name, "exec"), reader)
        elif language == "yaml":
            Path(code.split("\n")[0].removeprefix("# ")).write_text(code, encoding="utf-8")
        else:
            for line in code.strip().splitlines():
                _, *words = shlex.split(line, comments=True)
                result = CliRunner().invoke(app, words)
                assert result.exit_code == 0, (line, result.output, result.exception)
                typed += result.stdout
        printed = typed + capsys.readouterr().out
        everything += printed
        if kind == "It prints":
            assert trimmed(printed) == trimmed(shown)
        elif kind == "For example":
            assert of_any_machine(shown) in of_any_machine(printed), printed
        else:
            assert not (printed and name.startswith("tutorials/")), f"the page does not show: {printed}"
    for said in SAID[name]:
        assert re.search(said, everything), (said, everything)


def test_every_tutorial_is_run():
    assert {f"tutorials/{path.name}" for path in (DOCS / "tutorials").glob("*.md")} <= set(SAID)
