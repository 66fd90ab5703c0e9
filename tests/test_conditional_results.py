"""The dependence bound beside EB where something is given: the saved figures are what the page says of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.conditional import RESULTS

REPORTS: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", REPORTS)
def test_never_below_the_frontier_of_the_entropy_bound(name: str):
    """As the command line uses it: whatever fits where tokens are drawn, a commitment of 0.1 at argmax."""
    for row in REPORTS[name]["rows"]:
        if row["rule"] == "dependence-bound" and row["settings"]["commitment"] == (1 if row["temperature"] else 0.1):
            assert row["against_eb"] + row["against_eb_ci95"] >= 0, row


def test_far_above_it_on_chorales():
    for row in REPORTS["music"]["rows"]:
        if row["rule"] == "dependence-bound":
            assert row["against_eb"] > 2 * row["against_eb_ci95"]
            assert row["nfe_mean"] < 192 / 6
