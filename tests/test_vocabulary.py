"""Tokenizers that are published as Python code, in layouts as published, file by file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

import unmask
from unmask.errors import AdapterError
from unmask.language import LanguageModel
from unmask.models.pretrained.vocabulary import tokenizer_of

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|beginoftext|>", "<|mask|>")
MERGES = ("Ġ t", "h e", "Ġt he", "1 2")
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
VOCABULARY = {text: number for number, text in enumerate([*LETTERS, *(pair.replace(" ", "") for pair in MERGES)])}
FIRST = len(VOCABULARY)
END, MASK = FIRST, FIRST + 4
SIZE = 280  # Dream's table of embeddings is longer than its vocabulary, too
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def put(path: Path, content: object) -> None:
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))


def write_dream(folder: Path, mark: Path, base: str = "PreTrainedTokenizer") -> Path:
    """Writes an untrained Dream with every file that the published ones have."""
    folder.mkdir(parents=True)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    sizes |= {"num_key_value_heads": 2, "vocab_size": SIZE, "max_position_embeddings": 128}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen2ForCausalLM(Qwen2Config(**sizes)).save_pretrained(folder, max_shard_size="40KB")
    code = f"open({str(mark)!r}, 'w').close()\nfrom transformers import *\n"
    put(folder / "tokenization_dream.py", f"{code}class DreamTokenizer({base}):\n    pass\n")
    for name in ("configuration_dream", "modeling_dream", "generation_utils"):
        put(folder / f"{name}.py", code)
    ends = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END, "mask_token_id": MASK}
    config = {
        "architectures": ["DreamModel"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_window_layers": 2,
        "model_type": "Dream",
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
    }
    put(folder / "config.json", {**config, **sizes, **ends})
    put(folder / "generation_config.json", {"_from_model_config": True, **ends, "transformers_version": "4.46.2"})
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {FIRST + index: {"content": text, **flags, "special": True} for index, text in enumerate(SPECIAL)}
    named = {"bos_token": "<|beginoftext|>", "eos_token": END_TEXT, "mask_token": "<|mask|>", "pad_token": END_TEXT}
    tokenizer = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL[1:]),
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        **named,
        "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 131072,
        "split_special_tokens": False,
        "tokenizer_class": "DreamTokenizer",
        "unk_token": None,
    }
    put(folder / "tokenizer_config.json", tokenizer)
    put(folder / "added_tokens.json", {text: FIRST + index for index, text in enumerate(SPECIAL)})
    whole = {name: {"content": text, **flags} for name, text in named.items()}
    put(folder / "special_tokens_map.json", {"additional_special_tokens": list(SPECIAL[1:]), **whole})
    put(folder / "vocab.json", VOCABULARY)
    put(folder / "merges.txt", "#version: 0.2\n" + "".join(f"{pair}\n" for pair in MERGES))
    return folder


END_TEXT = SPECIAL[0]


@pytest.fixture
def mark(tmp_path):
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "code of a checkpoint was run"


def test_a_dream_as_published(tmp_path, mark):
    folder = write_dream(tmp_path / "dream", mark)
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    model = unmask.load(folder)
    assert isinstance(model, LanguageModel)
    assert (model.mask_id, model.end_ids) == (MASK, (END, FIRST + 2))
    # Qwen2 splits numbers into digits although there is a merge for 12, where GPT-2's tokenizer would not.
    assert model.encode(["the 12 the"]) == [
        [VOCABULARY[text] for text in ("t", "he", "Ġ", "1", "2", "Ġthe")],
    ]
    (shown,) = model.encode([[{"role": "user", "content": "he"}]])
    assert shown[:1] == [FIRST + 1]
    assert FIRST + 2 in shown
    text = "naïve ½ the\n  12<|im_end|>"
    assert model.decode(model.encode([text])[0], special=True) == text
    (answer,) = model.generate("the", rule="topk:k=2", max_new_tokens=4)
    assert all(token != MASK for token in answer.tokens)
    assert model.infill("the [MASK:2] the", rule="all")[0].new_tokens == 2


@pytest.mark.parametrize("base", ["Qwen2Tokenizer", "transformers.Qwen2Tokenizer", "PreTrainedTokenizer"])
def test_the_class_that_python_code_is_derived_from_is_looked_up(base, tmp_path, mark):
    folder = write_dream(tmp_path / "dream", mark, base)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenization_dream.py").rename(folder / "tokenization_other.py")
    code = (folder / "tokenization_other.py").read_text().replace("DreamTokenizer", "OtherTokenizer")
    put(folder / "tokenization_other.py", code)
    said |= {"tokenizer_class": "OtherTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_other.OtherTokenizer"]}}
    put(folder / "tokenizer_config.json", said)
    config = json.loads((folder / "config.json").read_text())
    put(folder / "config.json", {**config, "model_type": "unheard-of"})
    if base == "PreTrainedTokenizer":
        with pytest.raises(AdapterError, match="OtherTokenizer, which is Python code and is never run"):
            tokenizer_of(folder)
    else:
        assert tokenizer_of(folder)("12", add_special_tokens=False)["input_ids"] == [VOCABULARY["1"], VOCABULARY["2"]]


def test_other_vocabularies_published_as_python(tmp_path, mark):
    put(tmp_path / "vocab.txt", "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##n"]))
    put(tmp_path / "config.json", {"model_type": "bert"})
    said = {"tokenizer_class": "MyTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_mine.MyTokenizer", None]}}
    put(tmp_path / "tokenizer_config.json", {**said, "mask_token": "[MASK]"})
    put(tmp_path / "tokenization_mine.py", f"open({str(mark)!r}, 'w')\nclass MyTokenizer(Unheard): pass\n")
    found = tokenizer_of(tmp_path)
    assert isinstance(found, BertTokenizer)
    assert found("then")["input_ids"] == [2, 5, 6, 3]
    found.save_pretrained(tmp_path)  # with it comes tokenizer.json, which needs no class
    put(tmp_path / "tokenizer_config.json", {**said, "mask_token": "[MASK]"})
    again = tokenizer_of(tmp_path)
    assert type(again) is PreTrainedTokenizerFast
    assert again("then")["input_ids"] == [2, 5, 6, 3]


def test_a_vocabulary_that_is_another_models_is_refused(tmp_path, mark):
    folder = write_dream(tmp_path / "dream", mark)
    put(folder / "vocab.json", {text: number for text, number in VOCABULARY.items() if number < FIRST - 1})
    put(folder / "merges.txt", "#version: 0.2\n")
    with pytest.raises(AdapterError, match=r"gives '<\|endoftext\|>' the id \d+, but tokenizer_config.json says"):
        unmask.load(folder)


def test_a_tokenizer_may_lie_alone(tmp_path, mark):
    folder = write_dream(tmp_path / "dream", mark)
    beside = tokenizer_of(folder)("1+2=")["input_ids"]
    (folder / "config.json").unlink()
    assert tokenizer_of(folder)("1+2=")["input_ids"] == beside
