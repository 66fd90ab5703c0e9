"""What a user gets wrong in a training run is said before anything is computed, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

import torch
import yaml
from typer.testing import CliRunner

from unmask.cli import app
from unmask.errors import AdapterError, DataError
from unmask.evaluation.judge import load_judge
from unmask.models import registry as models
from unmask.models.networks.checkpoint import load_checkpoint
from unmask.models.networks.transformer import Transformer
from unmask.tasks import of_model
from unmask.tasks.named import named_task
from unmask.tasks.text import TextTask
from unmask.training import run
from unmask.training.config import TrainConfig, read_config
from unmask.training.networks import build_network, save_network

CONFIGS = Path(__file__).parent.parent / "configs"
TEXT = "to be or not to be, that is the question:\n"
TINY: dict[str, Any] = {
    "network": {"width": 8, "depth": 1, "heads": 1, "mlp": 8},
    "steps": 2,
    "batch_size": 2,
    "dtype": "float32",
    "device": "cpu",
    "evaluation": {"every": 2, "sequences": 2, "final": 2, "strata": 2},
    "samples": {"prompts": 0},
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 20)
    return path


def write(folder: Path, **given: Any) -> Path:
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump({**TINY, "out": str(folder / "run"), **given}))
    return path


def unmask(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stpes": 5}, r"given\.yaml: stpes: Extra inputs are not permitted, got 5; there are .*steps"),
        ({"network": {"widht": 8}}, r"network\.widht: Extra inputs are not permitted, got 8; there are .*width"),
        ({"network": {"width": 10, "heads": 3}}, "width 10 is not a multiple of heads 3"),
        ({"network": {"rows": 5}}, "length 16 is not a multiple of rows x channels = 5 x 1"),
        ({"network": {"time": True}, "objective": "causal"}, "a causal network is for a line"),
        ({"network": {"time": True, "rows": "two"}}, r"network\.rows: Input should be a valid integer, got 'two'"),
        ({"steps": 0, "lr": -1}, r"steps: Input should be greater than or equal to 1, got 0; lr: .*greater than 0"),
        ({"steps": None}, "steps: Input should be a valid integer"),
        ({"decay_steps": 3}, r"decay_steps \(3\) must not exceed steps \(2\)"),
        ({"batch_size": 3, "accumulate": 2}, "batch_size 3 is not a multiple of accumulate 2"),
        ({"schedule": "log-linear"}, "schedule: Input should be 'linear'"),
        ({"dtype": "float16"}, "dtype: Input should be 'float32' or 'bfloat16', got 'float16'"),
        ({"samples": {"rule": "best"}}, r"samples\.rule: unknown rule 'best'"),
        ({"task": {"name": "chess"}}, "unknown task 'chess'"),
        ({"task": {"lenght": 16}}, r"task\.name: Field required"),
        ({"task": {"name": "text", "lenght": 16}}, "lenght does not apply to the task text; it takes"),
        ({"task": {"name": "text", "length": 16, "data": "nowhere.txt"}}, "cannot read the text nowhere.txt"),
    ],
)
def test_a_bad_configuration_is_refused_before_any_compute(
    tmp_path: Path, text: Path, change: dict[str, Any], message: str
):
    given = {"task": {"name": "text", "length": 16, "data": str(text)}, **change}
    with pytest.raises(ValueError, match=message):
        unmask("train", str(write(tmp_path, **given)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not hold any text"),
        (b"\n\n", "does not hold any text"),
        (b"to be\nor n\xff\n", r"is not UTF-8 text: byte 0xff in line 2"),
        (TEXT.encode() * 2, "split has 4 tokens, fewer than one window of 16"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_before_any_compute(tmp_path: Path, content: bytes, message: str):
    data = tmp_path / "data.txt"
    data.write_bytes(content)
    with pytest.raises(DataError, match=message):
        unmask("train", str(write(tmp_path, task={"name": "text", "length": 16, "data": str(data)})))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("steps: [", "is not valid YAML"), ("- steps", "must hold keys and values"), ("", "must hold keys and values")],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, content: str, message: str):
    path = tmp_path / "given.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        unmask("train", str(path))
    with pytest.raises(ValueError, match=r"nowhere\.yaml: No such file"):
        unmask("train", str(tmp_path / "nowhere.yaml"))
    with pytest.raises(ValueError, match="puzzles: an option of the target sudoku only"):
        unmask("train", str(path), "--puzzles", "5")


def test_the_vocabulary_stays_with_the_model(tmp_path: Path, text: Path):
    settings = {"name": "text", "length": 16, "data": str(text)}
    path = write(tmp_path, task=settings, objective="causal")
    report = json.loads(unmask("train", str(path), "--json"))
    folder = tmp_path / "run" / "checkpoint"
    assert report["checkpoint"] == str(folder)
    assert report["steps_taken"] == report["steps"] == 2
    bits = (folder / "model.safetensors").read_bytes()
    assert "finished before: it has taken all of its 2 steps" in unmask("train", str(path))  # and nothing changes
    assert json.loads(unmask("train", str(path), "--json"))["steps_taken"] == 0
    assert (folder / "model.safetensors").read_bytes() == bits
    task = of_model.task_of(folder)
    assert isinstance(task, TextTask)
    assert task.vocabulary == "".join(sorted(set(TEXT)))
    judge = load_judge(folder, task)
    assert judge(task.examples("test")[0][0].unsqueeze(0)).shape == (1,)

    # Data with fewer characters has the same vocabulary; other characters do not fit.
    fewer = tmp_path / "fewer.txt"
    fewer.write_text("to be or not to be\n" * 40)
    smaller = of_model.task_of(folder, data=str(fewer), gaps="free")
    assert (smaller.vocab_size, smaller.mask_id) == (task.vocab_size, task.mask_id)
    assert bool((smaller.prompts("test", 1).tokens == task.mask_id).all())
    more = tmp_path / "more.txt"
    more.write_text("to be or not to be?\n" * 40)
    with pytest.raises(DataError, match=r"has characters outside the vocabulary of \d+: '\?' \(line 1\)"):
        of_model.task_of(folder, data=str(more))
    with pytest.raises(ValueError, match="size does not apply to the task text"):
        of_model.task_of(folder, size=6)

    # As many characters, but others: neither the run nor a judge takes them for the same.
    other = tmp_path / "other.txt"
    other.write_text((TEXT * 20).replace("q", "x"))
    strange = named_task("text", length=16, data=str(other))
    assert strange.vocab_size == task.vocab_size
    with pytest.raises(AdapterError, match="the judge must be trained on the same vocabulary"):
        load_judge(folder, strange)
    text.write_text(other.read_text())
    with pytest.raises(ValueError, match=r"holds another run \(vocabulary: "):
        unmask("train", str(path))

    about = json.loads((folder / "config.json").read_text())
    for task_said in (None, {"settings": {}}, {"name": "text"}):
        (folder / "config.json").write_text(json.dumps({**about, "task": task_said}))
        with pytest.raises(AdapterError, match="does not say which task the model was trained on"):
            of_model.task_of(folder)


def test_runs_made_before_the_vocabulary_was_kept_go_on(tmp_path: Path, text: Path):
    path = write(tmp_path, task={"name": "text", "length": 16, "data": str(text)}, steps=4)
    assert "finished before" not in unmask("train", str(path), "--steps", "4")
    remembered = tmp_path / "run" / "run.json"
    found = json.loads(remembered.read_text())
    del found["task"]["vocabulary"]
    remembered.write_text(json.dumps(found))
    unmask("train", str(path))


def test_a_masked_lm_says_its_task_too(tmp_path: Path, text: Path):
    bert = {"model_type": "bert", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    network = {"kind": "masked_lm", "config": {**bert, "num_attention_heads": 1}}
    settings = {"name": "text", "length": 16, "data": str(text)}
    unmask("train", str(write(tmp_path, task=settings, network=network)))
    folder = tmp_path / "run" / "checkpoint"
    task, denoiser = of_model.task_of(folder), models.load(folder)
    assert (task.vocab_size, task.mask_id) == (denoiser.vocab_size, denoiser.mask_id)
    assert (task.name, task.length) == ("text", 16)
    with pytest.raises(AdapterError, match="BertForMaskedLM, a masked model"):
        load_judge(folder, task)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_valid(path: Path):
    config = read_config(path)
    assert isinstance(config, TrainConfig)
    assert config.out == Path("runs") / path.stem


def test_the_timed_pair_differs_in_time_alone():
    timed, agnostic = (read_config(CONFIGS / f"text-{name}.yaml").recipe() for name in ("time", "agnostic"))
    assert timed["network"].pop("time") is True
    assert agnostic["network"].pop("time") is False
    assert timed == agnostic


def test_seeds_are_checked_by_the_command_too(tmp_path: Path, text: Path):
    path = write(tmp_path, task={"name": "text", "length": 16, "data": str(text)})
    with pytest.raises(ValueError, match="seed: Input should be greater than or equal to 0, got -1"):
        unmask("train", str(path), "--seed", "-1")


def saved(folder: Path, text: Path, length: int, **network: Any) -> Path:
    given = {**TINY["network"], **network}
    chosen = {"name": "text", "data": str(text), "length": length}
    config = TrainConfig(**{**TINY, "task": chosen, "network": given, "out": str(folder)})
    task = named_task("text", data=str(text), length=length)
    save_network(folder, build_network(config, task), config, task, {})
    return folder


def test_frequencies_start_at_those_of_the_training_split(tmp_path: Path, text: Path):
    made = load_checkpoint(saved(tmp_path / "made", text, 8, frequencies=True))
    assert isinstance(made, Transformer)
    task = named_task("text", data=str(text), length=8)
    assert isinstance(task, TextTask)
    whole = torch.bincount(task.tokens["train"].long(), minlength=task.vocab_size).double()
    found = made.frequency[: task.mask_id].detach().exp().double()
    torch.testing.assert_close(found, whole[: task.mask_id] / whole.sum(), atol=5e-3, rtol=0)
    assert bool((found > 0).all())
    again = load_checkpoint(saved(tmp_path / "again", text, 8, frequencies=True, start=str(tmp_path / "made")))
    assert torch.equal(again.frequency, made.frequency)  # pyright: ignore


def test_a_network_starts_from_another_also_of_shorter_sequences(tmp_path: Path, text: Path):
    start = saved(tmp_path / "start", text, 8, depth=2)
    old = load_checkpoint(start)
    again = load_checkpoint(saved(tmp_path / "again", text, 8, depth=2, start=str(start)))
    longer = load_checkpoint(saved(tmp_path / "longer", text, 12, depth=2, start=str(start)))
    for (name, weight), same, more in zip(old.named_parameters(), again.parameters(), longer.parameters(), strict=True):
        assert torch.equal(weight, same), name
        if name.endswith(".bias"):  # from 7 apart on one side to 7 on the other; now from 11 to 11
            assert torch.equal(more[4:-4], weight)
            assert torch.equal(more[:4], weight[:1].expand(4, -1))
            assert torch.equal(more[-4:], weight[-1:].expand(4, -1))
        else:
            assert torch.equal(weight, more), name


@pytest.mark.parametrize(
    ("length", "network", "message"),
    [
        (6, {}, "cannot be made one for 6"),
        (8, {"width": 16}, "has width 8 for 16"),
        (8, {"recurrent": True}, "has recurrent False for True"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    tmp_path: Path, text: Path, length: int, network: dict[str, Any], message: str
):
    start = saved(tmp_path / "start", text, 8)
    with pytest.raises(ValueError, match=message):
        saved(tmp_path / "other", text, length, start=str(start), **network)
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("q", "z") * 20)
    with pytest.raises(ValueError, match="the task has others"):
        saved(tmp_path / "other", other, 8, start=str(start))


def test_a_run_that_is_stopped_says_where_it_goes_on(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch):
    settings = {"name": "text", "length": 16, "data": str(text)}
    path = write(tmp_path, task=settings, steps=2, decay_steps=1, save_every=2)
    unmask("train", str(path))

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "train", stopped)
        result = CliRunner().invoke(app, ["train", str(path), "--steps", "4"])
    assert result.exit_code == 130
    assert "Going on from step 2 of 4." in result.stderr
    assert "goes on from step 2, the last one that was saved (--save-every is 2)" in " ".join(result.stderr.split())
