"""The page on language models says what was measured."""

import json

import pytest

import unmask
from benchmarks.language import RESULTS
from unmask.language import LanguageModel
from unmask.tasks.instructions import InstructionTask

EB = "entropy-bound:gamma=0.05"
SAVED = json.loads(RESULTS.read_text())


def test_a_step_takes_little_beside_the_network():
    """A hundredth of the time, and a hundredth of the logits' memory."""
    step = SAVED["step"]
    assert step["share_outside"] <= 0.01
    assert [row["masks"] for row in step["memory"]] == [64, 256, 512]
    assert all(row["peak"] <= 1.01 * row["logits"] for row in step["memory"])


def test_answers_in_float32_do_not_depend_on_their_batch():
    same = {name: count for name, count in SAVED["invariance"].items() if name.startswith("float32")}
    assert len(same) == 4
    assert set(same.values()) == {SAVED["invariance"]["prompts"]}


def test_caches_that_are_exact_do_not_drift_and_the_others_save_time():
    for name, report in SAVED["caches"].items():
        exact = [row for row in report["rows"] if row["cache"] == "block-causal" or row["refresh"] == 1]
        assert len(exact) == (3 if name == "random" else 2)
        assert all(row["max_gap"] < 1e-5 for row in exact)
    others = [row for row in SAVED["caches"]["random"]["rows"] if row["refresh"] != 1]
    assert len(others) == 7
    assert all(row["time"] < 0.8 for row in others)


def test_the_embedded_model_answers_sums_that_it_was_not_trained_on():
    model = unmask.load("chat")
    assert isinstance(model, LanguageModel)
    asked = ["12+35=", "7*8=", "What is 9 plus 4?", [{"role": "user", "content": "What is 27 plus 82?"}]]
    assert [one.text for one in model.generate(asked, rule=EB, max_new_tokens=8)] == ["47", "56", "13", "109"]
    held_out = InstructionTask(kinds="sums").instructions("test", 200)
    answers = model.generate([one.prompt for one in held_out], rule=EB, max_new_tokens=8)
    # The page says all of 400. Rounding may decide a token or two otherwise on another machine.
    assert sum(asked.right(one.text) for asked, one in zip(held_out, answers, strict=True)) >= 198


def test_the_embedded_model_fills_in():
    model = unmask.load("chat")
    assert isinstance(model, LanguageModel)
    (filled,) = model.infill("12+35=[MASK:2]<|endoftext|>", rule=EB)
    assert filled.text.startswith("12+35=47")


@pytest.mark.parametrize("mode", sorted({row["mode"] for row in SAVED["quality"]["rows"]}))
def test_eb_takes_a_third_of_the_evaluations_of_the_embedded_model_at_no_loss(mode):
    rows = {row["rule"]: row for row in SAVED["quality"]["rows"] if row["mode"] == mode}
    one, bound = rows["top1-entropy"], rows[EB]
    assert one["right"][0] == bound["right"][0] == 1
    assert one["nfe_per_token"] >= 3 * bound["nfe_per_token"]
