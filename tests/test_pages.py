"""The tables in the pages are those of the saved figures: nobody typed one in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import conditional, free_text, results, text_plane

DOCS = Path(__file__).parent.parent / "docs"


def no_plot(*args: Any) -> None:
    """Pictures are not compared."""


def test_the_tables_of_results_are_generated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sources = {path.name: path for path in (DOCS / "results.md", DOCS / "dependence.md", DOCS.parent / "README.md")}
    copies = {name: Path(shutil.copy(path, tmp_path)) for name, path in sources.items()}
    monkeypatch.setattr(results, "README", copies["README.md"])
    for module in (results, free_text, text_plane):
        monkeypatch.setattr(module, "PAGE", copies["results.md"])
    monkeypatch.setattr(free_text, "THEORY", copies["dependence.md"])
    monkeypatch.setattr(conditional, "PAGE", copies["dependence.md"])
    monkeypatch.setattr(results, "plot_study", no_plot)
    monkeypatch.setattr(text_plane, "plot", no_plot)
    results.render()
    conditional.render()
    for name, copy in copies.items():
        assert copy.read_text(encoding="utf-8") == sources[name].read_text(encoding="utf-8"), f"{name} is out of date"
