"""Masked models of the Transformers library: the same logits at fewer positions, any lengths, trained, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("pydantic")

from safetensors.torch import load_file
from test_training import Parity, assert_same_bits, settings
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
)

import unmask
from unmask.errors import AdapterError
from unmask.models import registry as models
from unmask.models.pretrained.hf import quiet
from unmask.models.pretrained.masked_lm import HFMaskedDenoiser, MaskedLM, load_masked_lm, new_masked_lm, save_masked_lm
from unmask.training.config import parse_config
from unmask.training.networks import build_network
from unmask.training.run import train

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", **SMALL},
    "modernbert": {"model_type": "modernbert", **SMALL, "num_hidden_layers": 4, "local_attention": 4},
    "roberta": {"model_type": "roberta", **SMALL},
    "distilbert": {"model_type": "distilbert", "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "esm": {"model_type": "esm", **SMALL, "position_embedding_type": "rotary", "emb_layer_norm_before": True},
    "esm, learned positions": {"model_type": "esm", **SMALL},
    "electra": {"model_type": "electra", **SMALL, "embedding_size": 8},
}
VOCAB, MASK, LENGTH = 12, 11, 9


def network(name: str) -> MaskedLM:
    torch.manual_seed(1)
    made = new_masked_lm(KINDS[name], VOCAB, MASK, LENGTH).eval()
    with torch.no_grad():
        for weight in made.parameters():  # the library starts so small that all logits are alike
            weight.mul_(5 if weight.ndim > 1 else 1)
    return made


def masked(rows: int, length: int = LENGTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randint(0, MASK, (rows, length), generator=generator)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < 0.5, MASK)


@pytest.mark.parametrize("name", KINDS)
def test_the_head_sees_the_rows_asked_for_and_gives_the_full_models_logits(name: str):
    made, x = network(name), masked(4)
    seen: list[tuple[int, ...]] = []
    head = made.model.get_output_embeddings()
    assert head is not None
    assert made.padding_invisible  # tried before the hook that counts
    head.register_forward_hook(lambda module, inputs, output: seen.append(tuple(inputs[0].shape[:-1])))
    found = HFMaskedDenoiser(made)(unmask.Query.of(x, MASK))
    with torch.no_grad():
        full = made.model(input_ids=x, attention_mask=torch.ones_like(x)).logits
    assert seen == [(1, int((x == MASK).sum())), (4, LENGTH)]
    assert found.shape == (int((x == MASK).sum()), VOCAB)
    assert bool(found[:, MASK].isneginf().all())
    assert found[:, :MASK].std() > 0.1
    torch.testing.assert_close(found[:, :MASK], full[x == MASK][:, :MASK], atol=1e-6, rtol=0)


def test_an_architecture_without_a_vector_per_token_gives_all_logits():
    sizes = {"d_latents": 8, "d_model": 8, "num_blocks": 1, "num_self_attends_per_block": 1}
    heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2, "qk_channels": 8, "v_channels": 8}
    for latents in (3, LENGTH):
        settings = {"model_type": "perceiver", **sizes, **heads, "num_latents": latents}
        torch.manual_seed(1)
        made = new_masked_lm({**settings, "max_position_embeddings": LENGTH}, VOCAB, MASK, LENGTH).eval()
        for x in (masked(2), torch.full((1, LENGTH), MASK)):
            found = HFMaskedDenoiser(made)(unmask.Query.of(x, MASK))
            with torch.no_grad():
                full = made.model(input_ids=x, attention_mask=torch.ones_like(x)).logits
            torch.testing.assert_close(found[:, :MASK], full[x == MASK][:, :MASK], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", [*KINDS, "token_dropout"])
def test_sequences_of_different_lengths_do_not_notice_each_other(name: str):
    made = network(name if name in KINDS else "esm")
    if name not in KINDS:
        made.model.base_model.embeddings.token_dropout = True  # pyright: ignore
    denoiser = HFMaskedDenoiser(made)
    rows = [masked(1, length)[0] for length in (9, 4, 6)]
    rows[1][0] = 3  # something is known
    x = torch.full((3, 9), MASK)
    valid = torch.zeros(3, 9, dtype=torch.bool)
    for index, row in enumerate(rows):
        x[index, : len(row)], valid[index, : len(row)] = row, True
    where = (x == MASK) & valid
    together = denoiser(unmask.Query(x, where, valid, torch.arange(3)))
    alone = torch.cat([denoiser(unmask.Query.of(row.unsqueeze(0), MASK)) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert not bool(together.isnan().any())
    rule = unmask.Rule(unmask.Entropy(), unmask.One())
    result = unmask.sample(denoiser, rows, rule, seed=0)
    assert result.nfe.tolist() == [int((row == MASK).sum()) for row in rows]


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_model_loads_here_and_in_the_library(tmp_path: Path, name: str):
    made, x = network(name), masked(3)
    save_masked_lm(tmp_path, made, {"vocab_size": VOCAB, "mask_id": MASK, "length": LENGTH})
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json"}
    query = unmask.Query.of(x, MASK)
    denoiser = models.load(tmp_path)
    assert (denoiser.vocab_size, denoiser.mask_id) == (VOCAB, MASK)
    torch.testing.assert_close(denoiser(query), HFMaskedDenoiser(made)(query), atol=0, rtol=0)
    with quiet():
        theirs = AutoModelForMaskedLM.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = theirs(input_ids=x).logits[x == MASK][:, :MASK]
    torch.testing.assert_close(logits, denoiser(query)[:, :MASK], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_trained_model_is_resumed_exactly_tied_and_trained_further(tmp_path: Path, name: str):
    """BERT has dropout, which is a function of the place in the run; both tie the head to the embedding."""
    given = {"network": {"kind": "masked_lm", "config": KINDS[name]}, "dtype": "bfloat16", "weight_decay": 0.0}
    whole = parse_config(settings(tmp_path / "whole", **given), "settings")
    train(whole, Parity())
    parts = parse_config(settings(tmp_path / "parts", **given), "settings")
    train(parts, Parity(), stop_after=3)
    to = train(parts, Parity())
    assert_same_bits(to / "model.safetensors", tmp_path / "whole" / "checkpoint" / "model.safetensors")
    first = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[0])
    assert first["grad_norm"] > 0
    denoiser = models.load(to)
    assert isinstance(denoiser.network, MaskedLM)
    model = denoiser.network.model
    head = model.get_output_embeddings()
    assert head is not None
    assert head.weight is model.get_input_embeddings().weight
    names = load_file(to / "model.safetensors")
    assert sum(weight.shape == head.weight.shape for weight in names.values()) == 1
    start = build_network(whole, Parity())
    assert isinstance(start, MaskedLM)
    before, after = (found.get_output_embeddings() for found in (start.model, model))
    assert not torch.equal(before.weight, after.weight)  # pyright: ignore
    card = (to / "README.md").read_text()
    assert f"`{type(model).__name__}` of the Transformers library" in card

    again = settings(tmp_path / "again", network={"kind": "masked_lm", "pretrained": str(to)}, steps=2)
    adopted = build_network(parse_config(again, "settings"), Parity())
    assert isinstance(adopted, MaskedLM)
    torch.testing.assert_close(adopted.model.state_dict(), model.state_dict(), atol=0, rtol=0)
    train(parse_config(again, "settings"), Parity())
    other = Parity()
    other.vocab_size, other.mask_id = 5, 4
    with pytest.raises(AdapterError, match=r"3 tokens, the mask 2\) does not fit the task's \(5 tokens, the mask 4\)"):
        build_network(parse_config(again, "settings"), other)


def test_folders_of_other_models_are_refused_by_name(tmp_path: Path):
    sizes: dict[str, Any] = {"vocab_size": 12, **SMALL}
    small_bart = {"d_model": 8, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
    heads: dict[str, Any] = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    ids = {"vocab_size": 12, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "pad_token_id": 0}
    bart: dict[str, Any] = {**small_bart, **heads, **ids}
    gpt2: dict[str, Any] = {"vocab_size": 12, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    for model, message in [
        (
            BartForConditionalGeneration(BartConfig(**bart)),
            "BartForConditionalGeneration, a sequence-to-sequence model",
        ),
        (GPT2LMHeadModel(GPT2Config(**gpt2)), "GPT2LMHeadModel, a causal model; expected a masked language model"),
        (BertLMHeadModel(BertConfig(**sizes, is_decoder=True)), "BertLMHeadModel, a causal model"),
        (BertForSequenceClassification(BertConfig(**sizes)), r"lacks weights of BertForMaskedLM.*cls\.predictions"),
        (
            AutoModelForMaskedLM.from_config(BertConfig(**sizes)),
            "does not say which token is the mask",
        ),
    ]:
        folder = tmp_path / type(model).__name__
        with quiet():
            model.save_pretrained(folder)
        with pytest.raises(AdapterError, match=message):
            models.load(folder)
    config = json.loads((folder / "config.json").read_text())
    for about, message in [
        ({"mask_id": 1}, "does not have format 'unmask/1'"),
        ({"format": "unmask/1", "mask_id": 12, "vocab_size": 13, "length": 4}, "do not fit a model of 12 tokens"),
    ]:
        (folder / "config.json").write_text(json.dumps({**config, "unmask": about}))
        with pytest.raises(AdapterError, match=message):
            models.load(folder)
    (folder / "config.json").write_text(json.dumps({**config, "mask_token_id": 5}))
    assert load_masked_lm(folder).mask_id == 5
    assert AutoConfig.from_pretrained(folder).architectures == ["BertForMaskedLM"]
    with pytest.raises(Exception, match="GPT2"):  # the control: the library itself goes by the name of the model
        AutoModelForMaskedLM.from_pretrained(tmp_path / "GPT2LMHeadModel")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "GPT2LMHeadModel").config.model_type == "gpt2"


def test_settings_that_make_no_model_are_refused(tmp_path: Path):
    for config, message in [
        ({"model_type": "gpt3"}, "unknown model_type 'gpt3'"),
        ({"model_type": "gpt2"}, "a gpt2 model, a causal model"),
        ({"model_type": "bart"}, "a bart model, a sequence-to-sequence model"),
        ({"model_type": "bert", "is_decoder": True}, "a bert model, a causal model"),
        ({"model_type": "bert", "hiden_size": 8}, "hiden_size: not a setting of bert; it has"),
        (
            {"model_type": "bert", "hidden_size": 7, "num_attention_heads": 2},
            "not a multiple of the number of attention",
        ),
        ({"model_type": "bert", "hidden_size": "wide"}, "got str"),
        ({"model_type": "bert", "vocab_size": 8}, "token ids come from the task"),
        ({"model_type": "bert", **SMALL, "max_position_embeddings": 3}, "cannot take 4 tokens"),
        (
            {"model_type": "roberta", **SMALL, "max_position_embeddings": 7},
            "cannot take 4 tokens.* has to be 8 or more",
        ),
        ({"model_type": "esm", **SMALL, "max_position_embeddings": 7}, "cannot take 4 tokens.* has to be 8 or more"),
        ({"model_type": "esm", **SMALL, "token_dropout": True}, "set token_dropout to false"),
    ]:
        given = parse_config(settings(tmp_path, network={"kind": "masked_lm", "config": config}), "settings")
        with pytest.raises(ValueError, match=message):
            train(given, Parity())
    enough = {"model_type": "roberta", **SMALL, "max_position_embeddings": 8}
    build_network(parse_config(settings(tmp_path, network={"kind": "masked_lm", "config": enough}), "it"), Parity())
    for network, message in [
        ({"kind": "masked_lm"}, "exactly one of config .* and pretrained"),
        ({"kind": "masked_lm", "config": {"hidden_size": 8}}, "needs a model_type"),
        ({"kind": "rnn"}, "'rnn' found"),
    ]:
        with pytest.raises(ValueError, match=message):
            parse_config(settings(tmp_path, network=network), "settings")
    both = settings(tmp_path, network={"kind": "masked_lm", "config": {"model_type": "bert"}}, objective="causal")
    with pytest.raises(ValueError, match="has bidirectional attention: objective must be masked"):
        parse_config(both, "settings")
    assert not list(tmp_path.iterdir())
