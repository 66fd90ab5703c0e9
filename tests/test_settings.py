"""Settings of a LLaDA or Dream: honoured, refused by name, or listed as harmless."""

from typing import Any

import pytest
import torch
from layouts import DREAM, LLADA, MASK, TOKENS, write
from transformers import Qwen2Config

import unmask
from unmask.denoiser import Query
from unmask.errors import AdapterError
from unmask.models.pretrained.counterparts import checked_as
from unmask.models.pretrained.llada import llada_config
from unmask.models.pretrained.settings import DREAM as DREAM_SETTINGS
from unmask.models.pretrained.settings import (
    DREAM_FIXED,
    DREAM_HARMLESS,
    DREAM_HONOURED,
    LLADA_FIXED,
    LLADA_HARMLESS,
    LLADA_HONOURED,
)

TABLES = {
    "llada": (LLADA_HONOURED, LLADA_FIXED, LLADA_HARMLESS),
    "dream": (DREAM_HONOURED, DREAM_FIXED, DREAM_HARMLESS),
}

dream_config = checked_as(Qwen2Config, DREAM_SETTINGS)

PUBLISHED: dict[str, dict[str, Any]] = {
    "llada": {
        "alibi_bias_max": 8.0,
        "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": False,
        "clip_qkv": None,
        "flash_attention": False,
        "init_cutoff_factor": None,
        "init_device": "meta",
        "init_fn": "mitchell",
        "init_std": 0.02,
        "multi_query_attention": None,
        "precision": "amp_bf16",
        "transformers_version": "4.46.3",
        "use_cache": False,
    },
    "dream": {
        "max_window_layers": 28,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.2",
        "use_mrope": False,
    },
}
"""Keys of the published configurations that the tiny ones leave out."""


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_published_configurations_are_taken_whole(layout, tmp_path):
    query = Query.of(torch.tensor(TOKENS), MASK)
    plain = unmask.load(write(tmp_path / "a", layout))(query)
    assert torch.equal(unmask.load(write(tmp_path / "b", layout, **PUBLISHED[layout]))(query), plain)


def test_a_dream_that_the_library_wrote_is_taken_whole(tmp_path):
    query = Query.of(torch.tensor(TOKENS), MASK)
    plain = unmask.load(write(tmp_path / "a", "dream"))(query)
    saved = {**dream_config(DREAM).to_dict(), "model_type": "Dream", "architectures": ["DreamModel"]}
    again = write(tmp_path / "b", "dream", **{**saved, "mask_token_id": MASK, "rope_theta": "absent"})
    assert torch.equal(unmask.load(again)(query), plain)
    with pytest.raises(AdapterError, match="unsupported: layer_types"):
        unmask.load(write(tmp_path / "c", "dream", layer_types=["full_attention", "sliding_attention"]))


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_no_key_is_in_two_tables(layout):
    honoured, fixed, harmless = map(set, TABLES[layout])
    assert not honoured & fixed | honoured & harmless | fixed & harmless
    assert set(LLADA if layout == "llada" else DREAM) <= honoured | fixed | harmless


@pytest.mark.parametrize("layout", ["llada", "dream"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rope_scaling", {"type": "yarn", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "linear", "factor": 4.0}),
        ("rope_parameters", {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}),
        ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        ("rope_scaling", "linear"),
        ("attention_bias", True),
        ("logit_softcap", 30.0),
        ("n_shared_experts", 2),
    ],
)
def test_what_would_be_passed_over_is_refused_by_name(layout, name, value, tmp_path):
    with pytest.raises(AdapterError, match=f"unsupported: {name} "):
        unmask.load(write(tmp_path, layout, **{name: value}))


@pytest.mark.parametrize("layout", ["llada", "dream"])
def test_the_base_of_positions_is_read_wherever_it_is_said(layout, tmp_path):
    query = Query.of(torch.tensor(TOKENS), MASK)
    plain = unmask.load(write(tmp_path / "a", layout))(query)
    base = (LLADA if layout == "llada" else DREAM)["rope_theta"]
    other = {"rope_type": "default", "rope_theta": base}
    same = write(tmp_path / "b", layout, rope_theta="absent", rope_parameters=other)
    assert torch.equal(unmask.load(same)(query), plain)
    different = write(tmp_path / "c", layout, rope_theta=100.0)
    assert (unmask.load(different)(query) - plain)[:, :MASK].abs().max() > 1e-3
    with pytest.raises(AdapterError, match="given twice"):
        unmask.load(write(tmp_path / "d", layout, rope_parameters={**other, "rope_theta": 7.0}))
    for odd in (0, -1.0, "1e6", True, float("inf")):
        with pytest.raises(AdapterError, match=r"rope_theta must be a number > 0"):
            unmask.load(write(tmp_path / "e", layout, rope_theta=odd))


def test_configurations_of_the_library_are_unchanged_by_what_is_harmless():
    assert llada_config({**LLADA, **PUBLISHED["llada"]}).to_dict() == llada_config(LLADA).to_dict()
    assert dream_config({**DREAM, **PUBLISHED["dream"]}).to_dict() == dream_config(DREAM).to_dict()
