"""Label smoothing: its floor of entropies, and undoing it."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import unmask
from unmask.cli.app import app
from unmask.denoiser import Query
from unmask.draws.categorical import marginals
from unmask.draws.smoothing import smoothed_entropy, smoothing_of, without_smoothing
from unmask.numerics.smoothing import entropy_floor
from unmask.oracles.table import TableDenoiser
from unmask.tasks.antibodies import AntibodyTask


@given(
    weights=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=9).filter(lambda found: sum(found) > 0.1),
    smoothing=st.floats(0.0, 0.95),
)
def test_undoing_gives_back_what_was_smoothed(weights: list[float], smoothing: float):
    p = torch.tensor([weights], dtype=torch.float64)
    p = p / p.sum()
    q = (1 - smoothing) * p + smoothing / p.shape[1]
    back = without_smoothing(q.log(), smoothing).softmax(-1)
    torch.testing.assert_close(back, p, rtol=0, atol=1e-12)
    single = without_smoothing(q.log().float(), smoothing)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.softmax(-1).double(), p, rtol=0, atol=1e-5)


def test_what_rounding_puts_below_the_smoothing_is_impossible_and_some_class_is_left():
    each = 0.1 / 4
    q = torch.tensor([[0.925, each - 1e-4, each, each + 1e-4], [0.25, 0.25, 0.25, 0.25]])
    logits = without_smoothing(q.log(), 0.1)
    assert logits[0, 1] == -torch.inf
    p = logits.exp()
    assert p[0, 0] == pytest.approx(1.0)
    assert p[0, 3] == pytest.approx(1e-4 / 0.9, rel=1e-2)
    assert p[1].tolist() == pytest.approx([0.25] * 4)
    almost = math.nextafter(1.0, 0.0)
    assert without_smoothing(torch.zeros(1, 5), almost).isfinite().any()
    assert without_smoothing(torch.full((1, 5), 3.0).index_fill_(1, torch.tensor([2]), -torch.inf), 0.2)[0, 2] < -100


def test_nothing_is_done_at_0():
    logits = torch.randn(3, 5)
    assert without_smoothing(logits, 0.0) is logits


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, 1.5, math.nan, math.inf, "0.1", True])
def test_no_such_smoothing(smoothing: object):
    with pytest.raises(ValueError, match=r"smoothing is the ε of label smoothing, a number in \[0, 1\)"):
        without_smoothing(torch.zeros(1, 3), smoothing)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"a number in \[0, 1\), such as 0.1, got"):
        unmask.load("sapiens-vl", smoothing=smoothing)  # pyright: ignore[reportArgumentType]


def test_models_that_are_not_of_the_transformers_library_refuse_it():
    with pytest.raises(ValueError, match="smoothing does not apply to"):
        unmask.load("maze", smoothing=0.1)


@pytest.mark.parametrize(("classes", "left_out"), [(25, 0), (25, 1), (50_000, 3), (2, 0)])
def test_the_entropy_of_a_smoothing_and_back(classes: int, left_out: int):
    for smoothing in (0.0, 1e-3, 0.1, 0.5):
        q = torch.full((classes,), smoothing / classes, dtype=torch.float64)
        q[0] += 1 - smoothing
        q = q[: classes - left_out] / q[: classes - left_out].sum()
        found = smoothed_entropy(smoothing, classes, left_out)
        assert found == pytest.approx(float(torch.special.entr(q).sum()), abs=1e-12)
        if smoothing > 0:
            assert smoothing_of(found, classes, left_out) == pytest.approx(smoothing, rel=1e-9)
    assert smoothing_of(0.0, classes, left_out) == pytest.approx(0.0, abs=1e-12)


class Smoothed:
    """An exact denoiser whose labels were smoothed."""

    def __init__(self, denoiser: TableDenoiser, smoothing: float) -> None:
        self.denoiser, self.smoothing = denoiser, smoothing
        self.vocab_size, self.mask_id = denoiser.vocab_size, denoiser.mask_id

    def __call__(self, query: Query):
        q = (1 - self.smoothing) * self.denoiser(query).softmax(-1) + self.smoothing / self.vocab_size
        return q.log()


def test_the_floor_tells_the_smoothing():
    joint = torch.zeros(3, 3, 3, dtype=torch.float64)
    for token in range(3):
        joint[token, token, token] = 1 / 3  # any token tells the others
    exact = TableDenoiser(joint)
    x = torch.arange(3).repeat(100).unsqueeze(-1).expand(-1, 3)
    floor = entropy_floor(Smoothed(exact, 0.2), x)
    assert floor.smoothing == pytest.approx(0.2, rel=1e-3)
    assert floor.entropy == pytest.approx(smoothed_entropy(0.2, exact.vocab_size, 1))
    assert "smoothing=0.2 undoes the smoothing" in str(floor)
    clear = entropy_floor(exact, x)
    assert clear.entropy == pytest.approx(0.0, abs=1e-9)
    assert "no label smoothing hides what the model is certain of" in str(clear)


def test_sapiens_is_certain_again():
    task = AntibodyTask("heavy")
    rows = [row[row != task.fill_id] for row in task.prompts("test", 4).tokens]
    rule = unmask.Rule(unmask.Entropy(), unmask.EntropyBound(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # lengths are evaluated together with and without
        before, after = (
            unmask.sample(
                unmask.load("sapiens-vh", smoothing=smoothing),
                rows,
                rule,
                seed=0,
                temperature=0.0,
                forbidden=task.special_ids,
            )
            for smoothing in (None, 0.1)
        )
    assert 1.5 * after.nfe.sum() < before.nfe.sum()


def test_undoing_happens_once_in_what_is_planned_and_drawn():
    model, plain = unmask.load("sapiens-vl", smoothing=0.1), unmask.load("sapiens-vl")
    network: Any = plain.network
    x = torch.tensor([[0, 5, 24, 7, 24, 9, 2]])
    with torch.no_grad():
        q = network.model(input_ids=x, attention_mask=torch.ones_like(x)).logits[0, [2, 4]].double().softmax(-1)
    p = ((q - 0.1 / 25) / 0.9).clamp(min=0)
    p[:, 24] = 0
    entropy = torch.special.entr(p / p.sum(-1, keepdim=True)).sum(-1)
    logits = model(Query.of(x, 24))
    torch.testing.assert_close(marginals(logits, [24]).entropy.double(), entropy, rtol=1e-4, atol=1e-5)
    assert (plain(Query.of(x, 24))[:, :24] > -torch.inf).all()


def test_the_command_sees_the_floor():
    found = []
    for more in ([], ["--smoothing", "0.1"]):
        done = CliRunner().invoke(app, ["doctor", "--model", "sapiens-vl", *more, "--json"])
        assert done.exit_code == 0, done.output
        found.append(json.loads(done.stdout))
    before, after = found
    assert before["entropy"] > 0.3
    assert "label smoothing of 0.0" in before["verdict"]
    assert after["entropy"] < 0.1
    assert "no label smoothing hides" in after["verdict"]
    done = CliRunner().invoke(app, ["doctor", "--smoothing", "0.1"])
    assert done.exit_code != 0
    assert "--smoothing goes with --model NAME" in done.output + str(done.exception)
