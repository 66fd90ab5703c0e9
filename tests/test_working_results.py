"""The page on orders, blocks and ends says what was measured, and the checkpoint does what it says."""

from __future__ import annotations

import json

import pytest
import torch

import unmask
from benchmarks.working import (
    BLOCKS,
    CANVAS,
    ENDINGS,
    FREE,
    MODEL,
    OPTIONS,
    REFERENCE,
    RESULTS,
    SETTINGS,
    judge,
    summary,
)
from unmask.language import Completion, LanguageModel
from unmask.rules.named import FAMILIES, named_rule
from unmask.tasks.working import Problem, WorkingTask

SAVED = json.loads(RESULTS.read_text(encoding="utf-8"))
EB = "entropy-bound:gamma=0.1"
EXPRESSION = Problem("7+5*3=", "5*3=15;7+15=22", "expression", "")


def answered(text: str, steps: tuple[int, ...], nfe: int) -> Completion:
    """A completion of which only some is looked at."""
    return Completion("", text, steps, (), steps, nfe, len(steps), 0.0, "end", 0)


def test_every_named_rule_has_settings_to_try():
    assert set(SETTINGS) == set(FAMILIES)
    for name, settings in SETTINGS.items():
        own = {"profile": "text"} if "profile" in FAMILIES[name].settings else {}
        for setting in settings:
            assert named_rule(f"{name}:{setting}" if setting else name, **own).name == name


def test_what_a_response_is_worth():
    worked = judge(EXPRESSION, answered("5*3=15;7+15=22", (*range(1, 15), 15), 15))
    assert worked == {
        "right": True,
        "terse": False,
        "worked": True,
        "lines": 2,
        "sound": 2,
        "after_end": 0,
        "nfe": 15,
        "tokens": 15,
    }
    terse = judge(EXPRESSION, answered("36", (2, 3, 1), 3))  # the end was fixed before both digits
    assert (terse["right"], terse["terse"], terse["worked"], terse["after_end"]) == (False, True, False, 2)
    rows = [{name: [float(value)] * 2 for name, value in one.items()} | {"seconds": 1.0} for one in (worked, terse)]
    found = summary(rows[1], rows[0])
    assert found["difference"] == (-1.0, 0.0)
    assert (found["ratio"], found["right_if_terse"], found["right_if_not"]) == (5.0, 0.0, None)
    assert found["after_end"] == pytest.approx(2 / 3)


def test_the_page_has_every_rule_in_every_mode():
    found = SAVED["endings"]
    assert found["problems"] >= 200
    assert [(row["rule"], row["mode"]) for row in found["rows"]] == [
        (rule, mode) for rule in ENDINGS for mode in OPTIONS
    ]


def test_the_checkpoint_answers_as_the_page_says():
    model = unmask.load(MODEL)
    assert isinstance(model, LanguageModel)
    assert model.network.model.dtype == torch.float32
    problems = WorkingTask().problems("test", 60)
    answers = model.generate([one.prompt for one in problems], rule=EB, max_new_tokens=32, **OPTIONS[BLOCKS + FREE])
    right = sum(asked.right(one.text) for asked, one in zip(problems, answers, strict=True)) / len(problems)
    (row,) = [row for row in SAVED["endings"]["rows"] if (row["rule"], row["mode"]) == (EB, BLOCKS + FREE)]
    said, _ = row["right"]
    # The page's first sixty of two hundred: five standard deviations of a share of sixty.
    assert abs(right - said) < 5 * (said * (1 - said) / len(problems)) ** 0.5


def test_on_a_free_canvas_the_end_comes_before_the_text():
    """Blocks prevent it, and so does letting ends wait."""
    rows = {(row["rule"], row["mode"]): row for row in SAVED["endings"]["rows"]}
    free = rows[REFERENCE, CANVAS + FREE]
    terse, interval = free["terse"]
    assert terse - interval > 0
    assert free["after_end"] > 0.5
    for mode in (CANVAS, BLOCKS, BLOCKS + FREE):
        assert rows[REFERENCE, mode]["terse"][0] == 0
        assert rows[REFERENCE, mode]["after_end"] < 0.25


def test_one_at_a_time_in_blocks_is_right_nine_times_in_ten():
    rows = {(row["rule"], row["mode"]): row for row in SAVED["endings"]["rows"]}
    assert rows[REFERENCE, BLOCKS + FREE]["right"][0] >= 0.9


def test_the_entropy_bound_takes_half_the_evaluations_at_no_loss_beyond_the_interval():
    rows = {(row["rule"], row["mode"]): row for row in SAVED["endings"]["rows"]}
    for mode in (BLOCKS + FREE, CANVAS + FREE):
        row = rows["entropy-bound:gamma=0.01", mode]
        loss, interval = row["difference"]
        assert loss + interval >= 0
        assert row["ratio"] >= 2
