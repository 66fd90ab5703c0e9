"""Families whose layers hold experts: LLaDA2 and LLaDA-MoE."""

import contextlib
import copy
import json
import re
from pathlib import Path
from typing import Any

import expert_layouts as experts
import layouts
import pytest
import torch
from expert_layouts import BLOCK, END, MASK, ONE_EXPERT, ROUNDING, TOKENS, VOCAB, write
from safetensors.torch import save_file

import unmask
from unmask.denoiser import Query
from unmask.errors import AdapterError
from unmask.language import LanguageModel
from unmask.models.pretrained import sharing
from unmask.models.pretrained.families import family_of
from unmask.models.pretrained.sharing import sharing_of

REFERENCE = json.loads((Path(__file__).parent / "data" / "expert-logits.json").read_text())
QUERY = Query.of(torch.tensor(TOKENS), MASK)
KNOWN = [token for token in range(VOCAB) if token != MASK]


def loaded(folder, layout, *, shards=1, changes=None, **options) -> Any:
    if layout == "llada2":
        options = {"block_causal": BLOCK, **options}
    return unmask.load(write(folder, layout, shards=shards, **(changes or {})), mask_id=MASK, **options)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("name", "layout", "changes", "options"),
    [
        ("llada2", "llada2", {}, {}),
        ("llada2 both ways", "llada2", {}, {"block_causal": 12}),
        ("llada2 one expert", "llada2", ONE_EXPERT, {}),
        ("llada-moe", "llada-moe", {}, {}),
    ],
)
def test_logits_are_those_of_the_families_own_code(name, layout, changes, options, shards, tmp_path):
    found = loaded(tmp_path, layout, shards=shards, changes=changes, **options)(QUERY)
    expected = torch.tensor(REFERENCE[name])[QUERY.where]
    assert (found[:, MASK] == -torch.inf).all()
    # Both are rounded in float32, by up to 1e-5 each, and the reference by the processor that made it.
    assert (found - expected)[:, KNOWN].abs().max() < 2e-5
    assert expected[:, KNOWN].std() > 0.5  # not a comparison of zeros


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        ("llada2", {"num_experts_per_tok": 2}),
        ("llada2", {"n_group": 2}),
        ("llada2", {"topk_group": 4}),
        ("llada2", {"routed_scaling_factor": 1}),
        ("llada2", {"partial_rotary_factor": 1.0, "rotary_dim": 16}),
        ("llada2", {"rope_theta": 10000}),
        ("llada-moe", {"num_experts_per_tok": 2}),
        ("llada-moe", {"rope_theta": 10000}),
    ],
)
def test_every_setting_of_the_routing_counts(layout, changes, tmp_path):
    plain = loaded(tmp_path / "a", layout)(QUERY)
    other = loaded(tmp_path / "b", layout, changes=changes)(QUERY)
    assert (plain - other)[:, KNOWN].abs().max() > 1e-2


def test_the_bias_of_experts_counts_in_the_choice_only(tmp_path):
    denoiser = loaded(tmp_path, "llada2")
    router = denoiser.network.model.model.layers[1].mlp.gate
    x = torch.randn(64, experts.WIDTH, generator=torch.Generator().manual_seed(0))
    chosen, weights = router(x)
    scores = torch.nn.functional.linear(x, router.weight).sigmoid().gather(-1, chosen)
    assert torch.allclose(weights, 2.5 * scores / scores.sum(-1, keepdim=True))
    router.expert_bias.zero_()
    assert (router(x)[0].sort(-1).values != chosen.sort(-1).values).any(-1).float().mean() > 0.2


def test_what_the_files_leave_unsaid(tmp_path):
    folder = write(tmp_path / "a", "llada2")
    assert unmask.load(folder, mask_id=MASK).network.block_causal == 32  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(AdapterError, match="mask token 156895 is outside the vocabulary of 40 tokens"):
        unmask.load(folder)
    other = write(tmp_path / "b", "llada-moe")
    with pytest.raises(AdapterError, match="mask token 156895 is outside the vocabulary of 40 tokens"):
        unmask.load(other)
    with pytest.raises(ValueError, match=r"block_causal does not apply .* attends to all positions"):
        unmask.load(other, mask_id=MASK, block_causal=4)
    with pytest.raises(AdapterError, match="LLaDA2 models are read with shift=False, not True"):
        unmask.load(folder, mask_id=MASK, shift=True)


def test_two_architectures_behind_one_word_are_told_apart():
    found = [family_of(config) for config in (layouts.LLADA, experts.LLADA_MOE, experts.LLADA2)]
    assert [family.name for family in found if family is not None] == ["llada", "LLaDA-MoE", "LLaDA2"]


@pytest.mark.parametrize("way", ["eager", "batched_mm"])
@pytest.mark.parametrize("layout", ["llada2", "llada-moe"])
def test_ways_to_compute_experts_agree(layout, way, tmp_path):
    plain = loaded(tmp_path, layout)
    assert plain.network.model.config._experts_implementation in ("grouped_mm", "eager")  # as PyTorch has it or not
    other = loaded(tmp_path, layout, experts_implementation=way)
    assert other.network.model.config._experts_implementation == way
    assert (plain(QUERY) - other(QUERY))[:, KNOWN].abs().max() < ROUNDING


def test_without_a_grouped_product_for_processors_experts_are_taken_one_by_one(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "_grouped_mm", None, raising=False)  # as in PyTorch 2.8
    monkeypatch.delattr(torch.nn.functional, "grouped_mm", raising=False)
    assert loaded(tmp_path, "llada2").network.model.config._experts_implementation == "eager"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["llada2", "llada-moe"])
def test_half_precision_keeps_its_type(layout, attention, tmp_path):
    denoiser = loaded(tmp_path, layout, dtype=torch.bfloat16, attn_implementation=attention)
    found = denoiser(QUERY)
    assert found.dtype == torch.bfloat16
    assert found[:, KNOWN].isfinite().all()
    biases = [tensor for name, tensor in denoiser.network.named_buffers() if name.endswith("expert_bias")]
    assert len(biases) == (2 if layout == "llada2" else 0)
    assert all(bias.dtype == torch.float32 for bias in biases)
    assert all(weight.dtype == torch.bfloat16 for weight in denoiser.network.parameters())


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("llada2", {"hidden_act": "gelu"}, "unsupported: hidden_act 'gelu'"),
        ("llada2", {"score_function": "softmax"}, "unsupported: score_function 'softmax'"),
        ("llada2", {"norm_topk_prob": False}, "unsupported: norm_topk_prob False"),
        ("llada2", {"moe_router_enable_expert_bias": False}, "unsupported: moe_router_enable_expert_bias False"),
        ("llada2", {"num_nextn_predict_layers": 1}, "unsupported: num_nextn_predict_layers 1"),
        ("llada2", {"use_bias": True}, "unsupported: use_bias True"),
        ("llada2", {"block_routing": True}, "unsupported: block_routing True"),
        ("llada2", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "unsupported: rope_scaling"),
        ("llada2", {"rope_theta": "absent"}, "lacks rope_theta"),
        ("llada2", {"num_shared_experts": 0}, "num_shared_experts must be a whole number >= 1, got 0"),
        ("llada2", {"num_shared_experts": None}, "lacks num_shared_experts"),
        ("llada2", {"n_group": "absent"}, "lacks n_group"),
        ("llada2", {"n_group": 3}, "num_experts 8 cannot be divided into n_group 3 groups"),
        ("llada2", {"n_group": 8}, "num_experts must be a whole number >= 16, got 8"),
        ("llada2", {"topk_group": 5}, "topk_group must be a whole number from 1 to 4, got 5"),
        ("llada2", {"num_experts_per_tok": 5}, "num_experts_per_tok must be a whole number from 1 to 4, got 5"),
        ("llada2", {"first_k_dense_replace": -1}, "first_k_dense_replace must be a whole number >= 0, got -1"),
        ("llada2", {"intermediate_size": None}, "lacks intermediate_size, the MLP size of the first 1 layers"),
        ("llada2", {"rotary_dim": 4}, "rotary_dim 4 does not fit: partial_rotary_factor times head_dim is 8"),
        ("llada-moe", {"hidden_act": "gelu"}, "unsupported: hidden_act 'gelu'"),
        ("llada-moe", {"moe_router_score_function": "sigmoid"}, "unsupported: moe_router_score_function 'sigmoid'"),
        ("llada-moe", {"moe_router_enable_expert_bias": True}, "unsupported: moe_router_enable_expert_bias True"),
        ("llada-moe", {"shared_expert_intermediate_size": 24}, "unsupported: shared_expert_intermediate_size 24"),
        ("llada-moe", {"router_num_group": 4}, "unsupported: router_num_group 4"),
        ("llada-moe", {"routed_scaling_factor": 2.5}, "unsupported: routed_scaling_factor 2.5"),
        ("llada-moe", {"partial_rotary_factor": 0.5}, "unsupported: partial_rotary_factor 0.5"),
        ("llada-moe", {"qk_layernorm": False}, "unsupported: qk_layernorm False"),
        ("llada-moe", {"clip_qkv": 8.0}, "unsupported: clip_qkv 8.0"),
        ("llada-moe", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "unsupported: rope_scaling"),
        ("llada-moe", {"moe_layer_freq": [1, 0]}, "not a list of 3 numbers 0 or 1"),
        ("llada-moe", {"moe_layer_freq": 1}, "moe_layer_freq 1 is not a list"),
        ("llada-moe", {"dense_intermediate_size": None}, "lacks dense_intermediate_size, the MLP size of layers 1"),
        ("llada-moe", {"num_experts": "absent"}, "lacks num_experts"),
        ("llada-moe", {"num_experts_per_tok": 9}, "num_experts_per_tok must be a whole number from 1 to 8, got 9"),
        ("llada-moe", {"rope_theta": "absent"}, "lacks rope_theta"),
    ],
)
def test_settings_without_a_counterpart_are_named(layout, changes, words, tmp_path):
    with pytest.raises(AdapterError, match=words):
        loaded(tmp_path, layout, changes=changes)


@pytest.mark.parametrize(
    ("layout", "name"),
    [
        ("llada2", "model.layers.1.mlp.gate.expert_bias"),
        ("llada2", "model.layers.2.attention.query_layernorm.weight"),
        ("llada2", "model.layers.2.mlp.shared_experts.up_proj.weight"),
        ("llada2", "model.layers.1.mlp.experts.5.up_proj.weight"),
        ("llada-moe", "model.layers.2.mlp.gate.weight"),
        ("llada-moe", "model.layers.2.mlp.experts.0.down_proj.weight"),
    ],
)
def test_missing_and_extra_tensors_are_named(layout, name, tmp_path):
    path, tensors = write(tmp_path, layout) / "model.safetensors", experts.weights(layout)
    save_file({key: value for key, value in tensors.items() if key != name}, path, metadata={"format": "pt"})
    asked = name.replace("attention.query_layernorm", "self_attn.q_norm")
    with pytest.raises(AdapterError, match=rf"lacks weights of \w+: {re.escape(asked)}"):
        unmask.load(tmp_path, mask_id=MASK)
    save_file({**tensors, "model.layers.1.extra.weight": torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(AdapterError, match=r"has weights that .* does not have: .*layers.1.extra"):
        unmask.load(tmp_path, mask_id=MASK)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    networks = {name: loaded(tmp_path_factory.mktemp(name), name).network for name in ("llada2", "llada-moe")}
    return {name: LanguageModel(network, VOCAB, MASK, end_ids=[3, 7, 11]) for name, network in networks.items()}


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(3, 15, (count,), generator=generator).tolist()
    return [torch.randint(0, END, (length,), generator=generator).tolist() for length in lengths]


OPTIONS = {"rule": "entropy-bound:gamma=5", "max_new_tokens": 8, "block_length": 4, "temperature": 1.0, "seed": 1}


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_caches_that_drift_serve_models_that_look_both_ways(models, cache):
    model, asked = models["llada-moe"], prompts(8)
    plain = model.generate(asked, **OPTIONS)
    assert [one.tokens for one in model.generate(asked, **OPTIONS, cache=cache, cache_refresh=1)] == [
        one.tokens for one in plain
    ]
    assert [one.tokens for one in model.generate(asked, **OPTIONS, cache=cache)] != [one.tokens for one in plain]


def test_a_token_that_goes_elsewhere_for_rounding_is_no_sign_of_padding(tmp_path, monkeypatch):
    model = loaded(tmp_path, "llada2").network.model
    for name, part in model.named_modules():
        if name.endswith(".experts"):  # as if it went to another expert in every batch of another size
            part.register_forward_hook(lambda _, args, output: output + len(args[0]))
    assert sharing_of(model, END).together == "any"
    monkeypatch.setattr(sharing, "without_experts", lambda model: contextlib.nullcontext())
    assert sharing_of(copy.deepcopy(model), END).together != "any"
