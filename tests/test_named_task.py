from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from unmask.errors import DataError
from unmask.tasks.named import TASKS, named_task
from unmask.tasks.of_model import embedded_for
from unmask.tasks.task import Task


# Music's pieces are finite and its score is a likelihood; the tasks of models that others trained have two halves.
@pytest.mark.parametrize("name", sorted(set(TASKS) - {"music", "reactions", "antibodies"}))
def test_every_task_keeps_the_contract(name: str):
    task = named_task(name)
    assert isinstance(task, Task)
    assert task.name == name
    assert task.quality
    # Sudoku has the empty cell first, a language model's tokenizer its own order.
    assert task.mask_id == task.vocab_size - 1 or name in ("sudoku", "instructions", "working")
    copy = pickle.loads(pickle.dumps(task))
    for split in ("train", "validation", "test"):
        examples, again = task.examples(split), copy.examples(split)
        assert len(examples) >= 20
        assert len(examples) == (2**31 if split == "train" else len(again))
        for index in (0, 5, len(examples) - 1):
            tokens, maskable = examples[index]
            assert (tokens.shape, tokens.dtype, maskable.dtype) == ((task.length,), torch.int64, torch.bool)
            assert ((tokens >= 0) & (tokens < task.vocab_size) & (tokens != task.mask_id)).all()
            assert maskable.any()
            assert torch.equal(again[index][0], tokens)
            assert torch.equal(again[index][1], maskable)
        for outside in (len(examples), -len(examples) - 1):
            with pytest.raises(IndexError, match=str(len(examples))):
                examples[outside]
        prompts = task.prompts(split, 12)
        assert len(prompts) == 12
        assert torch.equal(copy.prompts(split, 8).tokens, prompts.tokens[:8])
        masked = prompts.tokens == task.mask_id
        assert masked.any(1).all()
        assert (prompts.answers != task.mask_id).all()
        assert torch.equal(prompts.tokens[~masked], prompts.answers[~masked])
        if "letters" not in task.quality:
            assert task.score(prompts, prompts.answers).tolist() == [1.0] * 12
        assert task.score(prompts, prompts.tokens).tolist() == [0.0] * 12
        assert isinstance(task.show(prompts.tokens[0]), str)
    with pytest.raises(ValueError, match="unknown split 'dev'; choose one of train, validation, test"):
        task.examples("dev")
    with pytest.raises(ValueError, match="limit must be a whole number >= 1, got 0"):
        task.prompts("test", 0)


def test_settings_may_be_text_and_none_is_not_given(tmp_path: Path):
    task = named_task("text", length="64", share="0.5", gaps=None, data=None)
    assert (task.length, getattr(task, "share", None)) == (64, 0.5)
    assert named_task("maze", kind="loops").length == 128
    assert named_task("maze", kind="loops", size="5", removed=1).length == 50
    assert named_task("text", share=0.5, span=8).length == 128


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("texts", {}, "unknown task 'texts'; choose one of .*text"),
        ("text", {"size": 3}, "size does not apply to the task text; it takes data, encoding, gaps, length"),
        ("text", {"length": "many"}, "length must be a whole number, got 'many'"),
        ("text", {"length": 2.5}, "length must be a whole number, got 2.5"),
        ("maze", {"size": 6.0}, "size must be a whole number, got 6.0"),
        ("maze", {"kind": "open"}, "unknown kind 'open'; choose one of tree, loops"),
        ("text", {"length": True}, "length must be a whole number, got True"),
        ("text", {"share": "half"}, "share must be a number, got 'half'"),
        ("text", {"gaps": "both"}, "unknown gaps 'both'; choose one of infill, free"),
        ("text", {"data": 3}, "data must be text, got 3"),
        ("text", {"length": "1"}, "length must be a whole number >= 2, got 1"),
    ],
)
def test_bad_names_and_settings_are_refused(name: str, settings: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        named_task(name, **settings)


def test_a_missing_file_is_an_error_of_the_data(tmp_path: Path):
    with pytest.raises(DataError, match=r"none\.txt"):
        named_task("text", data=tmp_path / "none.txt")


def test_a_task_has_the_embedded_model_of_its_name_or_the_one_trained_on_it():
    assert embedded_for("sudoku") == "sudoku"
    assert embedded_for("reactions") == "rxnmapper"
    with pytest.raises(ValueError, match="antibodies needs a model: one of sapiens-vh, sapiens-vl; give --model"):
        embedded_for("antibodies")
    with pytest.raises(ValueError, match="unknown task 'sudokuu'; choose one of"):
        embedded_for("sudokuu")
