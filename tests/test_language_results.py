"""The page on language models says what was measured."""

import json

import pytest

import unmask
from benchmarks.language import PAGE, RESULTS, tables
from benchmarks.pages import between
from unmask.language import LanguageModel
from unmask.tasks.instructions import InstructionTask

EB = "entropy-bound:gamma=0.05"
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


def test_the_embedded_model_answers_sums_that_it_was_not_trained_on():
    model = unmask.load("chat")
    assert isinstance(model, LanguageModel)
    asked = ["12+35=", "7*8=", "What is 9 plus 4?", [{"role": "user", "content": "What is 27 plus 82?"}]]
    assert [one.text for one in model.generate(asked, rule=EB, max_new_tokens=8)] == ["47", "56", "13", "109"]
    held_out = InstructionTask(kinds="sums").instructions("test", 200)
    answers = model.generate([one.prompt for one in held_out], rule=EB, max_new_tokens=8)
    assert sum(asked.right(one.text) for asked, one in zip(held_out, answers, strict=True)) >= 190


def test_the_embedded_model_fills_in():
    model = unmask.load("chat")
    assert isinstance(model, LanguageModel)
    (filled,) = model.infill("12+35=[MASK:2]<|endoftext|>", rule=EB)
    assert filled.text.startswith("12+35=47")


@pytest.mark.parametrize("mode", sorted({row["mode"] for row in SAVED["quality"]["rows"]}))
def test_eb_halves_the_evaluations_of_the_embedded_model_at_no_loss(mode):
    rows = {row["rule"]: row for row in SAVED["quality"]["rows"] if row["mode"] == mode}
    one, bound = rows["top1-entropy"], rows[EB]
    assert one["right"][0] >= 0.95
    assert bound["difference"][0] + bound["difference"][1] >= 0
    assert one["nfe_per_token"] >= 2 * bound["nfe_per_token"]
