"""What the files of a checkpoint say about its mask and its ends, and what a user says instead."""

import json
from pathlib import Path

import pytest
import torch
from layouts import write, write_text_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import FlaubertConfig, FlaubertWithLMHeadModel, PreTrainedTokenizerFast, XLMConfig, XLMWithLMHeadModel
from typer.testing import CliRunner

import unmask
from unmask.cli import app
from unmask.errors import AdapterError
from unmask.integrations.lm_eval import UnmaskLM
from unmask.language import LanguageModel
from unmask.tasks.instructions import END_ID, MASK_ID, encode


def change(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    content |= changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


def load(folder: Path, **options) -> LanguageModel:
    model = unmask.load(folder, **options)
    assert isinstance(model, LanguageModel)
    return model


@pytest.fixture
def folder(tmp_path):
    return write_text_model(tmp_path / "model")


def silent(folder: Path) -> Path:
    """A folder in which nothing names the mask, as LLaDA's tokenizers and iLLaDA's files."""
    change(folder / "config.json", mask_token_id="absent")
    change(folder / "tokenizer_config.json", mask_token="absent")
    return folder


def test_ends_that_only_the_generation_configuration_names(folder):
    change(folder / "generation_config.json", eos_token_id=[5, END_ID, 7, 10**6])
    assert load(folder).end_ids == (5, 7, END_ID)
    change(folder / "generation_config.json", eos_token_id=9)
    assert load(folder).end_ids == (9, END_ID)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"cannot read .*generation_config\.json"):
        unmask.load(folder)


def test_a_mask_that_only_the_generation_configuration_names(folder):
    change(silent(folder) / "generation_config.json", mask_token_id=MASK_ID)
    model = load(folder)
    assert model.mask_id == MASK_ID
    assert model.infill("12+35=[MASK:2]", rule="all")[0].new_tokens == 2


def test_a_mask_that_nothing_names_is_given(folder):
    with pytest.raises(AdapterError, match=r"give its id with mask_id=\.\.\. \(--mask-id\)"):
        unmask.load(silent(folder))
    assert load(folder, mask_id=MASK_ID).mask_id == MASK_ID
    assert UnmaskLM(folder, "all", mask_id=MASK_ID).model.mask_id == MASK_ID
    for given in (-1, True, "5", 1.0):
        with pytest.raises(ValueError, match="mask_id must be the id of a token"):
            unmask.load(folder, mask_id=given)  # pyright: ignore[reportArgumentType]
    with pytest.raises(AdapterError, match="outside the vocabulary"):
        unmask.load(folder, mask_id=10**6)
    with pytest.raises(ValueError, match="mask_id does not apply"):
        unmask.load("sudoku", mask_id=3)


def test_a_given_mask_goes_before_a_named_one(tmp_path):
    assert unmask.load(write(tmp_path, "dream"), mask_id=7).mask_id == 7


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "-p", "1+1=", "--max-new-tokens", "2", "--json"),
        ("infill", "-t", "1+1=[MASK:2]", "--json"),
        ("chat", "--max-new-tokens", "2"),
        ("eval", "--tasks", "instructions", "--limit", "1", "--max-new-tokens", "2", "--json"),
    ],
)
def test_commands_take_the_id_of_the_mask(command, folder):
    options = [command[0], str(silent(folder)), *command[1:], "--rule", "all"]
    result = CliRunner().invoke(app, [*options, "--mask-id", str(MASK_ID)], input="1+1=\n")
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, options, input="1+1=\n")
    assert "--mask-id" in str(result.exception)


@pytest.mark.parametrize("mask_token", ["absent", "<|unk|>", "<|pad|>"])
def test_gaps_are_the_models_mask_whatever_the_tokenizer_calls_so(mask_token, folder):
    expected = load(folder).infill("12+[MASK:2]=4[MASK]", rule="all", seed=1)[0]
    change(folder / "tokenizer_config.json", mask_token=mask_token)
    found = load(folder).infill("12+[MASK:2]=4[MASK]", rule="all", seed=1)[0]
    assert (found.text, found.tokens, found.nfe) == (expected.text, expected.tokens, 1)
    assert found.new_tokens == 3


def test_a_gap_can_be_written_without_any_mask_in_the_vocabulary(folder):
    """The mask's id is behind the tokenizer's last: another special token stands for it while the text is encoded."""
    model = load(folder)
    model.tokenizer.mask_token = None  # pyright: ignore[reportOptionalMemberAccess]
    far = LanguageModel(model.network, model.vocab_size + 1, model.vocab_size, model.tokenizer, [END_ID], 64)
    from unmask.language.prompts import with_gaps

    tokens = with_gaps("12+[MASK:2]=47", far.tokenizer, far.mask_id).tokens
    assert tokens == (*encode("12+"), far.mask_id, far.mask_id, *encode("=47"))


@pytest.mark.parametrize(
    ("config", "kind"), [(FlaubertConfig, FlaubertWithLMHeadModel), (XLMConfig, XLMWithLMHeadModel)]
)
def test_a_default_of_the_class_is_not_believed(config, kind, tmp_path):
    words = ["<s>", "</s>", "<pad>", "<unk>", "<special0>", "<special1>", "le", "chat", "est", "sur", "un", "tapis"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    ends = [("<s>", 0), ("</s>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
        single="<s> $A </s>", special_tokens=ends
    )
    names = {"bos_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config(vocab_size=12, emb_dim=16, n_layers=1, n_heads=2)).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mask_token_id"] == 0
    assert unmask.load(tmp_path).mask_id == 5  # mask_index, where there is no tokenizer
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<special1>", **names)
    fast.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert model.mask_id == 5
    (filled,) = model.infill("le chat [MASK:2] un tapis", rule="topk:k=1")
    assert (filled.nfe, filled.new_tokens) == (2, 2)
    of = LanguageModel.of(model.network.model, fast)  # pyright: ignore[reportArgumentType]
    assert of.mask_id == 5


def test_a_model_in_memory_names_its_ends_and_takes_a_mask(folder):
    model = load(folder)
    inner = model.network.model  # pyright: ignore[reportAttributeAccessIssue]
    inner.generation_config.eos_token_id = [5, 7]  # pyright: ignore
    assert LanguageModel.of(inner, model.tokenizer).end_ids == (5, 7, END_ID)  # pyright: ignore
    with pytest.raises(ValueError, match="mask_id must be the id of a token"):
        LanguageModel.of(inner, model.tokenizer, mask_id="x")  # pyright: ignore
