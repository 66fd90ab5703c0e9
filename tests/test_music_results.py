"""Harmonising: the figures that were saved, and a sample measured again in `make test-slow`."""

from __future__ import annotations

import json
from typing import Any

import figures
import pytest

from benchmarks.music import GAMMAS, RESULTS, checkpoint_sha, compared, keeps_quality
from unmask.cli.compose import GAMMA
from unmask.tasks.music import MusicTask

COMPARED = [("entropy", 1), ("confidence", 1), ("entropy", 0)]


def saved(name: str) -> dict[str, Any]:
    report = json.loads((RESULTS / f"music-{name}.json").read_text())
    assert report["checkpoint_sha256"] == checkpoint_sha(), "the figures are of another checkpoint"
    return report


def test_gamma_is_the_one_that_validation_chose():
    """The largest of the grid whose mean loss against Top-1 is within one standard error."""
    (group,) = saved("validation")["comparisons"]
    _, *bounds = group["rows"]
    assert max(gamma for gamma, row in zip(GAMMAS, bounds, strict=True) if keeps_quality(row)) == GAMMA


def test_the_model_is_as_good_as_the_figures_it_came_with():
    # Those were taken on two more pieces, the ones with rests, whose cross-entropy is several times as high.
    report = saved("check")
    for row in report["rates"]:
        assert row["published"] - 0.1 <= row["cross_entropy"] <= row["published"] + row["cross_entropy_ci95"]
    real = report["real"]
    assert (round(real["equal_previous"], 2), round(real["voices_in_order"], 2)) == (0.78, 0.98)
    # Of eight pieces each: shares that are good to some hundredths.
    assert len(report["samples"]) == 6
    for row in report["samples"]:
        for name, published in row["published"].items():
            assert row[name] == pytest.approx(published, rel=0, abs=0.05), (row["rule"], name)


def test_less_than_half_of_the_evaluations_on_test_chorales():
    """Nothing is lost beyond the paired interval; drawn, top-k loses a third of a nat a token at this cost."""
    groups = saved("test")["comparisons"]
    assert [(group["proxy"], group["temperature"]) for group in groups] == COMPARED
    for group in groups:
        top1, bound, quota, _ = group["rows"]
        assert round(top1["nfe"] / bound["nfe"], 1) >= 2.4
        lost, lost_by_quota = -bound["log_likelihood_difference"], -quota["log_likelihood_difference"]
        assert lost <= bound["log_likelihood_difference_ci95"]
        if group["temperature"] == 1:
            assert lost_by_quota > 0.3
            assert lost_by_quota > quota["log_likelihood_difference_ci95"]


def test_pricing_dependence_takes_about_half_of_those():
    """4.2 times fewer evaluations than one at a time, 56 % of EB's, and what is lost is within the paired interval."""
    (group,) = figures.saved("music-others")["comparisons"]
    # These were saved without the checkpoint's name. A row that both have shows that it is the same.
    again, known = group["rows"][2], saved("test")["comparisons"][1]["rows"][1]
    assert [again[name] for name in ("rule", "nfe", "log_likelihood")] == [
        known[name] for name in ("rule", "nfe", "log_likelihood")
    ]
    top1, eb, *others = group["rows"]
    (ours,) = (row for row in others if row["rule"].startswith("dependence-bound"))
    assert round(top1["nfe"] / ours["nfe"], 1) >= 4.2
    assert ours["nfe"] <= 0.6 * eb["nfe"]
    assert -ours["log_likelihood_difference"] <= ours["log_likelihood_difference_ci95"]


@pytest.mark.slow
def test_a_sample_of_test_chorales():
    """Four of the forty chorales, as far from the saved figures as four may be; about two minutes, mostly Top-1's."""
    group, told = compared(MusicTask(), "test", "entropy", 1.0, 4, 0), saved("test")["comparisons"][0]
    _, bound, quota, _ = group["rows"]
    assert bound["log_likelihood_difference"] > quota["log_likelihood_difference"]
    assert quota["nfe"] == round(bound["nfe"])
    for row, known in zip(group["rows"], told["rows"], strict=True):
        for column in ("nfe", "log_likelihood", "equal_previous"):
            if column in row and (row is not quota or column != "nfe"):
                allowed = figures.slack(known[f"{column}_ci95"], known["pieces"], 4)
                assert row[column] == pytest.approx(known[column], rel=0, abs=allowed), (row["rule"], column)
