"""Diffusion language models on causal architectures (LLaDA, Dream, adapted Llama and Qwen), run in both directions.

No code of a checkpoint is run. LLaDA's network is `LlamaForCausalLM` without the causal mask, its tensors under other
names; Dream's is `Qwen2ForCausalLM`, position `i` predicted by output `i - 1`.

References:
    Nie et al. (2025), arXiv:2502.09992, LLaDA; Ye et al. (2025), arXiv:2508.15487, Dream.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from ...errors import AdapterError
from ..networks.checkpoint import FORMAT, read_config, replacing, write_atomically
from .hf import pretrained
from .masked_lm import KEY, MaskedLM, mask_id_of
from .neighbours import look_at_neighbours

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
"""LLaDA's names of tensors, as patterns, and Llama's. Of each pattern the library can use one group only."""

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


_BOTH_WAYS: dict[str, Any] = {
    "is_causal": False,
    "use_cache": False,
    "pad_token_id": None,  # else the embedding of the padding token, which may be the end token, is not trained
    "bos_token_id": None,
    "eos_token_id": None,
}

ADAPTED: dict[str, tuple[type[PreTrainedConfig], type[PreTrainedModel]]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
"""Causal architectures that are run in both directions, by `model_type`, which may be preceded by `a2d-`."""


def llada_config(config: dict[str, Any]) -> LlamaConfig:
    """Returns the configuration of the Llama that computes what a LLaDA computes, in both directions.

    Raises:
        ValueError: If a setting is missing, or one that Llama has no counterpart for is on; it is named.
    """
    missing = [key for key in ("d_model", "n_heads", "n_layers", "max_sequence_length") if key not in config]
    missing += [] if "embedding_size" in config or "vocab_size" in config else ["vocab_size"]
    missing += [] if config.get("mlp_hidden_size") or config.get("mlp_ratio") else ["mlp_hidden_size"]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    expected: dict[str, tuple[Any, ...]] = {
        "block_type": ("llama",),
        "layer_norm_type": ("rms",),
        "activation_type": ("silu", "swiglu"),
        "rope": (True,),
        "alibi": (False,),
        "block_group_size": (1,),
        "input_emb_norm": (False,),
        "scale_logits": (False,),
        "attention_layer_norm": (False,),
        "multi_query_attention": (None, False),
        "clip_qkv": (None,),
        "bias_for_layer_norm": (None, False),
        "include_bias": (False,),
    }
    odd = [f"{key} {config[key]!r}" for key, fine in expected.items() if key in config and config[key] not in fine]
    if odd:
        raise ValueError(f"unsupported: {', '.join(odd)}")
    heads = config["n_heads"]
    return LlamaConfig(
        hidden_size=config["d_model"],
        intermediate_size=config.get("mlp_hidden_size") or config["mlp_ratio"] * config["d_model"],
        num_hidden_layers=config["n_layers"],
        num_attention_heads=heads,
        num_key_value_heads=config.get("n_kv_heads") or heads,
        vocab_size=config.get("embedding_size") or config["vocab_size"],
        max_position_embeddings=config["max_sequence_length"],
        rms_norm_eps=config.get("rms_norm_eps", 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": float(config.get("rope_theta", 10000.0))},
        attention_bias=bool(config.get("include_qkv_bias")),
        tie_word_embeddings=bool(config.get("weight_tying")),
        **({"quantization_config": config["quantization_config"]} if "quantization_config" in config else {}),
        **_BOTH_WAYS,
    )


def dream_config(config: dict[str, Any]) -> Qwen2Config:
    """Returns the configuration of the Qwen2 that computes what a Dream computes, in both directions.

    Raises:
        ValueError: If a setting is missing, or unsupported; it is named.
    """
    missing = [key for key in ("hidden_size", "num_hidden_layers", "vocab_size") if key not in config]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")
    if config.get("use_sliding_window") or config.get("hidden_act", "silu") != "silu" or config.get("rope_scaling"):
        raise ValueError("unsupported: use_sliding_window, rope_scaling, or a hidden_act that is not silu")
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    names += ("vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "quantization_config")
    theta = float(config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0))
    return Qwen2Config(
        **{name: config[name] for name in names if name in config},
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        use_sliding_window=False,
        **_BOTH_WAYS,
    )


def adapted_config(config: dict[str, Any]) -> PreTrainedConfig:
    """Returns the configuration of a Llama or Qwen that was adapted to unmask, in both directions.

    Raises:
        ValueError: If the architecture is another.
    """
    kind = str(config.get("model_type")).lower().removeprefix("a2d-")
    if kind not in ADAPTED:
        raise ValueError(f"model_type {config.get('model_type')!r} is none of {', '.join(ADAPTED)}")
    given = {key: value for key, value in config.items() if key not in ("model_type", "architectures", "auto_map")}
    return ADAPTED[kind][0](**{**given, **_BOTH_WAYS})


def load_bidirectional(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    shift: bool | None = None,
    block_causal: int | None = None,
    **options: Any,
) -> MaskedLM:
    """Loads a LLaDA, a Dream (DiffuCoder, Dream-Coder) or an adapted Llama or Qwen; no code in the folder is run.

    Args:
        folder: With `config.json` and weights in safetensors, in any number of files.
        device: Where to put it.
        dtype: Of its weights and activations.
        shift: Whether position `i` is predicted by output `i - 1`. Dream's are and LLaDA's are not; an adapted model's
            configuration may say it (`right_shift_logits`), and if it does not, it must be given.
        block_causal: Of an adapted model that was trained so: positions look at their own block of so many, counted
            from the first position, and at those before it. Default: at all.
        **options: Of `from_pretrained`, such as `device_map` or `quantization_config`.

    Raises:
        AdapterError: If it is none of these, has an unsupported setting, lacks a weight or has one too many, or does
            not say which token is the mask.
        ValueError: If `block_causal` is out of range, or given for a LLaDA or Dream.
    """
    config = read_config(folder)
    kind = family(config)
    if kind is None:
        raise AdapterError(f"{folder} holds a {config.get('model_type')} model, expected LLaDA, Dream, Llama or Qwen")
    if block_causal is not None and kind in ("llada", "dream"):
        raise ValueError(f"block_causal does not apply to {folder}: a {kind} looks at all positions")
    names: dict[str, Any] = {}
    try:
        if kind == "llada":
            native, auto, names = llada_config(config), LlamaForCausalLM, {"key_mapping": LLADA_NAMES}
        elif kind == "dream":
            native, auto = dream_config(config), Qwen2ForCausalLM
        else:
            native, auto = adapted_config(config), ADAPTED[kind][1]
    except (ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"{folder}: {error}") from error
    usual = {"llada": False, "dream": True}.get(kind, config.get("right_shift_logits"))
    if shift is not None and usual is not None and shift != usual:
        raise AdapterError(f"{folder}: {kind} models are read with shift={usual}, not {shift}")
    shift = usual if shift is None else shift
    if shift is None:
        raise AdapterError(
            f"{folder} holds a {config['model_type']} model, which is causal; if it was adapted to unmask, say whether"
            " position i is predicted by output i - 1: shift=True or shift=False"
        )
    mask_id = mask_id_of(folder, config)
    if not 0 <= mask_id < native.vocab_size:
        raise AdapterError(f"{folder}: mask token {mask_id} is outside the vocabulary of {native.vocab_size} tokens")
    model = pretrained(auto, folder, dtype, extra=False, config=native, **names, **options)
    network = MaskedLM(model, native.vocab_size, mask_id, shift=shift, block_causal=block_causal)
    return network if options else network.to(device)


def family(config: dict[str, Any]) -> str | None:
    """Returns `"llada"`, `"dream"`, a key of `ADAPTED`, or `None` for any other model."""
    kind = str(config.get("model_type")).lower()
    if kind in ("llada", "dream"):
        return kind
    kind = kind.removeprefix("a2d-")
    return kind if kind in ADAPTED else None


def new_llada(settings: dict[str, Any], vocab_size: int, mask_id: int, length: int, pad_id: int | None) -> MaskedLM:
    """Makes an untrained network of LLaDA's architecture; its weights come from PyTorch's generator.

    Args:
        settings: Sizes by LLaDA's names: `d_model`, `n_layers`, `n_heads`, `mlp_hidden_size`, perhaps `rope_theta`;
            and `neighbours`, true if its attention starts there (see `unmask.models.pretrained.neighbours`).
        vocab_size: Number of token ids of the task, the mask token included.
        mask_id: Id of the mask token.
        length: Most tokens of a sequence.
        pad_id: The task's token that is padding.

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

    Raises:
        ValueError: If a setting is unknown.
    """
    known = ("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "rope_theta", "weight_tying")
    if extra := sorted(set(settings) - set(known)):
        raise ValueError(f"{', '.join(extra)}: no setting of this network; it has {', '.join(known)}")
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
        network: A Llama run in both directions.
        about: Kept under `unmask` in `config.json`.
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
    """Returns LLaDA's name of a tensor of Llama."""
    name = re.sub(r"^model\.layers\.(\d+)\.", r"model.transformer.blocks.\1.", name)
    for ours, theirs in _LLADA_BACK.items():
        if ours in name:
            return name.replace(ours, theirs)
    raise AssertionError(f"{name} is no tensor of a Llama")


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    tied = model.config.tie_word_embeddings
    named: dict[str, nn.Parameter] = dict(model.named_parameters(remove_duplicate=False))
    return {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous()
        for name, weight in named.items()
        if not (tied and name.startswith("lm_head."))
    }
