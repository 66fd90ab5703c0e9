"""LLaDA-MoE: the library's Qwen3 mixture of experts with bidirectional attention.

Its `model_type` may be LLaDA's, "llada"; the fields of its experts distinguish the two.

References:
    Zhu et al. (2025), arXiv:2509.24389, LLaDA-MoE; the arithmetic is that of `modeling_lladamoe.py`, which the authors
    publish beside their weights.
"""

from __future__ import annotations

from typing import Any

from transformers import Qwen3MoeConfig

from ...checks import whole
from .counterparts import BOTH_WAYS
from .settings import ABOUT, Settings, rope_theta

MARKS = ("expert_intermediate_size", "moe_layer_freq")
"""Fields that a LLaDA-MoE has and a LLaDA does not have."""

_NEEDED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps", "qk_layernorm"),
    *("num_experts", "num_experts_per_tok", "expert_intermediate_size", "moe_layer_freq"),
)

LLADA_MOE = Settings(
    honoured=frozenset(
        (
            *_NEEDED,
            *("dense_intermediate_size", "num_key_value_heads", "max_position_embeddings", "attention_bias"),
            *("rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "quantization_config"),
        )
    ),
    fixed={
        "clip_qkv": (None,),
        "hidden_act": ("silu",),
        "is_causal": (False, None),
        "moe_router_enable_expert_bias": (False, None),
        "moe_router_score_function": ("softmax", None),
        "partial_rotary_factor": (1, None),
        "qk_layernorm": (True,),
        "routed_scaling_factor": (1, None),
        "router_num_group": (None,),
        "router_topk_group": (None,),
        "shared_expert_intermediate_size": (None,),
    },
    harmless=ABOUT
    | {
        "attention_dropout",  # used in training only
        "initializer_range",  # for new weights; here they are read from the files
        "norm_topk_prob",  # the authors' code never normalises the weights of the experts, whatever this says
        "output_router_logits",  # changes only what is returned
        "router_aux_loss_coef",  # used in training only
    },
    needed=_NEEDED,
)


def llada_moe_config(config: dict[str, Any]) -> Qwen3MoeConfig:
    """Returns the configuration of the Qwen3Moe that computes the same as a LLaDA-MoE.

    Args:
        config: The content of its `config.json`.

    Raises:
        ValueError: If a setting is missing, has no counterpart here, or does not fit the others. The message names it.
    """
    LLADA_MOE.check(config)
    layers, mixed = config["num_hidden_layers"], config["moe_layer_freq"]
    if not isinstance(mixed, list) or len(mixed) != layers or not all(one in (0, 1) for one in mixed):
        raise ValueError(f"moe_layer_freq {mixed!r:.60} is not a list of {layers} numbers 0 or 1, one for each layer")
    dense = [number for number, one in enumerate(mixed) if not one]
    if dense and config.get("dense_intermediate_size") is None:
        raise ValueError(
            f"the configuration lacks dense_intermediate_size, the MLP size of layers {', '.join(map(str, dense))}"
        )
    hidden, heads = (whole(name, config[name]) for name in ("hidden_size", "num_attention_heads"))
    whole("num_experts_per_tok", config["num_experts_per_tok"], 1, whole("num_experts", config["num_experts"]))
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps", "num_experts")
    same += ("num_experts_per_tok", "max_position_embeddings", "tie_word_embeddings", "quantization_config")
    fields: dict[str, Any] = {
        **{name: config[name] for name in same if config.get(name) is not None},
        **({"intermediate_size": config["dense_intermediate_size"]} if dense else {}),
        "moe_intermediate_size": config["expert_intermediate_size"],
        "mlp_only_layers": dense,
        "norm_topk_prob": False,
        "head_dim": hidden // heads,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "attention_bias": bool(config.get("attention_bias")),
        "rope_parameters": {"rope_type": "default", "rope_theta": rope_theta(config, None)},
        **BOTH_WAYS,
    }
    return Qwen3MoeConfig(**fields)
