"""Real test puzzles at argmax: what docs/results.md claims, on a sample here and on all of them in `make test-slow`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from figures import saved, slack

from benchmarks.sudoku import GAMMA, GRADES, cache_folder, collect, compare, puzzles
from unmask.rules.named import named_rule

SAVED: dict[str, dict[str, Any]] = saved("sudoku-test")["grades"]
SAMPLE = 12

TARGETS = {"easy": (0.995, 10), "medium": (0.98, 6), "hard": (0.92, 6), "diabolical": (0.75, 1), "17 clues": (0.80, 3)}
"""What was asked of the model before it was trained: the share solved, and how many times fewer evaluations."""


def figures(grade: str, count: int | None) -> dict[str, Any]:
    rows = puzzles("test", count)[grade]
    # A quick sample is always measured; the whole is kept for as long as weights and code stay the same.
    cache = None if count else cache_folder("test")
    runs = [
        collect(rule, grade, rows, cache)
        for rule in (named_rule("top1-entropy"), named_rule("entropy-bound", gamma=GAMMA))
    ]
    return compare(*runs)


def at_least(solved: int, of: int, taken: int) -> int:
    """The count that fewer than one in a thousand samples of `taken` puzzles fall below, where `solved` of `of` are.

    The rate is that of the rule of succession, so that it is below 1 where all were solved.
    """
    rate = (solved + 1) / (of + 2)
    below = 0.0
    for count in range(taken + 1):
        below += math.comb(taken, count) * rate**count * (1 - rate) ** (taken - count)
        if below >= 1e-3:
            return count
    return taken


@pytest.mark.parametrize("grade", GRADES.values())
def test_the_saved_figures_reach_what_was_asked(grade):
    row, (rate, times) = SAVED[grade], TARGETS[grade]
    assert row["top1_solved"] >= rate
    assert row["speed_up"] >= times
    assert row["difference"] + row["difference_ci95"] >= 0


@pytest.mark.parametrize("grade", GRADES.values())
def test_a_sample_of_each_grade(grade):
    """As many solved, at as few evaluations, as a sample of the puzzles of the table has 999 times in a thousand."""
    row, known = figures(grade, SAMPLE), SAVED[grade]
    for rule in ("top1", "eb"):
        solved = round(known[f"{rule}_solved"] * known["puzzles"])
        assert row[f"{rule}_solved"] * SAMPLE >= at_least(solved, known["puzzles"], SAMPLE)
    assert row["difference"] * SAMPLE >= -1
    few = slack(known["eb_nfe_ci95"], known["puzzles"], SAMPLE)
    assert row["eb_nfe"] == pytest.approx(known["eb_nfe"], rel=0, abs=few)
    assert row["speed_up"] == pytest.approx(row["top1_nfe"] / row["eb_nfe"])


@pytest.mark.slow
@pytest.mark.parametrize("grade", GRADES.values())
def test_all_test_puzzles_of_a_grade(grade):
    """What the page of results says: to a hundredth where the puzzles are the same, as rounding may decide a cell."""
    row, known = figures(grade, None), SAVED[grade]
    print(row)
    same = row["puzzles"] == known["puzzles"]
    assert same or grade == "17 clues"
    for rule in ("top1", "eb"):
        rate = known[f"{rule}_solved"]
        spread = 1.96 * (rate * (1 - rate) / known["puzzles"]) ** 0.5
        allowed = 0.01 + (0 if same else slack(spread, known["puzzles"], row["puzzles"]))
        assert row[f"{rule}_solved"] == pytest.approx(rate, rel=0, abs=allowed)
    assert row["difference"] + row["difference_ci95"] >= 0
    allowed = 0.01 * known["eb_nfe"] + (0 if same else slack(known["eb_nfe_ci95"], known["puzzles"], row["puzzles"]))
    assert row["eb_nfe"] == pytest.approx(known["eb_nfe"], rel=0, abs=allowed)
    assert row["top1_nfe"] == pytest.approx(known["top1_nfe"], rel=0.01)
