"""Long work is not silent: a line now and then where there is no terminal, a bar where there is one."""

from __future__ import annotations

import time
from io import StringIO

import pytest
from rich.console import Console
from rich.progress import Progress

from unmask.training.folder import progress as training_progress
from unmask.viewing.progress import ProgressLines, progress


def test_lines_come_while_a_step_is_silent():
    stream = StringIO()
    with ProgressLines(stream, every=0.02) as bar:
        time.sleep(0.05)
        job = bar.add_task("solving", total=12)
        bar.advance(job)
        bar.advance(job, 2)
        time.sleep(0.05)
        bar.update(job, completed=11, note="loss 0.5")
        time.sleep(0.05)
        other = bar.add_task("judging", total=None, completed=1)
        bar.advance(other)
        time.sleep(0.05)
    lines = stream.getvalue().splitlines()
    for line in ("working, 0 s", "solving: 3 of 12, 0 s", "solving: 11 of 12, 0 s  loss 0.5", "judging: 2, 0 s"):
        assert line in lines
    time.sleep(0.05)
    assert stream.getvalue().splitlines() == lines  # nothing comes after the end


def test_short_work_and_closed_streams_are_quiet(capsys: pytest.CaptureFixture[str]):
    with progress(Console(file=StringIO())) as bar:
        bar.advance(bar.add_task("quick", total=1))
    with training_progress("steps", 3) as show:
        show(3, "done")
    assert capsys.readouterr() == ("", "")
    closed = StringIO()
    closed.close()
    with ProgressLines(closed, every=0.01):
        time.sleep(0.05)


def test_a_terminal_gets_a_bar_and_lines_if_none_may_be_drawn():
    terminal = Console(file=StringIO(), force_terminal=True)
    assert isinstance(progress(terminal), Progress)
    assert isinstance(progress(terminal, bar=False), ProgressLines)
    assert isinstance(progress(Console(file=StringIO())), ProgressLines)
