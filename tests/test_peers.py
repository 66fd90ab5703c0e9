"""The benchmark of published loops, on loops written here: a right one passes, wrong ones are caught."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peer_clones import CLONES, RIGHT

from benchmarks.peers import __main__ as command
from benchmarks.peers.case import Case, borrowed_names, stand_in
from benchmarks.peers.enumerated import (
    DRAWN,
    Loop,
    Score,
    above,
    by_draws,
    by_entropy,
    by_margin,
    entropy,
    law_of,
    quota,
    within,
)
from benchmarks.peers.loops import bd3lms, llada, wino
from benchmarks.peers.measuring import chance, claimed, distance, measured
from benchmarks.peers.named import PEERS
from benchmarks.peers.oracle import LENGTH, SYMBOLS, Answers, the_table
from benchmarks.peers.page import costs_table, table
from unmask.oracles import random_table

LOOP = '''
import torch

@torch.no_grad()
def generate(model, prompt, steps, gen_length, block_length, temperature, remasking, mask_id):
    """One position at a time, in the place of LLaDA's loop: ranks by {rank}."""
    x = torch.cat([prompt, torch.full((len(prompt), gen_length), mask_id)], 1)
    for step in range(steps):
        p = model(x).logits.softmax(-1)
        drawn = p.flatten(0, 1).multinomial(1).view_as(x)
        rank = {rank}
        best = rank.masked_fill(x != mask_id, -1.0).topk(gen_length // steps).indices
        x.scatter_(1, best, drawn.gather(1, best))
    return x
'''
RANKS = {
    "right": "p.amax(-1)",
    "by draws": "p.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)",
    "by the batch": "p.amax(-1) + (torch.arange(len(x)).unsqueeze(-1) % 2) * drawn",
    "by mates": "p.amax(-1) + drawn * bool(p.amax(-1)[x == mask_id].amin() < 0.3334)",
}
SAMPLES = 2000


@pytest.fixture(autouse=True)
def names_of_modules() -> Iterator[None]:
    """Clones take names of modules, which other tests need."""
    with borrowed_names():
        yield


def case(folder: Path, rank: str, number: int = 0) -> Case:
    (folder / "generate.py").write_text(LOOP.replace("{rank}", RANKS[rank]))
    return llada.cases(folder)[number]


def clone(folder: Path, name: str) -> list[Case]:
    for path, text in CLONES[name].items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(RIGHT + text)
    return PEERS[name].cases(folder)


@pytest.mark.parametrize("number", [0, 1])
def test_a_right_loop_is_as_near_its_claim_as_chance_allows(tmp_path: Path, number: int):
    """The limit is what one right loop in a thousand exceeds: five times that, and the seed is fixed."""
    found = measured(case(tmp_path, "right", number), SAMPLES, alone=False)
    assert found["batch"] < found["limit"]
    assert found["mixed"] < found["limit"]
    assert found["instead"]["distance"] > found["instead"]["limit"]
    assert found["chance"] < found["limit"] < 1.5 * found["chance"]
    assert found["nfe"] == LENGTH // (number + 1)


@pytest.mark.parametrize("number", [0, 1])
def test_a_loop_that_ranks_by_drawn_tokens_is_caught_and_its_law_is_known(tmp_path: Path, number: int):
    found = measured(case(tmp_path, "by draws", number), SAMPLES, alone=False)
    assert found["batch"] > 3 * found["limit"]
    assert found["instead"]["distance"] < found["instead"]["limit"]


def test_a_loop_whose_sequences_are_ranked_by_their_place_in_the_batch_is_right_alone_only(tmp_path: Path):
    found = measured(case(tmp_path, "by the batch"), 400)
    assert found["alone"] < found["limit"] < found["batch"]


def test_a_loop_that_looks_at_other_sequences_is_right_among_its_kind_only(tmp_path: Path):
    found = measured(case(tmp_path, "by mates"), SAMPLES, alone=False)
    assert found["batch"] < found["limit"] < found["mixed"]


RIGHT_CASES = {
    "fast-dllm": [0],
    "dream": [1, 2],
    "dllm": [0, 4],
    "d2cache": [0],
    "rnd1": [0],
    "diffusers": [0],
    "uni-d2": [0],
    "info-gain": [0],
    "mdlm": [0, 1],
    "bd3lms": [0],
}


@pytest.mark.parametrize("name", RIGHT_CASES)
def test_a_right_loop_in_the_place_of_a_peers_is_right(tmp_path: Path, name: str):
    """So what is found of the peers is not due to the code that runs them."""
    cases = clone(tmp_path, name)
    for number in RIGHT_CASES[name]:
        one = cases[number]
        found = measured(one, 1000 if one.batched else 300, alone=not one.batched)
        assert all(found[way] < found["limit"] for way in ("alone", "batch", "mixed") if way in found), one.label


def test_what_wino_asks_beside_the_text_is_a_tokens_probability_given_the_rest(tmp_path: Path):
    (one,) = clone(tmp_path, "wino")
    model, law = Answers(the_table(), LENGTH), claimed(the_table(), "uniform")
    drawn = torch.cat([one.run(model, 1) for _ in range(250)])
    assert distance(drawn, law, SYMBOLS) < chance(law, 250)[1]


@pytest.mark.parametrize(
    ("rule", "score", "count"),
    [
        ("top1-entropy", by_entropy, quota(1, 1, 1, 1)),
        ("topk:k=2,proxy=margin", by_margin, quota(2, 2)),
        ("entropy-bound:gamma=0.5", by_entropy, within(0.5)),
        ("llada-quota:steps=4", by_draws, quota(1, 1, 1, 1)),
        ("llada-quota:steps=2", by_draws, quota(2, 2)),
    ],
)
def test_the_enumerated_law_is_the_exact_law_of_the_same_rule(rule: str, score: Score, count):
    oracle = the_table()
    assert torch.allclose(law_of(Loop("", score, count), Answers(oracle, LENGTH)), claimed(oracle, rule), atol=1e-12)


def test_subtracting_the_last_entropy_is_the_budget_itself_where_entropies_rise_only():
    falling = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1]], dtype=torch.float64)
    assert entropy(falling).tolist() == pytest.approx([0.693, 0.325, 0.325], abs=1e-3)
    counts = [[within(0.6, own)(p, p[:, 0], 0) for own in (False, True)] for p in (falling, falling.flip(0))]
    assert counts == [[2, 1], [2, 2]]
    assert [within(0.6, always=most)(falling, falling[:, 0], 0) for most in (0.0, 0.5, 0.8)] == [1, 2, 3]


def test_wino_without_a_second_look_writes_what_is_above_the_threshold(monkeypatch: pytest.MonkeyPatch):
    model = Answers(the_table(), LENGTH)
    whole = law_of(wino.Remasking(), model)
    assert whole.sum() == pytest.approx(1)
    monkeypatch.setattr(wino, "BACK", 0.0)
    plain = law_of(Loop(DRAWN, by_draws, above(wino.THRESHOLD)), model)
    assert torch.allclose(law_of(wino.Remasking(), model), plain, atol=1e-12)
    assert not torch.allclose(whole, plain, atol=1e-6)


def test_the_times_of_bd3lms_approach_the_grid():
    oracle = the_table()
    far = [
        float(
            (law_of(bd3lms.Grid(steps), Answers(oracle, LENGTH)) - claimed(oracle, f"ancestral:steps={steps}"))
            .abs()
            .sum()
        )
        for steps in (4, 12)
    ]
    assert far[0] > 3 * far[1] > 0


def test_the_model_knows_the_conditionals_shifted_or_not():
    oracle = random_table(2, 3, seed=1)
    joint = oracle.weights.reshape(2, 2, 2)
    x = torch.tensor([[2, 1, 2]])
    truth = joint[:, 1].sum(-1) / joint[:, 1].sum()
    plain, shifted, mixed = (Answers(oracle, 3, *options) for options in ((), (True,), (False, True)))
    assert torch.allclose(plain(x).logits[0, 0].softmax(-1)[:2], truth)
    assert torch.equal(shifted(torch.tensor([[0, 2, 1, 2]])).logits[:, :-1], plain(x).logits)
    assert plain.seen == 2
    both = mixed(torch.cat([mixed.prompt(2), x.repeat(2, 1)], 1)).logits[:, 1:].softmax(-1)
    assert torch.equal(both[0, 0, :2], torch.full((2,), 0.5, dtype=torch.float64))
    assert torch.allclose(both[1, 0, :2], truth)


def test_what_is_no_clone_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in PEERS:
        with pytest.raises(SystemExit, match="is not there: expected a clone"):
            PEERS[name].cases(tmp_path)
    with pytest.raises(SystemExit, match=r"generate\.py is not there"):
        llada.cases(tmp_path)
    for arguments in (["elsewhere=."], ["--only", "costs", "--json", "llada"]):
        monkeypatch.setattr(sys, "argv", ["peers", *arguments])
        with pytest.raises(SystemExit):
            command.main()


def test_the_version_of_a_package_is_its_own(tmp_path: Path):
    for name, number in (("another", "9.9"), ("diffusers", "1.2.3")):
        (tmp_path / f"{name}-{number}.dist-info").mkdir()
        (tmp_path / f"{name}-{number}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {number}\n")
    assert command.version(PEERS["diffusers"], tmp_path) == {"commit": "1.2.3", "date": "PyPI"}
    assert command.version(PEERS["llada"], tmp_path)["commit"] != "9.9"


def test_names_that_a_clone_takes_are_given_back(tmp_path: Path):
    before, inside = sys.modules["json"], sys.modules["json.decoder"]
    with borrowed_names():
        stand_in("json")
        stand_in("json.never", tmp_path)
        assert sys.modules["json"] is not before
    assert sys.modules["json"] is before
    assert sys.modules["json.decoder"] is inside
    assert "json.never" not in sys.modules


def test_costs_alone_keep_the_laws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    case(tmp_path, "right")
    monkeypatch.setattr(command, "costs", lambda case: {"1": 2.0})
    monkeypatch.setattr(command, "measured", lambda case, *options: {"label": case.label, "alone": 0.5})
    both = command.figures(PEERS["llada"], tmp_path, 100, None, {})
    monkeypatch.setattr(command, "costs", lambda case: {"1": 3.0})
    monkeypatch.setattr(command, "measured", lambda case, *options: {"label": case.label, "alone": 0.7})
    costs = command.figures(PEERS["llada"], tmp_path, 100, "costs", both)
    laws = command.figures(PEERS["llada"], tmp_path, 100, "laws", both)
    assert [(one["alone"], one["cost"]["1"]) for one in costs["cases"]] == [(0.5, 3.0)] * 3
    assert [(one["alone"], one["cost"]["1"]) for one in laws["cases"]] == [(0.7, 2.0)] * 3


def test_the_table_marks_what_is_farther_than_chance():
    found = {
        "label": "one",
        "rule": "uniform",
        "samples": 9,
        "nfe": 4.0,
        "chance": 0.1,
        "limit": 0.2,
        "cost": {"1": 2.0},
    }
    about = SimpleNamespace(repository="o/n", commit="abc", date="2026-01-01")
    instead = {"says": "does so", "distance": 0.05, "limit": 0.07}
    cases = [{**found, "alone": 0.3, "instead": instead}, {**found, "alone": 0.15, "batch": 0.25, "mixed": 0.2}]
    report = {"llada": {**vars(about), "cases": cases}}
    first, second = table(report).splitlines()[2:]
    assert "| **0.300** | – | – | 0.100 | 0.050: does so | 4.00 |" in first
    assert "| 0.150 | **0.250** | 0.200 |" in second
    assert costs_table(report).splitlines()[2].endswith("| one | 2.00 | – | – |")
