import json
from pathlib import Path

import pytest
import torch
from layouts import DREAM, END, LLADA, MASK, ROUNDING, TOKENS, VOCAB, shapes, weights, write
from safetensors.torch import load_file, save_file

import unmask
from unmask.denoiser import Query
from unmask.errors import AdapterError
from unmask.models.pretrained.bidirectional import load_bidirectional
from unmask.models.pretrained.llada import llada_config, llada_name
from unmask.models.pretrained.masked_lm import MaskedLM

REFERENCE = json.loads((Path(__file__).parent / "data" / "reference-logits.json").read_text())


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_logits_are_those_of_the_reference_implementations(layout, shards, tmp_path):
    denoiser = unmask.load(write(tmp_path, layout, shards=shards))
    query = Query.of(torch.tensor(TOKENS), MASK)
    expected = torch.tensor(REFERENCE[layout])[query.where].clone()
    found = denoiser(query)
    assert (found[:, MASK] == -torch.inf).all()
    keep = [token for token in range(VOCAB) if token != MASK]
    assert (found - expected)[:, keep].abs().max() < ROUNDING
    assert expected[:, keep].std() > 0.5  # not a comparison of zeros


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_padding_and_batch_mates_do_not_matter(layout, tmp_path):
    denoiser = unmask.load(write(tmp_path, layout))
    x = torch.tensor(TOKENS)
    alone = denoiser(Query.of(x[:1, :7], MASK))
    padded = torch.cat([x[:1, :7], torch.full((1, 5), MASK)], 1)
    valid = torch.tensor([[True] * 7 + [False] * 5, [True] * 12])
    where = (torch.cat([padded, x[1:]]) == MASK) & valid
    together = denoiser(Query(torch.cat([padded, x[1:]]), where, valid, torch.arange(2)))
    assert (together[: len(alone)] - alone)[:, :END].abs().max() < ROUNDING


def test_positions_depend_on_what_follows(tmp_path):
    denoiser = unmask.load(write(tmp_path, "llada"))
    x = torch.tensor(TOKENS[:1])
    changed = x.clone()
    changed[0, -2] = 7
    first = denoiser(Query.of(x, MASK))[0, :END]
    assert (denoiser(Query.of(changed, MASK))[0, :END] - first).abs().max() > 1e-3


def test_dream_shift_can_ask_one_output_twice(tmp_path):
    network = load_bidirectional(write(tmp_path, "dream"))
    x = torch.tensor([[MASK, MASK, 4]])
    rows = network(x, x == MASK)  # positions 0 and 1 are both predicted by output 0
    assert torch.equal(rows[0], rows[1])


def test_adapted_models_need_to_say_whether_they_are_shifted(tmp_path):
    folder = write(tmp_path, "dream", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(AdapterError, match="shift=True or shift=False"):
        unmask.load(folder)
    query = Query.of(torch.tensor(TOKENS), MASK)
    dream = unmask.load(write(tmp_path / "dream", "dream"))
    assert torch.equal(unmask.load(folder, shift=True)(query), dream(query))
    other = unmask.load(folder, shift=False)(query)
    assert (other - dream(query))[:, :END].abs().max() > 1e-3
    with pytest.raises(AdapterError, match="shift=True, not False"):
        unmask.load(tmp_path / "dream", shift=False)


def test_half_precision_keeps_its_type(tmp_path):
    denoiser = unmask.load(write(tmp_path, "llada"), dtype=torch.bfloat16)
    logits = denoiser(Query.of(torch.tensor(TOKENS), MASK))
    assert logits.dtype == torch.bfloat16
    expected = torch.tensor(REFERENCE["llada"])[torch.tensor(TOKENS) == MASK]
    assert (logits.float() - expected)[:, :END].abs().max() < 0.2


def test_the_head_sees_the_asked_positions_only(tmp_path):
    network = load_bidirectional(write(tmp_path, "llada"))
    seen = []
    head = network.model.get_output_embeddings()
    assert head is not None
    head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    x = torch.tensor(TOKENS)
    network(x, x == MASK)
    assert seen == [(1, int((x == MASK).sum()), LLADA["d_model"])]


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_missing_and_extra_tensors_are_named(layout, tmp_path):
    folder = write(tmp_path, layout)
    tensors = weights(layout)
    gone = next(name for name in shapes(layout) if "ff_out" in name or "down_proj" in name)
    save_file({k: v for k, v in tensors.items() if k != gone}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"lm_head|down_proj"):
        unmask.load(folder)
    save_file({**tensors, "model.surplus.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(AdapterError, match=r"model\.surplus\.weight"):
        unmask.load(folder)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("alibi", True),
        ("layer_norm_type", "low_precision"),
        ("block_group_size", 2),
        ("input_emb_norm", True),
        ("scale_logits", True),
        ("attention_layer_norm", True),
        ("block_type", "sequential"),
        ("rope", False),
    ],
)
def test_unsupported_settings_are_named(setting, value, tmp_path):
    with pytest.raises(AdapterError, match=f"unsupported: {setting} {value!r}"):
        unmask.load(write(tmp_path, "llada", **{setting: value}))


def test_a_config_that_lacks_sizes_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="lacks d_model"):
        unmask.load(write(tmp_path, "llada", d_model="absent"))
    with pytest.raises(AdapterError, match="lacks hidden_size"):
        unmask.load(write(tmp_path / "b", "dream", hidden_size="absent"))


@pytest.mark.parametrize(
    ("kind", "name", "words"),
    [
        ("wedlm", "WeDLMForCausalLM", "WeDLMForCausalLM"),
        ("gpt2", "GPT2LMHeadModel", "causal"),
        ("bart", "BartForConditionalGeneration", "sequence-to-sequence"),
    ],
)
def test_other_models_are_refused_by_name(kind, name, words, tmp_path):
    changes = {"is_encoder_decoder": True} if kind == "bart" else {}
    with pytest.raises(AdapterError, match=words):
        unmask.load(write(tmp_path, "llada", model_type=kind, architectures=[name], **changes))


def test_a_mask_token_outside_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="mask token 99 is outside"):
        unmask.load(write(tmp_path, "llada", mask_token_id=99))


def test_a_model_that_names_no_mask_token_is_refused(tmp_path):
    with pytest.raises(AdapterError, match="tokenizer"):
        unmask.load(write(tmp_path, "llada", mask_token_id="absent"))


def test_saved_in_the_layout_it_was_read_from(tmp_path):
    from unmask.models.pretrained.llada import save_llada

    network = load_bidirectional(write(tmp_path / "a", "llada"))
    save_llada(tmp_path / "b", network, {"task": None}, end_id=END)
    saved = load_file(tmp_path / "b" / "model.safetensors")
    assert {name: tuple(weight.shape) for name, weight in saved.items()} == shapes("llada")
    assert all(weight.dtype == torch.bfloat16 for weight in saved.values())
    again = load_bidirectional(tmp_path / "b")
    x = torch.tensor(TOKENS)
    assert (again(x, x == MASK) - network(x, x == MASK))[:, :END].abs().max() < 0.2


def test_names_of_tensors_go_both_ways():
    import re

    from transformers import LlamaForCausalLM

    from unmask.models.pretrained.llada import LLADA_NAMES

    for name in dict(LlamaForCausalLM(llada_config(LLADA)).named_parameters()):  # pyright: ignore[reportArgumentType]
        back = llada_name(name)
        matches = [re.sub(pattern, to, back) for pattern, to in LLADA_NAMES.items() if re.search(pattern, back)]
        assert matches == [name]


def test_options_of_the_library_are_passed_on(tmp_path):
    denoiser = unmask.load(write(tmp_path, "llada"), device_map="cpu")
    assert isinstance(denoiser.network, MaskedLM)
    with pytest.raises(ValueError, match="device_map does not apply"):
        unmask.load("sudoku", device_map="cpu")
    with pytest.raises(AdapterError, match="no model at 'nothing'"):
        unmask.load("nothing")


def test_dream_settings_without_a_counterpart_are_refused(tmp_path):
    assert DREAM["use_sliding_window"] is False
    with pytest.raises(AdapterError, match="unsupported"):
        unmask.load(write(tmp_path, "dream", use_sliding_window=True))
