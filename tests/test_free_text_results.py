"""Text from nothing: the saved figures are what the pages say of them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.free_text import COLUMNS, LENGTHS, RESULTS, exponent

REPORTS: dict[str, dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))
LARGE = [name for name, report in REPORTS.items() if report["samples"] >= 500]


def agrees(row: dict[str, Any], column: str) -> bool:
    return abs(row[f"{column}_difference"]) <= row[f"{column}_difference_ci95"]


@pytest.mark.parametrize("name", LARGE)
def test_eight_times_fewer_evaluations_than_one_at_a_time_at_equal_quality(name: str):
    rows = REPORTS[name]["rows"]
    ours = [row for row in rows if row["rule"] == "dependence-bound" and 8 * row["nfe_mean"] <= 128]
    assert any(all(agrees(row, column) for column in COLUMNS) for row in ours)
    for row in rows:
        if row["rule"] in ("random-k", "dilated", "entropy-bound"):
            for column in ("nelbo", "judge"):
                assert row[f"{column}_difference"] > 5 * row[f"{column}_difference_ci95"], (row["rule"], column)


def test_characters_from_two_seeds_and_subwords_are_large():
    assert {"characters", "characters, second seed", "subwords"} <= set(LARGE)


def test_evaluations_grow_about_as_the_root_of_the_length():
    models = json.loads(LENGTHS.read_text(encoding="utf-8"))["models"]
    sizes = [one["length"] for one in models]
    assert sizes == [128, 256, 512]
    for rows in zip(*(one["rows"] for one in models), strict=True):
        if rows[0]["rule"] == "dependence-bound":
            assert exponent(sizes, [row["nfe_mean"] for row in rows]) < 0.5
            assert all(agrees(row, "nelbo") for row in rows)
