"""The rule of users who name none: what it is for each kind of data and temperature, wherever it is named."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import unmask
from unmask.cli.app import app
from unmask.language import LanguageModel
from unmask.language.asked import asked_infill
from unmask.oracles import MarkovDenoiser, random_table
from unmask.oracles.law import exact_law
from unmask.rules.auto import LOSS, is_open
from unmask.rules.named import named_rule
from unmask.rules.profile import Line, Profile, load_profile
from unmask.rules.ranked import Rule
from unmask.rules.tempered import TemperedBound
from unmask.rules.usual import usual_rule


def budget(rule: object) -> TemperedBound:
    assert isinstance(rule, Rule)
    assert isinstance(rule.budget, TemperedBound)
    return rule.budget


@pytest.mark.parametrize("model", ["text", "sudoku", None])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_it_is_the_rule_that_it_says(model, temperature):
    found = unmask.default_rule(model, temperature, loss=0.02)
    said, _, expects = found.says.partition(": ")
    again = named_rule(said)
    assert repr(again.rule) == repr(found.rule)
    assert " %" in expects


def test_a_profile_tells_open_data_from_what_is_determined():
    for name in ("text", "sapiens-vh", "sapiens-vl"):
        assert is_open(load_profile(name)), name
    for name in ("sudoku", "maze", "maze-loops", "arithmetic", "rxnmapper", "chat", "working"):
        assert not is_open(load_profile(name)), name
    assert not is_open(Profile.empty(Line.of(9)))


def test_uncertain_tokens_are_drawn_together_where_data_are_open_only():
    for temperature in (0.0, 1.0):
        assert budget(unmask.default_rule("text", temperature).rule).share == LOSS
        assert budget(unmask.default_rule("text", temperature).rule).profile is not None
        closed = budget(unmask.default_rule("sudoku", temperature).rule)
        assert (closed.share, closed.temperature) == (0, temperature)
    drawn, cold = (budget(unmask.default_rule("sudoku", temperature).rule) for temperature in (1.0, 0.0))
    assert drawn.epsilon < cold.epsilon == LOSS
    assert drawn.ending < cold.ending


def test_without_a_profile_it_says_so():
    found = unmask.default_rule()
    assert "without a dependence profile" in found.says
    assert budget(found.rule).profile is None
    assert found.settings == {"loss": LOSS, "temperature": 1.0, "profile": "none"}
    assert "without" not in unmask.default_rule("text").says
    assert unmask.default_rule(load_profile("text")).says.startswith("tempered-bound")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_who_can_bear_no_loss_has_none(temperature):
    """It is then as good as one at a time, in the same order: exactly, on oracles."""
    oracle = random_table(3, 4, 6)
    law = exact_law(oracle, unmask.default_rule(None, 1.0, loss=0.0).rule, torch.full((4,), 3))
    assert law.kl == pytest.approx(0, abs=1e-9)
    one = exact_law(oracle, named_rule("top1-confidence").rule, torch.full((4,), 3), temperature=0.0)
    same = exact_law(oracle, unmask.default_rule(None, 0.0, loss=0.0).rule, torch.full((4,), 3), temperature=0.0)
    assert torch.equal(one.log_q, same.log_q)


@pytest.mark.parametrize("stay", [0.6, 0.8])
@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_on_chains_it_loses_no_more_than_it_says(stay, loss):
    """The prices are bounds there, but for the walk through what is known: the nearest known screen off the rest."""
    from tests.test_dependence_bound import measured

    oracle = MarkovDenoiser.lazy(2, stay)
    x = torch.full((7,), 2)
    law = exact_law(oracle, unmask.default_rule(measured(oracle, 7), 1.0, loss).rule, x)
    whole = -float((law.log_p.exp() * law.log_p).sum())
    assert law.kl <= loss * whole
    assert law.nfe_mean < 7


def test_the_temperature_is_that_of_the_draw_wherever_a_rule_is_named(model):
    assert usual_rule("auto", "chat", 0.0).settings["temperature"] == 0
    assert usual_rule("auto:temperature=0.5", "chat", 0.0).settings["temperature"] == 0.5
    assert budget(usual_rule("tempered-bound:gamma=0.1", "chat", 0.3).rule).temperature == 0.3
    prompt = [[3, 4, 5]]
    auto = model.generate(prompt, rule="auto", max_new_tokens=8, temperature=0.0)
    told = model.generate(prompt, rule=usual_rule("auto", None, 0.0).rule, max_new_tokens=8, temperature=0.0)
    assert auto[0].tokens == told[0].tokens
    assert auto[0].nfe == told[0].nfe


def test_a_command_says_what_was_chosen():
    done = CliRunner().invoke(app, ["infill", "-t", "three plus [MASK:2]", "--rule", "auto", "--json"])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.output)
    assert row["rule"] == f"auto:loss={LOSS},temperature=0.0,profile=chat"
    assert row["says"].startswith("tempered-bound:")


def test_a_server_takes_the_temperature_and_the_profile_of_the_model_that_is_asked(models):
    from unmask.serving.bodies import UnmaskBody
    from unmask.serving.named import rule_of

    for served in models:
        named = rule_of(
            UnmaskBody.model_validate({"model": served.name, "rule": "auto", "temperature": 0.7}), served, models
        )
        assert named.settings["temperature"] == 0.7
        assert named.settings["profile"] == served.folder


@pytest.mark.parametrize("loss", [-0.1, 1.5])
def test_a_loss_out_of_range_is_refused(loss):
    with pytest.raises(ValueError, match=r"loss is a probability in \[0, 1\]"):
        unmask.default_rule(None, 1.0, loss)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whoever_names_no_rule_gets_it_for_the_model_and_the_temperature(temperature):
    model = unmask.load("chat")
    assert isinstance(model, LanguageModel)
    usual = unmask.default_rule(model, temperature)
    assert usual.settings["profile"] == "chat"
    asked = {"max_new_tokens": 6, "temperature": temperature, "seed": 3}
    named = model.generate(["12+35="], rule=usual.rule, **asked)[0]
    assert model.generate(["12+35="], **asked)[0].tokens == named.tokens
    assert model.generate(["12+35="], rule="auto", **asked)[0].nfe == named.nfe
    for rule in (None, "auto", "auto:loss=0.01"):
        (asked_one,) = asked_infill(model, ["12+[MASK:2]=47"], rule=rule, temperature=temperature)
        assert repr(asked_one.settings.rule) == repr(usual.rule)
