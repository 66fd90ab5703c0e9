"""Reactions and antibody chains, and the models that others trained on them."""

from __future__ import annotations

import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from unmask import load
from unmask.cli.app import app
from unmask.denoiser import Query
from unmask.errors import DataError
from unmask.evaluation.measures import measure_for
from unmask.evaluation.study import Study
from unmask.language import LanguageModel
from unmask.rules.named import named_rule
from unmask.rules.profile import load_profile
from unmask.tasks.antibodies import VOCABULARY, AntibodyTask, segments
from unmask.tasks.named import named_task
from unmask.tasks.of_model import task_of
from unmask.tasks.reactions import ReactionTask, read_reactions, well_formed
from unmask.tasks.task import Foreign, Task, own_lengths

SUZUKI = "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-c2ccncc2)cc1"
KINDS = [
    ("reactions", {"kind": "random"}),
    ("reactions", {"kind": "spans"}),
    ("reactions", {"kind": "product"}),
    ("reactions", {"kind": "reactants"}),
    ("antibodies", {"chain": "heavy", "kind": "random"}),
    ("antibodies", {"chain": "light", "kind": "spans"}),
]


@pytest.mark.parametrize(("name", "settings"), KINDS)
def test_the_tasks_keep_the_contract(name: str, settings: dict[str, str]):
    task = named_task(name, **settings)
    assert isinstance(task, Task)
    assert isinstance(task, Foreign)
    assert task.name == name
    assert task.fill_id in task.special_ids
    assert task.mask_id not in task.special_ids
    seen = []
    for split in ("validation", "test"):
        examples, prompts = task.examples(split), task.prompts(split, 40)
        assert torch.equal(named_task(name, **settings).prompts(split, 10).tokens, prompts.tokens[:10])
        masked = prompts.tokens == task.mask_id
        assert masked.any(1).all()
        assert torch.equal(prompts.tokens[~masked], prompts.answers[~masked])
        for number in range(40):
            tokens, maskable = examples[number]
            assert (tokens.shape, tokens.dtype) == ((task.length,), torch.int64)
            assert torch.equal(tokens, prompts.answers[number])
            assert not (masked[number] & ~maskable).any()
            assert set(tokens[~maskable].tolist()) <= set(task.special_ids)
        assert task.score(prompts, prompts.answers).tolist() == [1.0] * 40
        assert task.score(prompts, prompts.tokens).tolist() == [0.0] * 40
        assert "□" in task.show(prompts.tokens[0])
        seen.append({tuple(examples[number][0].tolist()) for number in range(len(examples))})
        assert len(seen[-1]) == len(examples) >= 200
    assert not seen[0] & seen[1]
    with pytest.raises(ValueError, match="unknown split 'train'; choose one of validation, test"):
        task.examples("train")


def language(name: str) -> Any:
    model = load(name)
    assert isinstance(model, LanguageModel)
    return model


def test_masks_are_where_the_kind_says():
    task = ReactionTask("random", share=0.25)
    prompts = task.prompts("test", 20)
    masked = (prompts.tokens == task.mask_id).sum(1)
    lengths = (~torch.isin(prompts.answers, torch.tensor(task.special_ids))).sum(1)
    assert masked.tolist() == [round(0.25 * length) for length in lengths.tolist()]
    for kind in ("product", "reactants"):
        prompts = ReactionTask(kind).prompts("test", 20)
        for prompt, answer in zip(prompts.tokens, prompts.answers, strict=True):
            before, _, after = task.show(answer).partition(">>")
            shown, _, rest = task.show(prompt).partition(">>")
            kept, hidden = ((shown, rest), (before, after)) if kind == "product" else ((rest, shown), (after, before))
            assert kept[0] == hidden[0]
            assert set(kept[1]) == {"□"}
    spans = AntibodyTask("heavy", "spans", share=0.3, span=7).prompts("test", 20).tokens == AntibodyTask.mask_id
    for row in spans.int().tolist():
        runs = [len(run) for run in "".join(map(str, row)).split("0") if run]
        assert set(runs) == {7}


def test_every_reaction_is_in_the_tokens_of_the_model():
    reactions, task, model = read_reactions(), ReactionTask(), language("rxnmapper")
    assert len(set(reactions)) == 521
    digest = hashlib.sha256("".join(f"{reaction}\n" for reaction in reactions).encode()).hexdigest()
    assert digest[:12] == "b63f6230c632"
    rows = [row for half in ("validation", "test") for row in task.rows[half]]
    tokenizer = model.tokenizer
    assert sorted(rows) == sorted(tokenizer(reactions)["input_ids"])
    assert (task.mask_id, task.fill_id, task.vocab_size) == (model.mask_id, tokenizer.pad_token_id, model.vocab_size)
    assert set(task.special_ids) | {task.mask_id} >= set(tokenizer.all_special_ids)
    assert not any(set(row[1:-1]) & set(task.special_ids) for row in rows)


def test_reactions_of_ones_own(tmp_path: Path):
    file = tmp_path / "mine.txt"
    file.write_text("\n".join([SUZUKI, "CCO>>CC=O", "CCN>>CC#N", "CO>>C=O", "CCCO>>CCC=O"]) + "\n\n")
    assert read_reactions(file)[0] == SUZUKI
    file.write_text("CCO>>CC=O\nCCO.CC=O\n")
    with pytest.raises(DataError, match=r"line 2: expected SMILES as reactants>>products: CCO\.CC=O"):
        read_reactions(file)
    file.write_text("[Xx]CO>>CC=O\n")
    with pytest.raises(DataError, match=r"line 1: '\[Xx\]' is not a token of the model"):
        read_reactions(file)
    file.write_text("hello\n")
    with pytest.raises(DataError, match="line 1: expected SMILES"):
        ReactionTask(data=str(file))
    with pytest.raises(DataError, match="no sequence of the validation half of reactions has at most 5 tokens"):
        ReactionTask(length=5)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (SUZUKI, True),
        ("CCO>>CC=O", True),
        ("CC(O>>CC=O", False),
        ("CC)(O>>CC=O", False),
        ("C1CCO>>CC=O", False),
        ("C1CC.C1O>>CC=O", False),  # a ring is closed in its own molecule
        ("C%12CC%12O>>CC=O", True),
        ("CCO.CC=O", False),
        ("CCO>>", False),
        ("C..CO>>CC=O", False),
        ("CC?[CLS]O>CC", False),
    ],
)
def test_what_is_well_formed(text: str, right: bool):
    assert well_formed(text) is right


def test_real_reactions_are_well_formed():
    assert all(map(well_formed, read_reactions()))


def test_chains_are_joined_of_germline_segments():
    known = segments()
    genes = {name for name in known if name[3] == "V"}
    for task, loci in ((AntibodyTask("heavy"), ("IGH",)), (AntibodyTask("light"), ("IGK", "IGL"))):
        halves: list[set[str]] = []
        for half in ("validation", "test"):
            joined = [task.show(torch.tensor(row)) for row in task.rows[half][:100]]
            found = [
                max((name for name in genes if one.startswith(known[name])), key=lambda v: len(known[v]))
                for one in joined
            ]
            assert {name[:3] for name in found} <= set(loci)
            assert all(
                any(one.endswith(known[name]) for name in known if name.startswith(v[:3] + "J"))
                for v, one in zip(found, joined, strict=True)
            )
            halves.append({name.partition("*")[0] for name in found})
        assert not halves[0] & halves[1]
    for name in ("sapiens-vh", "sapiens-vl"):
        model = language(name)
        assert model.tokenizer.convert_ids_to_tokens(range(model.vocab_size)) == list(VOCABULARY)
        assert (model.mask_id, model.tokenizer.pad_token_id) == (AntibodyTask.mask_id, AntibodyTask.fill_id)


class Watched:
    """Likes special tokens best, and remembers what it was shown."""

    def __init__(self, task: Any) -> None:
        self.task, self.vocab_size, self.mask_id = task, task.vocab_size, task.mask_id
        self.max_length = task.length

    def __call__(self, query: Query):
        assert not (query.valid & (query.x == self.task.fill_id)).any()
        logits = torch.zeros(int(query.where.sum()), self.vocab_size)
        logits[:, list(self.task.special_ids)] = 5.0
        return logits


def test_a_study_shows_no_filling_and_draws_no_special_token():
    task = AntibodyTask("light")
    prompts = task.prompts("test", 7)
    seen = []

    def judge(asked, tokens):
        assert asked.tokens.shape == tokens.shape
        seen.append(tokens)
        return {"first": tokens[:, 0].double()}

    outcome = Study(Watched(task), task, prompts, batch_size=4, judge=judge).run(named_rule("topk", k=9))
    tokens = torch.cat(seen)
    masked = prompts.tokens == task.mask_id
    assert torch.equal(tokens[~masked], prompts.answers[~masked])
    assert not torch.isin(tokens[masked], torch.tensor(task.special_ids)).any()
    assert outcome.measures["first"].tolist() == [[0.0] * 7]
    assert outcome.nfe[0].tolist() == [-(-int(count) // 9) for count in masked.sum(1)]


@pytest.mark.parametrize("name", ["rxnmapper", "sapiens-vh", "sapiens-vl"])
def test_models_of_others_come_with_licence_provenance_task_and_profile(name: str):
    folder = resources.files("unmask").joinpath("data/models", name)
    assert "Permission is hereby granted, free of charge" in folder.joinpath("LICENSE").read_text()
    assert "PyPI wheel" in folder.joinpath("SOURCE.txt").read_text()
    task, profile = task_of(name), load_profile(name)
    assert isinstance(task, Foreign)
    assert profile.measured >= 400
    assert profile.about["model"] == name
    weights = hashlib.sha256(folder.joinpath("model.safetensors").read_bytes()).hexdigest()
    assert profile.about["weights"] == weights[:12]


def test_the_commands_fill_in_a_reaction_and_measure_chains(tmp_path: Path):
    gap = "OB(O)c1ccccc1.Brc1ccncc1>>c1ccc(-[MASK:8])cc1"
    done = CliRunner().invoke(app, ["infill", "rxnmapper", "-t", gap, "--json"])
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(done.stdout)
    assert answer["text"] == SUZUKI
    done = CliRunner().invoke(app, ["profile", "sapiens-vl", "--contexts", "3", "--out", str(tmp_path), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["contexts"] == 3


def test_what_fills_up_is_neither_shown_nor_measured():
    task = ReactionTask(length=60)
    tokens = task.prompts("test", 3).answers
    rows, scored = own_lengths(task, tokens)
    assert [len(row) for row in rows] == [int((row != task.fill_id).sum()) for row in tokens]
    assert scored.shape == (3, max(map(len, rows)))
    assert [int(count) for count in scored.sum(1)] == [len(row) - 2 for row in rows]
    measure = measure_for(task, Watched(task))
    assert measure is not None
    figures = measure(tokens)
    assert figures["well_formed"].tolist() == [1.0] * 3
    special = len(task.special_ids)
    surprise = math.log(special * math.exp(5) + task.vocab_size - 1 - special)
    assert figures["nelbo"].tolist() == pytest.approx([surprise] * 3)
