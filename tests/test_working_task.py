"""Problems in several steps: what is asked is answered, and what is wrong is told."""

from __future__ import annotations

import re

import pytest
import torch

from unmask.tasks.instructions import END_ID, MASK_ID
from unmask.tasks.working import KINDS, Problem, WorkingTask


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_working_is_sound_and_ends_at_the_result(kind: str) -> None:
    task = WorkingTask(kinds=kind, terse=0)
    for one in task.problems("validation", 300):
        assert one.worked(one.answer)
        assert all(1 <= int(number) <= 99 for number in re.findall(r"\d+", one.answer))
        if kind == "expression":
            assert int(one.result) == eval(one.prompt.rstrip("="))  # Python's own precedence
            assert one.answer.count(";") == len(re.findall("[-+*]", one.prompt)) - 1


def test_a_share_is_terse_but_never_a_countdown() -> None:
    problems = WorkingTask(terse=0.3).problems("test", 1500)
    terse = {kind: [one.answer.isdigit() for one in problems if one.kind == kind] for kind in KINDS}
    assert not any(terse["countdown"])
    for kind in ("expression", "story"):
        # Five standard deviations of a share of 0.3, with as many as there are.
        share, spread = sum(terse[kind]) / len(terse[kind]), (0.21 / len(terse[kind])) ** 0.5
        assert abs(share - 0.3) < 5 * spread
    assert not any(one.answer.isdigit() for one in WorkingTask(terse=0).problems("test", 100))


def test_the_splits_share_no_problem() -> None:
    task = WorkingTask()
    keys = {split: {one.key for one in task.problems(split, 1500)} for split in ("train", "validation", "test")}
    assert all(len(found) > 900 for found in keys.values())
    assert not keys["train"] & keys["test"]
    assert not keys["train"] & keys["validation"]
    assert not keys["validation"] & keys["test"]


def test_the_same_countdown_in_another_order_is_of_the_same_split() -> None:
    for one in WorkingTask(kinds="countdown").problems("train", 100):
        target, *numbers = map(int, re.findall(r"\d+", one.prompt))
        assert one.key == f"{sorted(numbers)} make {target}"


EXPRESSION = Problem("(7+5)*3-4=", "7+5=12;12*3=36;36-4=32", "expression", "")
COUNTDOWN = Problem("Make 24 of 9 3 5.", "3*5=15;15+9=24", "countdown", "")


@pytest.mark.parametrize(
    ("one", "text", "right", "steps"),
    [
        (EXPRESSION, "7+5=12;12*3=36;36-4=32", True, [True, True, True]),
        (EXPRESSION, " 32 ", True, []),  # terse
        (EXPRESSION, "33", False, []),
        (EXPRESSION, "7+5=13;13*3=36;36-4=32", True, [False, False, True]),  # right in the end, by luck
        (EXPRESSION, "7+5=12;12*3=36;36-4=33", False, [True, True, False]),
        (EXPRESSION, "7+5=12;12*5=60;60-28=32", True, [True, False, False]),  # 5 is used up, and 28 not given
        (EXPRESSION, "7+5=12;;36-4=32", True, [True, False, False]),
        (EXPRESSION, "7+5=12;12*3=", False, [True, False]),
        (EXPRESSION, "", False, []),
        (COUNTDOWN, "3*5=15;15+9=24", True, [True, True]),
        (COUNTDOWN, "5*3=15;9+15=24", True, [True, True]),
        (COUNTDOWN, "9*3=27;27-5=22", False, [True, True]),
        (COUNTDOWN, "9+15=24", False, [False]),
        (COUNTDOWN, "24", False, []),  # the result is given, its working is asked for
    ],
)
def test_responses_are_judged_line_by_line(one: Problem, text: str, right: bool, steps: list[bool]) -> None:
    assert one.right(text) is right
    assert one.steps(text) == steps
    assert one.worked(text) is (right and bool(steps) and all(steps))


def test_the_score_asks_for_the_result_whatever_the_form() -> None:
    task = WorkingTask()
    prompts = task.prompts("validation", 40)
    assert task.score(prompts, prompts.answers).tolist() == [1.0] * 40
    other = WorkingTask(terse=0).prompts("validation", 40)
    assert not torch.equal(prompts.answers, other.answers)
    ended = torch.where(prompts.tokens == MASK_ID, END_ID, prompts.answers)
    assert task.score(prompts, ended).tolist() == [0.0] * 40


def test_drills_are_lines_whose_results_are_masked() -> None:
    task = WorkingTask(drills=0.6)
    examples, count = task.examples("train"), 0
    for index in range(300):
        tokens, maskable = examples[index]
        shown = task.show(torch.where(maskable, torch.tensor(MASK_ID), tokens))
        if re.match(r"\d+[-+*]\d+=\d+;", task.show(tokens)) is None:
            continue
        count += 1
        assert tokens.shape == maskable.shape == (task.length,)
        assert re.fullmatch(r"(\d+[-+*]\d+=□+;)+", shown)
        assert all(eval(line.replace("=", "==")) for line in task.show(tokens).rstrip(";").split(";"))
    assert abs(count / 300 - 0.6) < 5 * (0.24 / 300) ** 0.5
    held_out = WorkingTask().examples("validation")
    assert all(torch.equal(task.examples("validation")[index][0], held_out[index][0]) for index in range(50))


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="terse must be a share"):
        WorkingTask(terse=1.5)
    with pytest.raises(ValueError, match="drills must be a share"):
        WorkingTask(drills=-0.1)
    with pytest.raises(ValueError, match="choose from expression, story, countdown"):
        WorkingTask(kinds="sums")
