"""Reactions and antibody chains: the saved figures are what the pages say of them."""

from __future__ import annotations

from typing import Any

import pytest
from figures import saved

REPORTS: dict[str, dict[str, Any]] = saved("infilling")


def rows(name: str, temperature: str) -> dict[str, dict[str, Any]]:
    """Rows by rule; of the rules that do not adapt, by rule and `k`."""
    found = REPORTS[name]["temperatures"][temperature]["rows"]
    return {f"{row['rule']}-{row['settings']['k']}" if "k" in row["settings"] else row["rule"]: row for row in found}


def loses(found: list[float]) -> bool:
    """Whether a difference is below 0 with its whole interval."""
    return found[0] + found[1] < 0


@pytest.mark.parametrize("name", REPORTS)
def test_there_are_as_many_prompts_as_asked_for_and_settings_come_from_the_other_half(name: str):
    report = REPORTS[name]
    assert report["test_prompts"] >= 200
    for found in report["temperatures"].values():
        assert found["validation"]
        bounds = {"entropy-bound"} if "undone" in name else {"entropy-bound", "dependence-bound"}
        assert {one["rule"] for one in found["equal"]} == bounds


def test_on_reactions_eb_takes_a_fifth_of_the_evaluations_or_less_at_no_loss():
    for temperature, least in (("0", 7), ("1", 5)):
        found = rows("reactions", temperature)
        bound = found["entropy-bound"]
        assert bound["nfe"] * least < found["top1-entropy"]["nfe"]
        assert not any(map(loses, bound["differences"].values()))


def test_at_argmax_a_threshold_and_top_k_are_as_good_and_a_random_order_is_not():
    (bound, dependence) = REPORTS["reactions"]["temperatures"]["0"]["equal"]
    for one in (bound, dependence):
        for other in ("topk", "threshold"):
            mean, ci95 = one["against"][other]["recovered"]
            assert abs(mean) < ci95
        mean, ci95 = one["against"]["random-k"]["recovered"]
        assert mean > ci95


def test_drawn_every_fixed_rule_loses_at_the_evaluations_of_eb():
    bound = REPORTS["reactions"]["temperatures"]["1"]["equal"][0]["against"]
    for other in ("topk", "random-k", "threshold"):
        for mean, ci95 in bound[other].values():
            assert mean > ci95
    assert bound["threshold"]["likelihood"][0] < bound["topk"]["likelihood"][0] < bound["random-k"]["likelihood"][0]
    found = rows("reactions", "1")
    assert all(
        loses(found[f"{rule}-{k}"]["differences"]["likelihood"]) for rule in ("topk", "random-k") for k in (4, 8)
    )


def test_the_dependence_bound_saves_next_to_nothing_beside_eb_on_reactions():
    for temperature in ("0", "1"):
        found = rows("reactions", temperature)
        assert found["dependence-bound"]["nfe"] > 0.9 * found["entropy-bound"]["nfe"]


def test_on_chains_as_the_model_is_the_dependence_bound_is_no_better_than_eb():
    assert rows("heavy", "0")["dependence-bound"]["nfe"] > 3 * rows("heavy", "0")["entropy-bound"]["nfe"]
    assert loses(rows("heavy", "1")["dependence-bound"]["differences"]["recovered"])


def test_on_chains_at_argmax_eb_takes_a_ninth_and_fixed_rules_are_as_good():
    found = rows("heavy-undone", "0")
    bound = found["entropy-bound"]
    assert bound["nfe"] * 9 < found["top1-entropy"]["nfe"]
    mean, ci95 = bound["differences"]["recovered"]
    assert mean - ci95 > -0.005
    against = REPORTS["heavy-undone"]["temperatures"]["0"]["equal"][0]["against"]
    for other in ("topk", "threshold"):
        mean, ci95 = against[other]["recovered"]
        assert abs(mean) < ci95
    mean, ci95 = against["random-k"]["recovered"]
    assert mean > ci95


def test_on_chains_that_are_drawn_eb_saves_less_than_half():
    report = REPORTS["heavy-undone"]["temperatures"]["1"]
    found = rows("heavy-undone", "1")
    bound = found["entropy-bound"]
    assert 1.8 * bound["nfe"] < found["top1-entropy"]["nfe"] < 2 * bound["nfe"]
    assert abs(bound["differences"]["likelihood"][0]) < bound["differences"]["likelihood"][1]
    for other in ("topk", "threshold"):
        against = report["equal"][0]["against"][other]
        assert abs(against["recovered"][0]) < against["recovered"][1]
        assert against["likelihood"][1] < against["likelihood"][0] < 0.015


def test_undoing_label_smoothing_halves_the_evaluations_of_eb():
    report = saved("smoothing")
    half = len(report["rows"]) // 2
    for before, after in zip(report["rows"][:half], report["rows"][half:], strict=True):
        assert (before["smoothing"], after["smoothing"]) == (None, 0.1)
        assert before["settings"] == after["settings"]
        assert 1.8 * after["nfe"] < before["nfe"]
        assert after["differences"]["recovered"][0] > -0.01
    assert report["rows"][0]["nfe"] == report["top1_nfe"]
