"""Settings of LLaDA, Dream and related models: those that are passed on, must have one value, or change no logits.

Their networks are computed by the library's Llama and Qwen, so a setting that these do not support must not be ignored
silently: every key of a `config.json` is in one of the tables here, or it is refused, and the message names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .gate import NEVER_READ


@dataclass(frozen=True)
class Settings:
    """What is done with each key of a configuration.

    Attributes:
        honoured: Keys that are passed on under the same name; those of the rotary position embedding and `layer_types`
            are checked instead.
        fixed: Keys that must have one of the given values, if they are present.
        harmless: Keys that do not change the logits.
        needed: Keys that must be present.
        usual: The value of a missing key, where it differs from the default of the library's class.
        rope_theta: Base of the rotary position embedding if the configuration does not give it; `None`: it must.
    """

    honoured: frozenset[str]
    fixed: Mapping[str, tuple[Any, ...]]
    harmless: frozenset[str]
    needed: tuple[str, ...] = ("hidden_size", "num_hidden_layers", "vocab_size")
    usual: Mapping[str, Any] = field(default_factory=dict[str, Any])
    rope_theta: float | None = 10000.0

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuses a configuration that lacks a setting, or has one that cannot be honoured.

        Args:
            config: The content of `config.json`; a key that is null counts as absent.

        Raises:
            ValueError: If there is such a setting; the message names it.
        """
        if missing := [key for key in self.needed if config.get(key) is None]:
            raise ValueError(f"the configuration lacks {', '.join(missing)}")
        check_settings(config, self.honoured, self.fixed, self.harmless)


ABOUT: frozenset[str] = frozenset(
    (
        *NEVER_READ,
        *("architectures", "model_type", "transformers_version", "unmask", "tokenizer_class", "torch_dtype", "dtype"),
        *("id2label", "label2id", "problem_type", "return_dict", "output_attentions", "output_hidden_states"),
        *("is_encoder_decoder", "chunk_size_feed_forward", "use_cache", "use_return_dict", "torchscript"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "mask_token_id", "mask_index"),
    )
)
"""Keys of any configuration that do not change the logits: names, types, token ids, and what a call returns."""

LLADA_HONOURED: frozenset[str] = frozenset(
    (
        *("d_model", "n_layers", "n_heads", "n_kv_heads", "mlp_hidden_size", "mlp_ratio", "vocab_size"),
        *("embedding_size", "max_sequence_length", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters"),
        *("include_qkv_bias", "weight_tying", "quantization_config"),
    )
)

LLADA_FIXED: dict[str, tuple[Any, ...]] = {
    "block_type": ("llama",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
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
    "is_causal": (False, None),
}

LLADA_HARMLESS: frozenset[str] = ABOUT | {
    "alibi_bias_max",  # part of alibi, which is off
    "attention_layer_norm_with_affine",  # part of attention_layer_norm, which is off
    "attention_dropout",  # dropout is used in training only, and a loaded model is only evaluated
    "embedding_dropout",
    "residual_dropout",
    "flash_attention",  # the same attention, computed in another way
    "init_cutoff_factor",  # for new weights; here they are read from the files
    "init_device",
    "init_fn",
    "init_std",
    "precision",  # used in training only
    "rope_full_precision",  # whether the rotary angles are computed in float32
    "tie_word_embeddings",  # the network reads weight_tying instead
}

DREAM_HONOURED: frozenset[str] = frozenset(
    (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "quantization_config"),
        *("rope_theta", "rope_scaling", "rope_parameters", "layer_types"),
    )
)

DREAM_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
    "is_causal": (False, None),
}

DREAM_HARMLESS: frozenset[str] = ABOUT | {
    "attention_dropout",  # used in training only
    "initializer_range",  # for new weights; here they are read from the files
    "max_window_layers",  # part of use_sliding_window, which is off
    "sliding_window",
}

DREAM = Settings(DREAM_HONOURED, DREAM_FIXED, DREAM_HARMLESS)

FAST_DLLM = Settings(
    DREAM_HONOURED,
    DREAM_FIXED,
    DREAM_HARMLESS | {"bd_size"},  # the block length, which is read elsewhere
)

SDAR = Settings(
    DREAM_HONOURED | {"head_dim", "attention_bias"},
    DREAM_FIXED,
    DREAM_HARMLESS
    | {
        "block_size",  # the block length, which is read elsewhere
        *(
            "debug",
            "ep_size",
            "fuse_cross_entropy",
            "micro_forward",
            "skip_checkpoint",
            "use_deepep",
        ),  # used in training only
    },
)
"""The settings of SDAR, TraDo and DreamReasoner."""

SDAR_MOE = Settings(
    SDAR.honoured
    | {"num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"}
    | {"decoder_sparse_step", "mlp_only_layers"},
    SDAR.fixed,
    SDAR.harmless | {"output_router_logits", "router_aux_loss_coef"},  # used in training only
    (*SDAR.needed, "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
)

ILLADA = Settings(
    DREAM_HONOURED | {"head_dim", "attention_bias", "mlp_bias"},
    {"hidden_act": ("silu",), "is_causal": (False, None), "layer_norm_eps": (None,), "sliding_window": (None,)},
    ABOUT
    | {"attention_dropout", "resid_pdrop", "embd_pdrop"}  # used in training only
    | {"initializer_range"},  # for new weights; here they are read from the files
    (*SDAR.needed, "intermediate_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
    # Its embeddings are tied, but the library that wrote the file leaves out what is the default of the class.
    usual={"tie_word_embeddings": True},
    rope_theta=None,
)


def check_settings(
    config: Mapping[str, Any],
    honoured: Iterable[str],
    fixed: Mapping[str, tuple[Any, ...]],
    harmless: Iterable[str],
) -> None:
    """Refuses a configuration with a setting that is unknown, or has an unsupported value.

    Args:
        config: The content of `config.json`; an unknown key that is null counts as absent.
        honoured: Keys that are read.
        fixed: Keys that must have one of the given values.
        harmless: Keys that do not change the logits.

    Raises:
        ValueError: If there is such a setting; the message names it.
    """
    odd = [f"{key} {config[key]!r:.60}" for key, fine in fixed.items() if key in config and config[key] not in fine]
    known = {*honoured, *fixed, *harmless}
    odd += [f"{key} {value!r:.60}" for key, value in sorted(config.items()) if key not in known and value is not None]
    if odd:
        raise ValueError(
            f"unsupported: {', '.join(odd)}; a setting that does not change the logits can be taken out of config.json"
        )


def rope_theta(config: Mapping[str, Any], usual: float | None = 10000.0) -> float:
    """Returns the base of the rotary position embedding, which `config.json` may give in three places.

    Args:
        config: The content of `config.json`.
        usual: The base if `config.json` does not give it; `None`: it must.

    Raises:
        ValueError: If the position embedding is scaled, the base is missing but required or is not a number > 0, or two
            places differ.
    """
    said = {"rope_theta": config.get("rope_theta")}
    for name in ("rope_scaling", "rope_parameters"):
        found = config.get(name)
        if found is None:
            continue
        rest = dict(found) if isinstance(found, Mapping) else {"": found}
        said[f"{name}.rope_theta"] = rest.pop("rope_theta", None)
        kinds = {rest.pop(key, None) for key in ("rope_type", "type")} - {None}
        if rest.get("factor") == 1:
            rest.pop("factor")  # a factor of 1 scales nothing
        if kinds - {"default"} or any(value is not None for value in rest.values()):
            raise ValueError(f"unsupported: {name} {found!r:.120}; positions are not scaled here")
    given = {name: theta for name, theta in said.items() if theta is not None}
    for name, theta in given.items():
        if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < float("inf"):
            raise ValueError(f"{name} must be a number > 0, got {theta!r:.60}")
    if len({float(theta) for theta in given.values()}) > 1:
        raise ValueError(f"the base of the rotary position embedding is given twice, with different values: {given}")
    theta = next(iter(given.values()), usual)
    if theta is None:
        raise ValueError("the configuration lacks rope_theta")
    return float(theta)
