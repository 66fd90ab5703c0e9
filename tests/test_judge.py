"""Judges: probabilities over all samples sum to one, foreign models are read by the character, misfits are refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from unmask.errors import AdapterError
from unmask.evaluation.judge import load_judge
from unmask.models.networks.checkpoint import save_checkpoint
from unmask.models.networks.transformer import Transformer, TransformerConfig
from unmask.models.pretrained.hf import quiet
from unmask.tasks.text import TextTask

SIZES: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "mlp": 24}


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> TextTask:
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("to be or not to be, that is the question:\n" * 20)
    return TextTask(path, length=12)


def own(folder: Path, length: int = 4, vocab_size: int = 4, mask_id: int = 3, causal: bool = True) -> Path:
    torch.manual_seed(3)
    config = TransformerConfig(vocab_size, mask_id, length, causal=causal, **SIZES)
    save_checkpoint(folder, Transformer(config), objective="causal" if causal else "masked")
    return folder


def foreign(folder: Path, task: TextTask, model: Any, begin: str | None = "<s>", known: str | None = None) -> Path:
    """A model with a subword tokenizer trained on the text of the task."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")  # pyright: ignore
    trainer = trainers.BpeTrainer(
        vocab_size=60,
        special_tokens=["<unk>", "<s>"],
        show_progress=False,
        initial_alphabet=list(known or task.vocabulary),
        limit_alphabet=len(known or task.vocabulary),
    )
    tokenizer.train_from_iterator([known or task.show(task.tokens["train"])], trainer)
    with quiet():
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=begin, unk_token="<unk>").save_pretrained(folder)
    return folder


def gpt2(**changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(5)
    settings = {
        "vocab_size": 60,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "n_positions": 32,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 2,
        **changes,
    }
    return GPT2LMHeadModel(GPT2Config(**settings)).eval()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(6)
    sizes: dict[str, Any] = {"vocab_size": 60, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=32)).eval()


class Short:
    """What a judge looks at in a task."""

    name, vocab_size, mask_id, length = "short", 4, 3, 4


def test_the_probabilities_of_all_samples_sum_to_one(tmp_path: Path):
    judge = load_judge(own(tmp_path), Short())  # pyright: ignore
    for length in (4, 3):  # a shorter sample is a beginning
        every = torch.tensor(list(itertools.product(range(3), repeat=length)))
        nats = judge(every)
        assert nats.shape == (3**length,)
        assert nats.std() > 0.01
        torch.testing.assert_close(
            (-length * nats).exp().sum(), torch.tensor(1.0, dtype=torch.float64), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(judge(every[5:6]), nats[5:6], atol=0, rtol=0)


@pytest.mark.parametrize("build", [gpt2, llama])
def test_a_foreign_judge_reads_the_text_and_counts_characters(tmp_path: Path, task: TextTask, build: Any):
    folder = foreign(tmp_path / "judge", task, build())
    tokens = torch.stack([task.examples("test")[index][0] for index in range(3)])
    tokens = torch.cat([tokens, torch.randint(0, task.mask_id, (3, 12), generator=torch.Generator().manual_seed(0))])
    found = load_judge(folder, task)(tokens)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(folder)
    lengths = set()
    for row, nats in zip(tokens, found, strict=True):
        text = task.show(row)
        ids = tokenizer(text)["input_ids"]
        lengths.add(len(ids))
        assert "".join(tokenizer.convert_ids_to_tokens(ids)) == text
        total = 0.0
        for place, token in enumerate(ids):  # one token at a time, nothing padded
            with torch.no_grad():
                logits = model(torch.tensor([[tokenizer.bos_token_id, *ids[:place]]])).logits[0, -1]
            total -= float(logits.double().log_softmax(-1)[token])
        assert float(nats) == pytest.approx(total / 12, rel=1e-5)
    assert len(lengths) > 1
    assert min(lengths) < 12


def test_samples_that_cannot_be_judged_are_refused(tmp_path: Path, task: TextTask):
    judge = load_judge(own(tmp_path / "own"), Short())  # pyright: ignore
    with pytest.raises(ValueError, match="contain the mask token"):
        judge(torch.tensor([[0, 1, 3, 2]]))
    with pytest.raises(ValueError, match="this judge takes 4 tokens, but the samples have 5"):
        judge(torch.zeros(1, 5, dtype=torch.long))
    sample = task.examples("test")[0][0].unsqueeze(0)
    with pytest.raises(ValueError, match=r"takes 3 tokens, but a sample has \d"):
        load_judge(foreign(tmp_path / "short", task, gpt2(n_positions=3)), task)(sample)
    blind = foreign(tmp_path / "blind", task, gpt2(), known="to be")
    with pytest.raises(ValueError, match="tokenizer does not know every character of"):
        load_judge(blind, task)(sample)


def test_folders_that_are_no_judge_are_refused(tmp_path: Path, task: TextTask):
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=60, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    t5 = T5Config(vocab_size=60, d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1)
    headless = GPT2Model(
        GPT2Config(vocab_size=60, n_positions=8, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=False)
    )
    for name, folder, message in [
        ("masked", own(tmp_path / "masked", causal=False), "holds a masked model; a judge must be trained with"),
        (
            "vocabulary",
            own(tmp_path / "vocabulary", vocab_size=9),
            f"has vocab_size 9, but the task text has {task.vocab_size}",
        ),
        ("bert", foreign(tmp_path / "bert", task, BertForMaskedLM(bert)), "BertForMaskedLM, a masked model"),
        ("t5", foreign(tmp_path / "t5", task, T5ForConditionalGeneration(t5)), "a sequence-to-sequence model"),
        (
            "headless",
            foreign(tmp_path / "headless", task, headless),
            "lacks weights of GPT2LMHeadModel.*lm_head.weight",
        ),
        ("begin", foreign(tmp_path / "begin", task, gpt2(), begin=None), "no token that begins a text"),
        ("missing", tmp_path / "missing", r"no model at .*missing"),
    ]:
        with pytest.raises(AdapterError, match=message):
            load_judge(folder, task)
        assert name
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"name": "other"}))
    with pytest.raises(AdapterError, match="neither by this package nor by the Transformers library"):
        load_judge(tmp_path / "other", task)
    with quiet():
        gpt2().save_pretrained(tmp_path / "silent")
    with pytest.raises(AdapterError, match="silent has no tokenizer: expected"):
        load_judge(tmp_path / "silent", task)
    (tmp_path / "begin" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(AdapterError, match=r"begin/model.safetensors is not a complete safetensors file"):
        load_judge(tmp_path / "begin", task)
    (tmp_path / "begin" / "model.safetensors").rename(tmp_path / "begin" / "pytorch_model.bin")
    with pytest.raises(AdapterError, match=r"has no model\.safetensors"):
        load_judge(tmp_path / "begin", task)
