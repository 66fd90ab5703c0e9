"""LLaDA's layout: reads it as an equivalent Llama, makes new networks, and writes them.

LLaDA's network is `LlamaForCausalLM` without the causal mask; its tensors have other names.

References:
    Nie et al. (2025), arXiv:2502.09992, LLaDA.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from ...files.writing import replacing, write_atomically
from ..networks.checkpoint import FORMAT
from .counterparts import BOTH_WAYS
from .masked_lm import KEY, MaskedLM
from .neighbours import look_at_neighbours
from .settings import LLADA_FIXED, LLADA_HARMLESS, LLADA_HONOURED, check_settings, rope_theta

LLADA_NAMES = {
    r"^model\.transformer\.wte\.": "model.embed_tokens.",
    r"^model\.transformer\.ln_f\.": "model.norm.",
    r"^model\.transformer\.ff_out\.": "lm_head.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_norm\.": r"model.layers.\1.input_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_norm\.": r"model.layers.\1.post_attention_layernorm.",
    r"^model\.transformer\.blocks\.(\d+)\.q_proj\.": r"model.layers.\1.self_attn.q_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.k_proj\.": r"model.layers.\1.self_attn.k_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.v_proj\.": r"model.layers.\1.self_attn.v_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.attn_out\.": r"model.layers.\1.self_attn.o_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_proj\.": r"model.layers.\1.mlp.gate_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.up_proj\.": r"model.layers.\1.mlp.up_proj.",
    r"^model\.transformer\.blocks\.(\d+)\.ff_out\.": r"model.layers.\1.mlp.down_proj.",
}
"""Patterns of LLaDA's tensor names, and Llama's names. The library supports only one group in a pattern."""

_LLADA_BACK = {
    "model.embed_tokens.": "model.transformer.wte.",
    "model.norm.": "model.transformer.ln_f.",
    "lm_head.": "model.transformer.ff_out.",
    "input_layernorm.": "attn_norm.",
    "post_attention_layernorm.": "ff_norm.",
    "self_attn.o_proj.": "attn_out.",
    "self_attn.": "",
    "mlp.gate_proj.": "ff_proj.",
    "mlp.up_proj.": "up_proj.",
    "mlp.down_proj.": "ff_out.",
}


def llada_config(config: dict[str, Any]) -> LlamaConfig:
    """Returns the configuration of the bidirectional Llama that computes the same as a LLaDA.

    Args:
        config: The content of its `config.json`.

    Raises:
        ValueError: If a setting is missing, or one is on that Llama does not support; the message names it.
    """
    missing = [key for key in ("d_model", "n_heads", "n_layers", "max_sequence_length") if key not in config]
    missing += [] if "embedding_size" in config or "vocab_size" in config else ["vocab_size"]
    missing += [] if config.get("mlp_hidden_size") or config.get("mlp_ratio") else ["mlp_hidden_size"]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    check_settings(config, LLADA_HONOURED, LLADA_FIXED, LLADA_HARMLESS)
    heads = config["n_heads"]
    return LlamaConfig(
        hidden_size=config["d_model"],
        intermediate_size=config.get("mlp_hidden_size") or int(config["mlp_ratio"] * config["d_model"]),
        num_hidden_layers=config["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("n_kv_heads") or heads,
        vocab_size=config.get("embedding_size") or config["vocab_size"],
        max_position_embeddings=config["max_sequence_length"],
        rms_norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta(config)},
        attention_bias=bool(config.get("include_qkv_bias")),
        tie_word_embeddings=bool(config.get("weight_tying")),
        **({"quantization_config": config["quantization_config"]} if "quantization_config" in config else {}),
        **BOTH_WAYS,
    )


def new_llada(settings: dict[str, Any], vocab_size: int, mask_id: int, length: int, pad_id: int | None) -> MaskedLM:
    """Makes an untrained network of LLaDA's architecture; its weights come from PyTorch's generator.

    Args:
        settings: Sizes by LLaDA's names: `d_model`, `n_layers`, `n_heads`, `mlp_hidden_size`, and optionally
            `rope_theta`. `neighbours` is true if attention is initialised to attend to neighbouring positions (see
            `unmask.models.pretrained.neighbours`).
        vocab_size: Number of token ids of the task, the mask token included.
        mask_id: Id of the mask token.
        length: The maximum number of tokens of a sequence.
        pad_id: The task's padding token; `None` if it has none.

    Raises:
        ValueError: If a setting is missing, unknown or unsupported.
    """
    sizes = {name: value for name, value in settings.items() if name != "neighbours"}
    model = LlamaForCausalLM(llada_config(llada_settings(sizes, vocab_size, mask_id, length)))
    if settings.get("neighbours"):
        look_at_neighbours(model)
    return MaskedLM(model, vocab_size, mask_id, pad_id=pad_id)


def llada_settings(settings: dict[str, Any], vocab_size: int, mask_id: int, length: int) -> dict[str, Any]:
    """Returns the content of a LLaDA's `config.json` from its sizes.

    Args:
        settings: Sizes by LLaDA's names.
        vocab_size: Number of token ids, the mask token included.
        mask_id: Id of the mask token.
        length: The maximum number of tokens of a sequence.

    Raises:
        ValueError: If a setting is unknown.
    """
    known = ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "rope_theta", "weight_tying")
    if extra := sorted(set(settings) - set(known)):
        raise ValueError(f"{', '.join(extra)}: not a setting of this network; it has {', '.join(known)}")
    return {
        "model_type": "llada",
        "architectures": ["LLaDAModelLM"],
        "activation_type": "silu",
        "block_type": "llama",
        "block_group_size": 1,
        "layer_norm_type": "rms",
        "rms_norm_eps": 1e-5,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": 10000.0,
        "alibi": False,
        "include_bias": False,
        "include_qkv_bias": False,
        "weight_tying": False,
        "vocab_size": vocab_size,
        "embedding_size": vocab_size,
        "max_sequence_length": length,
        "mask_token_id": mask_id,
        **settings,
        "n_kv_heads": settings.get("n_kv_heads", settings.get("n_heads")),
    }


def save_llada(folder: Path, network: MaskedLM, about: dict[str, Any], end_id: int | None = None) -> None:
    """Writes a network in LLaDA's layout, in bfloat16, each file replaced atomically.

    Args:
        folder: The folder; made if missing.
        network: A Llama with bidirectional attention.
        about: What is stored under `unmask` in `config.json`.
        end_id: The token that ends a text.
    """
    config = network.model.config
    sizes = {
        "d_model": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "mlp_hidden_size": config.intermediate_size,
        "rope_theta": config.rope_parameters["rope_theta"],
        "weight_tying": config.tie_word_embeddings,
    }
    full = llada_settings(sizes, network.vocab_size, network.mask_id, config.max_position_embeddings)
    full |= {"dtype": "bfloat16", "eos_token_id": end_id, "pad_token_id": end_id, KEY: {"format": FORMAT, **about}}
    folder.mkdir(parents=True, exist_ok=True)
    weights = {llada_name(name): weight for name, weight in _weights(network.model).items()}
    with replacing(folder / "model.safetensors") as partial:
        save_file(weights, partial, metadata={"format": "pt"})
    write_atomically(folder / "config.json", (json.dumps(full, indent=2) + "\n").encode())


def llada_name(name: str) -> str:
    """Returns LLaDA's name for a tensor of a Llama."""
    name = re.sub(r"^model\.layers\.(\d+)\.", r"model.transformer.blocks.\1.", name)
    for ours, theirs in _LLADA_BACK.items():
        if ours in name:
            return name.replace(ours, theirs)
    raise AssertionError(f"{name} is not a tensor of a Llama")


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    tied = model.config.tie_word_embeddings
    named: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in named.items()
        if not (tied and name.startswith("lm_head."))
    }
