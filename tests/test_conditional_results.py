"""The dependence bound beside EB where something is given: the saved figures are what the page says of them."""

from __future__ import annotations

from typing import Any

import pytest
from figures import saved

REPORTS: dict[str, dict[str, Any]] = saved("conditional")


def found(name: str, commitment: float, temperature: float) -> list[dict[str, Any]]:
    """Rows of the dependence bound, by γ; there are three each, or the page says something of nothing."""
    rows = [row for row in REPORTS[name]["rows"] if row["rule"] == "dependence-bound"]
    wanted = [row for row in rows if (row["settings"]["commitment"], row["temperature"]) == (commitment, temperature)]
    assert len(wanted) == 3
    return wanted


def test_these_are_the_data_of_the_page():
    assert list(REPORTS) == ["sums", "mazes", "sudoku", "gaps", "gaps, subwords", "music"]


@pytest.mark.parametrize("name", REPORTS)
def test_never_below_the_frontier_of_the_entropy_bound(name: str):
    """As the command line uses it: whatever fits where tokens are drawn, a commitment of 0.1 at argmax."""
    for row in found(name, 1, 1) + (found(name, 0.1, 0) if name != "music" else []):
        assert row["against_eb"] + row["against_eb_ci95"] >= 0, row


def test_far_above_it_on_chorales():
    for row in found("music", 1, 1):
        assert row["against_eb"] > 2 * row["against_eb_ci95"]
        assert row["nfe_mean"] < 192 / 6


@pytest.mark.parametrize("name", ["sums", "mazes", "sudoku"])
def test_a_limit_on_commitment_keeps_the_quality_of_the_entropy_bound(name: str):
    """On puzzles and sums: at every γ, at no more evaluations than EB with the same γ."""
    rows = [row for row in REPORTS[name]["rows"] if row["rule"] == "entropy-bound" and row["temperature"] == 0]
    bounds = {row["settings"]["gamma"]: row for row in rows}
    for row in found(name, 0.1, 0):
        eb = bounds[row["settings"]["gamma"]]
        assert row["quality"] >= eb["quality"]
        assert row["nfe_mean"] <= eb["nfe_mean"]


def test_on_gaps_the_limit_keeps_evaluations_and_without_it_a_sixth_is_enough():
    for name in ("gaps", "gaps, subwords"):
        assert all(row["nfe_mean"] > 0.8 * 32 for row in found(name, 0.1, 0))
    least, more, _ = found("gaps", 1, 0)
    for row in (least, more):
        assert row["nfe_mean"] <= 32 / 5.5
        assert abs(row["difference"]) <= row["difference_ci95"]
    lost = [row["difference"] for row in found("gaps, subwords", 1, 0)]
    assert -0.015 < min(lost) < -0.005  # one in a hundred
