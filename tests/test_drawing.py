from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from unmask.dependence.picture import heat_map
from unmask.evaluation.frontier import plot, plot_study
from unmask.rules.profile import Line, Profile
from unmask.tasks.music_files import write_piano_roll
from unmask.viewing.drawing import missing, pyplot
from unmask.viewing.pictures import check_pictures


def test_what_is_not_installed_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert missing("matplotlib", "pillow") == ["matplotlib", "pillow"]
    file = tmp_path / "file.png"
    for draw in (
        pyplot,
        check_pictures,
        lambda: plot([], file, "title"),
        lambda: plot_study([], file, "title"),
        lambda: heat_map(Profile.empty(Line.of(4)), file, "title"),
        lambda: write_piano_roll(torch.zeros(256, dtype=torch.int64), file),
    ):
        with pytest.raises(ImportError, match=r'need (pillow and )?matplotlib: pip install "unmask\[plot\]"'):
            draw()
    assert not file.exists()


def test_plots_open_no_window():
    pytest.importorskip("matplotlib")
    assert missing("matplotlib") == []
    assert pyplot().get_backend().lower() == "agg"
