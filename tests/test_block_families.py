"""Families with block-causal attention, and iLLaDA: logits, settings and messages."""

import json
from pathlib import Path

import pytest
import torch
from block_layouts import CONFIGS, OPTIONS, SIZE, weights, write_block_model
from layouts import MASK, TOKENS, VOCAB, WIDTH, write, write_files

import unmask
from unmask.denoiser import Query
from unmask.errors import AdapterError
from unmask.models.pretrained.families import FAMILIES, family_of
from unmask.models.pretrained.masked_lm import MaskedLM
from unmask.models.pretrained.said import mask_id_of

REFERENCE = json.loads((Path(__file__).parent / "data" / "block-logits.json").read_text())
KEPT = [token for token in range(VOCAB) if token != MASK]
BLOCKS = sorted(set(CONFIGS) - {"illada"})
FIELD = {"fast_dllm": "bd_size"}


def load(folder, layout, shards=1, block_causal=None, **changes):
    options = {**OPTIONS.get(layout, {}), "block_causal": block_causal}
    return unmask.load(write_block_model(folder, layout, shards=shards, **changes), **options)


def logits(denoiser):
    return denoiser(Query.of(torch.tensor(TOKENS), MASK))[:, KEPT]


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", sorted(CONFIGS))
def test_logits_are_those_of_the_families_own_code(layout, shards, tmp_path):
    denoiser = load(tmp_path, layout, shards)
    expected = torch.tensor(REFERENCE[layout])[torch.tensor(TOKENS) == MASK][:, KEPT]
    # Both are rounded in float32, by up to 1e-5 each, and the reference by the processor that made it.
    assert (logits(denoiser) - expected).abs().max() < 2e-5
    assert expected.std() > 0.5  # not a comparison of zeros


@pytest.mark.parametrize("layout", BLOCKS)
def test_the_blocks_are_what_the_configuration_says(layout, tmp_path):
    field = FIELD.get(layout, "block_size")
    plain = load(tmp_path / "plain", layout)
    assert isinstance(plain.network, MaskedLM)
    assert plain.network.block_causal == SIZE
    assert torch.equal(logits(load(tmp_path / "same", layout, block_causal=SIZE)), logits(plain))
    other = logits(load(tmp_path / "other", layout, **{field: 6}))
    assert (other - logits(plain)).abs().max() > 1e-3
    words = rf"config.json says {field} = {SIZE}, but block_causal=8 is given; leave block_causal out"
    with pytest.raises(AdapterError, match=words):
        load(tmp_path / "against", layout, block_causal=8)
    with pytest.raises(AdapterError, match=f"{field} must be a whole number of positions >= 1, got 0"):
        load(tmp_path / "none", layout, **{field: 0})


@pytest.mark.parametrize("layout", ["sdar", "sdar_moe"])
def test_blocks_that_the_files_do_not_name_are_given(layout, tmp_path):
    with pytest.raises(AdapterError, match=r"give block_causal=\.\.\. \(--block-causal\)"):
        load(tmp_path / "a", layout, block_size="absent")
    plain = load(tmp_path / "plain", layout)
    assert torch.equal(logits(load(tmp_path / "b", layout, block_causal=SIZE, block_size="absent")), logits(plain))


def test_published_block_lengths_and_masks_are_known_where_the_files_do_not_name_them(tmp_path):
    fast = family_of(CONFIGS["fast_dllm"])
    assert fast is not None
    assert fast.block_of(tmp_path, {"model_type": "Fast_dLLM_Qwen"}, None) == 32
    assert fast.block_of(tmp_path, {"model_type": "Fast_dLLM_Qwen"}, 16) == 16
    for layout, mask in (("sdar", 151669), ("sdar_moe", 151669), ("fast_dllm", 151665), ("illada", 5)):
        family = family_of(CONFIGS[layout])
        assert family is not None
        assert mask_id_of(tmp_path, {"model_type": CONFIGS[layout]["model_type"]}, usual=family.mask_id) == mask
    assert load(tmp_path / "illada", "illada").mask_id == MASK
    assert unmask.load(tmp_path / "illada").mask_id == 5


@pytest.mark.parametrize("layout", sorted(CONFIGS))
def test_shift_is_known(layout, tmp_path):
    folder = write_block_model(tmp_path, layout)
    shifted = layout == "fast_dllm"
    with pytest.raises(AdapterError, match=f"are read with shift={shifted}, not {not shifted}"):
        unmask.load(folder, shift=not shifted)
    network = unmask.load(folder, shift=shifted, **OPTIONS.get(layout, {})).network
    assert isinstance(network, MaskedLM)
    assert network.shift == shifted


def test_a_dream_with_blocks_is_a_dream_reasoner(tmp_path):
    """Both call themselves Dream: one is shifted and looks at all positions, one is neither."""
    dream, reasoner = unmask.load(write(tmp_path, "dream")).network, load(tmp_path / "b", "dream_reasoner").network
    assert isinstance(dream, MaskedLM)
    assert isinstance(reasoner, MaskedLM)
    assert (dream.shift, dream.block_causal) == (True, None)
    assert (reasoner.shift, reasoner.block_causal) == (False, SIZE)
    assert type(reasoner.model).__name__ == "Qwen3ForCausalLM"


def test_illada_has_tied_embeddings_unless_it_says_otherwise(tmp_path):
    plain = load(tmp_path / "plain", "illada")
    silent = {key: value for key, value in CONFIGS["illada"].items() if key != "tie_word_embeddings"}
    tensors = weights("illada")
    tied = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    one = unmask.load(write_files(tmp_path / "a", silent, tied), mask_id=MASK)
    assert torch.equal(logits(one), logits(plain))
    head = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))
    config = {**CONFIGS["illada"], "tie_word_embeddings": False}
    untied = unmask.load(write_files(tmp_path / "b", config, {**tensors, "lm_head.weight": head}), mask_id=MASK)
    assert (logits(untied) - logits(plain)).abs().max() > 1e-2
    with pytest.raises(AdapterError, match=r"tie_word_embeddings.*an output layer that differs from the embeddings"):
        unmask.load(write_files(tmp_path / "c", silent, {**tensors, "lm_head.weight": head}), mask_id=MASK)


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("sdar", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "unsupported: rope_scaling .*yarn"),
        ("sdar", {"use_sliding_window": True}, "unsupported: use_sliding_window True"),
        ("sdar", {"num_experts": 8}, "unsupported: num_experts 8; .* can be taken out of config.json"),
        ("sdar", {"hidden_act": "gelu"}, "unsupported: hidden_act 'gelu'"),
        ("sdar", {"layer_types": ["sliding_attention", "full_attention"]}, "unsupported: layer_types"),
        ("sdar_moe", {"n_shared_experts": 1}, "unsupported: n_shared_experts 1"),
        ("sdar_moe", {"scoring_func": "sigmoid"}, "unsupported: scoring_func 'sigmoid'"),
        ("sdar_moe", {"norm_topk_prob": "absent"}, "the configuration lacks norm_topk_prob"),
        ("fast_dllm", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "unsupported: rope_scaling"),
        ("fast_dllm", {"attention_bias": False}, "unsupported: attention_bias False"),
        ("dream_reasoner", {"use_mrope": True}, "unsupported: use_mrope True"),
        ("illada", {"layer_norm_eps": 1e-5}, "unsupported: layer_norm_eps 1e-05"),
        ("illada", {"rope_theta": "absent"}, "the configuration lacks rope_theta"),
        ("illada", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "unsupported: rope_scaling"),
    ],
)
def test_settings_without_a_counterpart_are_refused(layout, changes, words, tmp_path):
    with pytest.raises(AdapterError, match=words) as caught:
        load(tmp_path, layout, **changes)
    assert "\n" not in str(caught.value)


def test_a_scale_of_one_scales_nothing(tmp_path):
    scaled = load(tmp_path / "a", "illada", rope_scaling={"rope_type": "default", "factor": 1.0})
    assert torch.equal(logits(scaled), logits(load(tmp_path / "b", "illada")))


@pytest.mark.parametrize("layout", sorted(CONFIGS))
def test_missing_and_extra_tensors_are_named(layout, tmp_path):
    tensors = weights(layout)
    gone = next(name for name in tensors if "layers.1" in name and "down_proj" in name)
    folder = write_files(tmp_path, CONFIGS[layout], {k: v for k, v in tensors.items() if k != gone})
    with pytest.raises(AdapterError, match=r"layers\.1\.mlp"):
        unmask.load(folder, **OPTIONS.get(layout, {}))
    write_files(tmp_path, CONFIGS[layout], {**tensors, "model.layers.0.self_attn.surplus": torch.ones(3)})
    with pytest.raises(AdapterError, match=r"surplus"):
        unmask.load(folder, **OPTIONS.get(layout, {}))


def test_a_model_of_no_family_is_refused_with_what_to_do(tmp_path):
    folder = write_block_model(tmp_path, "sdar", model_type="sdar_next", architectures=["SDARNextForCausalLM"])
    with pytest.raises(AdapterError, match=r"SDARNextForCausalLM .*sdar_next.*; known are .*SDAR-MoE") as caught:
        unmask.load(folder)
    assert "\n" not in str(caught.value)


def test_every_family_is_told_by_its_configuration():
    for family in FAMILIES:
        config = {"model_type": family.kinds[0], **dict.fromkeys(family.marks[:1], 1)}
        assert family_of(config) is family
