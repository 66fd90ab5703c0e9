"""The benchmark of published loops, on loops written here: a right one passes, wrong ones are caught."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import peers
from unmask.oracles import random_table

LOOP = '''
import torch

@torch.no_grad()
def generate(model, prompt, steps, gen_length, block_length, temperature, remasking, mask_id):
    """One position at a time, in the place of LLaDA's loop: ranks by {rank}."""
    x = torch.full((len(prompt), gen_length), mask_id)
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
}
SAMPLES = 2000


def case(folder: Path, rank: str, number: int = 0) -> peers.Case:
    (folder / "generate.py").write_text(LOOP.replace("{rank}", RANKS[rank]))
    return peers.llada(folder)[number]


@pytest.mark.parametrize("number", [0, 1])
def test_a_right_loop_is_as_near_its_claim_as_chance_allows(tmp_path: Path, number: int):
    """The limit is what one right loop in a thousand exceeds: five times that, and the seed is fixed."""
    found = peers.measured(case(tmp_path, "right", number), SAMPLES, alone=False)
    assert found["batch"] < found["limit"]
    assert found["chance"] < found["limit"] < 1.5 * found["chance"]
    assert found["nfe"] == peers.LENGTH // (number + 1)


def test_a_loop_that_ranks_by_drawn_tokens_is_caught(tmp_path: Path):
    found = peers.measured(case(tmp_path, "by draws"), SAMPLES, alone=False)
    assert found["batch"] > 3 * found["limit"]


def test_a_loop_whose_sequences_are_ranked_by_their_place_in_the_batch_is_right_alone_only(tmp_path: Path):
    found = peers.measured(case(tmp_path, "by the batch"), 400)
    assert found["alone"] < found["limit"] < found["batch"]


def test_the_model_knows_the_conditionals_shifted_or_not():
    oracle = random_table(2, 3, seed=1)
    joint = oracle.weights.reshape(2, 2, 2)
    x = torch.tensor([[2, 1, 2]])
    truth = joint[:, 1].sum(-1) / joint[:, 1].sum()
    plain, shifted = peers.Answers(oracle, 3), peers.Answers(oracle, 3, shift=True)
    assert torch.allclose(plain(x).logits[0, 0].softmax(-1)[:2], truth)
    assert torch.equal(shifted(torch.tensor([[0, 2, 1, 2]])).logits[:, :-1], plain(x).logits)
    assert plain.seen == 2


def test_what_is_no_clone_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SystemExit, match=r"generate\.py is not there"):
        peers.llada(tmp_path)
    monkeypatch.setattr(sys, "argv", ["peers", "elsewhere=."])
    with pytest.raises(SystemExit):
        peers.main()


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
    report = {"llada": {**vars(about), "cases": [{**found, "alone": 0.3}, {**found, "alone": 0.15, "batch": 0.25}]}}
    first, second = peers.table(report).splitlines()[2:]
    assert "| **0.300** | – | 0.100 | 4.00 | 2.00 |" in first
    assert "| 0.150 | **0.250** |" in second
