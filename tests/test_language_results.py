"""The page on language models says what was measured."""

import json

import pytest

from benchmarks.language import PAGE, RESULTS, tables
from benchmarks.pages import between

SAVED = json.loads(RESULTS.read_text())


@pytest.mark.parametrize("name", sorted(tables(SAVED)))
def test_the_tables_are_those_of_the_saved_figures(name):
    assert between(PAGE.read_text(encoding="utf-8"), name) == tables(SAVED)[name]


def test_a_step_takes_little_beside_the_network():
    step = SAVED["step"]
    assert step["share_outside"] <= 0.05
    assert all(row["peak"] <= 1.1 * row["logits"] for row in step["memory"])


def test_caches_that_are_exact_do_not_drift_and_the_others_save_time():
    for report in SAVED["caches"].values():
        for row in report["rows"]:
            if row["cache"] == "block-causal" or row["refresh"] == 1:
                assert row["max_gap"] < 1e-4
    assert all(row["time"] < 1 for row in SAVED["caches"]["random"]["rows"] if row["refresh"] != 1)
