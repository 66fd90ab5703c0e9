"""The code of the front page and of the tutorials runs from top to bottom, as a reader would type it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
SAID = {
    "first-sampler.md": ["54 evaluations", "\n3 evaluations", "the same grid: True", "γ 0.05: 14 of 16 solved"],
    "own-denoiser.md": ["1 at a time: 6 evaluations, total variation 0.000", "2 at a time: 3 evaluations"],
    "molecules.md": ["OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1"],
    "index.md": ["KL "],
}
"""What each page is about, in what it prints."""


@pytest.mark.parametrize("page", [DOCS / "index.md", *sorted((DOCS / "tutorials").glob("*.md"))], ids=lambda p: p.name)
def test_a_page_runs_as_printed(
    page: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    blocks = CODE.findall(page.read_text(encoding="utf-8"))
    assert blocks
    monkeypatch.chdir(tmp_path)
    reader: dict[str, object] = {"__name__": "reader"}
    for code in blocks:
        exec(compile(code, page.name, "exec"), reader)
    printed = capsys.readouterr().out
    for said in SAID[page.name]:
        assert said in printed
