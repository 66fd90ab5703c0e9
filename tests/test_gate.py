"""Folders whose code, if anything ran it, would leave a mark; and the one place where folders are read."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import torch
from layouts import write, write_text_model
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from typer.testing import CliRunner

import unmask
from unmask.cli import app
from unmask.errors import AdapterError
from unmask.evaluation.judge import load_judge
from unmask.language import LanguageModel
from unmask.models.pretrained.gate import REFUSED
from unmask.tasks.named import named_task

PACKAGE = Path(str(resources.files("unmask")))
CLASSES = ("AutoConfig", "AutoModel", "AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoProcessor")
OTHERS = ("AutoTokenizer", "AutoFeatureExtractor", "AutoImageProcessor", "AutoVideoProcessor")
PLANTED = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")


def plant(folder: Path, mark: Path) -> Path:
    """Names Python code in every file of a folder that can name some; whatever runs it writes `mark`."""
    code = f"open({str(mark)!r}, 'w').close()\nclass Planted: pass\n"
    (folder / "custom_generate").mkdir()
    for name in ("planted.py", "custom_generate/generate.py", "configuration_llada.py", "sitecustomize.py"):
        (folder / name).write_text(code)
    named: dict[str, object] = dict.fromkeys((*CLASSES, *OTHERS), "planted.Planted")
    named["AutoTokenizer"] = ["planted.Planted", "planted.Planted"]
    for file in PLANTED:
        path = folder / file
        if file == "tokenizer_config.json" and not path.exists():
            continue
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**content, "auto_map": named, "custom_generate": "custom_generate"}))
    return folder


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """Where planted code would leave its mark; asking a question fails at once."""

    def ask(*_):
        raise AssertionError("a question was asked")

    monkeypatch.setattr("builtins.input", ask)
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "code of a checkpoint was run"


def bert(folder: Path, **settings) -> Path:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = write_text_model(folder)
    (text / "config.json").unlink()
    size = len(json.loads((text / "tokenizer.json").read_text())["model"]["vocab"])
    BertForMaskedLM(BertConfig(vocab_size=size, **sizes, **settings)).save_pretrained(text)
    return text


def gpt2(folder: Path) -> Path:
    text = write_text_model(folder)
    size = len(json.loads((text / "tokenizer.json").read_text())["model"]["vocab"])
    GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=16, n_layer=1, n_head=2)).save_pretrained(text)
    return text


@pytest.mark.parametrize("make", [write_text_model, bert])
def test_language_models_load_without_their_code(make, tmp_path, mark):
    model = unmask.load(plant(make(tmp_path / "model"), mark))
    assert isinstance(model, LanguageModel)
    (answer,) = model.generate("1+1=", rule="all", max_new_tokens=2)
    assert answer.new_tokens <= 2


def test_judges_load_without_their_code(tmp_path, mark):
    task = named_task("arithmetic")
    judge = load_judge(plant(gpt2(tmp_path / "model"), mark), task)
    assert callable(judge)


def test_dreams_without_a_tokenizer_load_without_their_code(tmp_path, mark):
    assert unmask.load(plant(write(tmp_path / "model", "dream", shards=2), mark)).mask_id == 39


def test_a_kind_that_only_its_code_knows_is_refused(tmp_path, mark):
    folder = plant(bert(tmp_path / "model"), mark)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert2"}))
    with pytest.raises(AdapterError, match=r"'bert2'.*own Python files, which are never run"):
        unmask.load(folder)


def test_a_tokenizer_that_only_its_code_knows_is_refused(tmp_path, mark):
    folder = plant(write_text_model(tmp_path / "model"), mark)
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "Planted"}))
    with pytest.raises(AdapterError, match="tokenizer"):
        unmask.load(folder)


def test_kernels_and_other_files_that_a_configuration_names_are_passed_over(tmp_path, mark):
    folder = bert(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"attn_implementation": "somebody/kernel", "transformers_weights": "adapter_model.bin"}
    (folder / "config.json").write_text(json.dumps(config))
    model = unmask.load(folder)
    assert isinstance(model, LanguageModel)
    assert model.network.model.config._attn_implementation in ("sdpa", "eager")  # pyright: ignore


class Pickled:
    """Whatever unpickles it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_are_not_read(tmp_path, mark):
    folder = write_text_model(tmp_path / "model")
    bad = pickle.dumps(Pickled(mark))
    (folder / "pytorch_model.bin").write_bytes(bad)
    assert unmask.load(folder).mask_id is not None  # the safetensors beside it are
    (folder / "model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"no model\.safetensors"):
        unmask.load(folder)
    torch.save({"a": Pickled(mark)}, folder / "pytorch_model.bin")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "pytorch_model.bin"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AdapterError, match=r"pytorch_model\.bin.*not a safetensors file"):
        unmask.load(folder)
    index["weight_map"] = {"model.embed_tokens.weight": "../model.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(AdapterError, match="of this folder"):
        unmask.load(folder)


def test_distributed_checkpoints_are_refused(tmp_path):
    folder = write_text_model(tmp_path / "model")
    shutil.copy(folder / "model.safetensors", folder / "shard-00001-model-00001-of-00001.safetensors")
    with pytest.raises(AdapterError, match="written by several processes"):
        unmask.load(folder)


def test_kernels_of_the_hub_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"attn_implementation='a/b' is not possible here: kernels are not downloaded"):
        unmask.load(write(tmp_path, "llada"), attn_implementation="a/b")


def test_adapters_are_refused(tmp_path):
    folder = write_text_model(tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../other"}))
    with pytest.raises(AdapterError, match="holds an adapter"):
        unmask.load(folder)


@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"local_files_only"}))  # which `load` keeps for the hub
def test_options_that_open_the_gate_are_refused_by_name(name, tmp_path):
    folder = write(tmp_path, "llada")
    fine, _ = REFUSED[name]
    for value in fine:
        assert unmask.load(folder, **{name: value}).mask_id == 39  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=f"{name}='other' is not possible here"):
        unmask.load(folder, **{name: "other"})  # pyright: ignore[reportArgumentType]


def test_commands_ask_nothing_and_swallow_no_prompt(tmp_path, mark):
    folder = plant(Path(shutil.copytree(PACKAGE / "data" / "models" / "chat", tmp_path / "model")), mark)
    command = [sys.executable, "-m", "unmask", "chat", str(folder)]
    talk = subprocess.run(command, input="y\n9+4=\n8+8=\n", capture_output=True, text=True, check=False)
    assert talk.returncode == 0, talk.stderr
    assert talk.stdout.count(" evaluation") == 3
    assert "16" in talk.stdout
    assert "custom code" not in talk.stdout + talk.stderr
    asked = CliRunner().invoke(app, ["generate", str(folder), "--input", "-", "--json"], input='"y"\n"8+8="\n')
    assert asked.exit_code == 0, asked.output
    assert asked.stdout.startswith("[")
    assert [one["text"] for one in json.loads(asked.stdout)][1] == "16"
    assert os.listdir(tmp_path) == ["model"]


READERS = {"from_pretrained", "get_class_from_dynamic_module", "load_custom_generate", "load_dataset", "pipeline"}


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield node, node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def test_folders_are_read_in_one_place():
    seen = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        place = path.relative_to(PACKAGE).as_posix()
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        if path.name != "gate.py":
            assert not names & READERS, f"{place} reads a folder; that is for unmask/models/pretrained/gate.py"
        for node, name in calls(tree):
            given = {word.arg: word.value for word in node.keywords if word.arg}
            said = {key: value.value for key, value in given.items() if isinstance(value, ast.Constant)}
            if name == "from_pretrained":
                seen += 1
                assert said.get("trust_remote_code", True) is False, place
                assert said.get("local_files_only", False) is True, place
            if isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                owner = node.func.value.id
                assert owner not in ("pickle", "joblib", "dill", "cloudpickle"), f"{place} unpickles"
                if (owner, name) == ("torch", "load"):
                    assert said.get("weights_only", False) is True, place
                if (owner, name) in (("np", "load"), ("numpy", "load")) and "allow_pickle" in given:
                    assert said.get("allow_pickle", True) is False, place
    assert seen >= 2


def test_the_device_is_honoured_beside_other_options(tmp_path):
    for folder in (write(tmp_path / "llada", "llada"), bert(tmp_path / "bert")):
        assert unmask.load(folder, device="meta", attn_implementation="eager").device.type == "meta"
        with pytest.raises(ValueError, match="device='meta' and device_map both say where"):
            unmask.load(folder, device="meta", device_map="cpu")


def test_weights_of_another_shape_are_named_with_both_shapes(tmp_path):
    for layout in ("llada", "dream"):
        folder = write(tmp_path / layout, layout, vocab_size=50, embedding_size="absent")
        with pytest.raises(AdapterError, match=r"model\.embed_tokens\.weight has the shape 40 × 32 in the files"):
            unmask.load(folder)
    folder = bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 25}))
    with pytest.raises(AdapterError, match=r"bias has the shape 24 in the files, but 25 by config\.json; "):
        unmask.load(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_hidden_layers", 10**6), ("vocab_size", 10**9), ("hidden_size", 10**6), ("max_position_embeddings", 10**11)],
)
def test_a_configuration_far_larger_than_the_files_is_refused_before_it_is_built(setting, value, tmp_path):
    folder = bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, setting: value}))
    with pytest.raises(AdapterError, match=r"config\.json (says|describes).*the files hold"):
        unmask.load(folder)


@pytest.mark.parametrize(("layout", "setting"), [("llada", "n_layers"), ("dream", "num_hidden_layers")])
def test_layers_without_number_are_refused_before_they_are_listed(layout, setting, tmp_path):
    with pytest.raises(AdapterError, match=rf"config\.json says {setting} = 2147483648, but the files hold"):
        unmask.load(write(tmp_path, layout, **{setting: 2**31}))


def test_a_damaged_file_of_weights_is_named(tmp_path):
    folder = write(tmp_path, "dream", shards=2)
    path = folder / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(AdapterError, match=r"model-00002-of-00002\.safetensors is not a complete safetensors file"):
        unmask.load(folder)
    path.unlink()
    with pytest.raises(AdapterError, match=r"lacks model-00002-of-00002\.safetensors"):
        unmask.load(folder)


def test_settings_that_do_not_go_together_are_refused_at_loading(tmp_path):
    folder = bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "chunk_size_feed_forward": 3}))
    with pytest.raises(AdapterError, match="BertForMaskedLM cannot be evaluated"):
        unmask.load(folder)
