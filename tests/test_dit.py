"""MDLM and BD3LM."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from dit_layouts import BLOCK, CONFIGS, MASK, TOKENS, weights, write
from layouts import write_files

import unmask
from unmask.denoiser import Query
from unmask.errors import AdapterError

REFERENCE = json.loads((Path(__file__).parent / "data" / "dit-logits.json").read_text())
QUERY = Query.of(torch.tensor(TOKENS), MASK)
KNOWN = range(MASK)


def loaded(folder, layout, *, shards=1, changes=None, **options) -> Any:
    return unmask.load(write(folder, layout, shards=shards, **(changes or {})), mask_id=MASK, **options)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("layout", sorted(CONFIGS))
def test_logits_are_those_of_the_families_own_code(layout, shards, tmp_path):
    found = loaded(tmp_path, layout, shards=shards)(QUERY)
    expected = torch.tensor(REFERENCE[layout])[QUERY.where]
    assert (found - expected)[:, KNOWN].abs().max() < 1e-5
    assert expected[:, KNOWN].std() > 0.5  # not a comparison of zeros


def test_the_time_is_constant_and_counts(tmp_path):
    network = loaded(tmp_path, "mdlm").network
    plain = network(QUERY.x, QUERY.where)
    torch.nn.init.zeros_(network.model.backbone.sigma_map.mlp[2].bias)
    assert (network(QUERY.x, QUERY.where) - plain)[:, KNOWN].abs().max() > 1e-2


def test_what_the_files_leave_unsaid(tmp_path):
    for layout in ("mdlm", "bd3lm"):
        with pytest.raises(AdapterError, match="mask token 50257 is outside the vocabulary of 40 tokens"):
            unmask.load(write(tmp_path / layout, layout))
    with pytest.raises(ValueError, match=r"block_causal does not apply to .*: a MDLM attends to all positions"):
        loaded(tmp_path / "mdlm", "mdlm", block_causal=4)
    network = loaded(tmp_path / "bd3lm", "bd3lm").network
    assert (network.block_causal, network.shift, network.max_length) == (BLOCK, False, 64)


@pytest.mark.parametrize(
    ("layout", "changes", "words"),
    [
        ("mdlm", {"time_conditioning": True}, "unsupported: time_conditioning True"),
        ("mdlm", {"time_conditioning": "absent"}, "lacks time_conditioning"),
        ("mdlm", {"causal": True}, "unsupported: causal True"),
        ("mdlm", {"cond_dim": None}, "lacks cond_dim"),
        ("mdlm", {"n_heads": 3}, "hidden_dim 32 cannot be divided among n_heads 3 heads of an even size"),
        ("mdlm", {"mlp_ratio": 2}, "unsupported: mlp_ratio 2"),
        ("mdlm", {"block_size": 4}, "unsupported: block_size 4"),
        ("bd3lm", {"cross_attn": False}, "unsupported: cross_attn False"),
        ("bd3lm", {"block_size": "absent"}, "does not give their length"),
        ("bd3lm", {"n_blocks": 0}, "n_blocks must be a whole number >= 1, got 0"),
    ],
)
def test_settings_without_a_counterpart_are_named(layout, changes, words, tmp_path):
    with pytest.raises(AdapterError, match=words):
        loaded(tmp_path, layout, changes=changes)


def test_missing_and_extra_tensors_are_named(tmp_path):
    tensors = weights("mdlm")
    for name in ("backbone.vocab_embed.embedding", "backbone.output_layer.linear.bias"):
        write_files(tmp_path, CONFIGS["mdlm"], {key: value for key, value in tensors.items() if key != name})
        with pytest.raises(AdapterError, match=f"lacks weights of DiTForMaskedLM: {name}"):
            unmask.load(tmp_path, mask_id=MASK)
    write_files(tmp_path, CONFIGS["mdlm"], {**tensors, "backbone.blocks.0.surplus": torch.ones(3)})
    with pytest.raises(
        AdapterError, match=r"has weights that DiTForMaskedLM does not have: backbone\.blocks\.0\.surplus"
    ):
        unmask.load(tmp_path, mask_id=MASK)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", sorted(CONFIGS))
def test_half_precision_and_both_ways_to_compute_attention(layout, attention, tmp_path):
    found = loaded(tmp_path, layout, dtype=torch.bfloat16, attn_implementation=attention)(QUERY)
    assert found.dtype == torch.bfloat16
    exact = loaded(tmp_path, layout, attn_implementation=attention)(QUERY)
    assert (found - exact)[:, KNOWN].abs().mean() < 0.1 * exact[:, KNOWN].std()
