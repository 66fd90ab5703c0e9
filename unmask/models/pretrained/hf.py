"""Folders of the Transformers library: checks the kind of model they hold, and loads it from the disk only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ...errors import AdapterError
from ..networks.checkpoint import read_config, some
from .gate import check_options, read_model
from .gate import quiet as quiet
from .vocabulary import tokenizer_of as tokenizer_of

Kind = Literal["masked", "causal"]

_TAKES_MASKS = (
    *("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
    *("LLaDA2ForMaskedLM", "DiTForMaskedLM"),
)
"""Classes whose body takes a four-dimensional attention mask, position ids, and a key/value cache."""

_ADVICE = {
    "masked": "expected a masked language model, such as BertForMaskedLM or ModernBertForMaskedLM",
    "causal": "expected a causal language model, such as GPT2LMHeadModel or LlamaForCausalLM",
}


def check_kind(folder: Path | str, config: dict[str, Any], wanted: Kind, advice: str = "") -> None:
    """Refuses a folder whose configuration names another kind of model.

    Args:
        folder: The folder, named in the message.
        config: The content of its `config.json`.
        wanted: The kind of model that it must hold.
        advice: Advice about a model that the library does not know, for the message.

    Raises:
        AdapterError: If it is a sequence-to-sequence model, causal where a masked one is wanted or the reverse, or of a
            kind that the installed library does not know.
    """
    masked, causal = set(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()), set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    kind = config.get("model_type")
    kind = kind if isinstance(kind, str) else None
    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else f"a {kind} model"
    if config.get("is_encoder_decoder"):
        raise AdapterError(f"{folder} holds {name}, a sequence-to-sequence model; {_ADVICE[wanted]}")
    if name in masked or name in causal:
        is_causal = name not in masked or bool(config.get("is_decoder"))
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        is_causal = kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or bool(config.get("is_decoder"))
    else:
        raise AdapterError(
            f"{folder} holds {name} (model_type {kind!r:.60}), which is not a language model that this version of"
            f" transformers knows{f'; {advice}' if advice else ''}"
        )
    if is_causal != (wanted == "causal"):
        raise AdapterError(f"{folder} holds {name}, a {'causal' if is_causal else 'masked'} model; {_ADVICE[wanted]}")


def pretrained(
    auto: Any,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    *,
    extra: bool = True,
    config: PreTrainedConfig | None = None,
    **options: Any,
) -> PreTrainedModel:
    """Loads a model, in evaluation mode, from the safetensors of a folder; no code of the folder is run.

    Args:
        auto: The library's class to load the model with, such as `AutoModelForMaskedLM`.
        folder: The folder.
        dtype: The type of the weights.
        extra: Whether the folder may hold weights that the model does not have.
        config: The configuration of the model; default: the folder's.
        **options: Options of `from_pretrained`.

    Raises:
        AdapterError: If there are no safetensors, they cannot be read, or weights have another shape or are missing
            (the library would draw those at random) or, unless `extra`, are left over. The message names them.
    """
    model, info = read_model(auto, folder, dtype, config, **options)
    other = [
        f"{name} has the shape {_shape(held)} in the files, but {_shape(wanted)} by config.json"
        for name, held, wanted in sorted(info["mismatched_keys"], key=str)
    ]
    if other:
        raise AdapterError(f"{folder} does not fit its config.json: {some(other, '; ', most=5)}")
    if missing := sorted(info["missing_keys"]):
        raise AdapterError(f"{folder} lacks weights of {type(model).__name__}: {some(missing, most=5)}")
    if not extra and (left := sorted(info["unexpected_keys"])):
        raise AdapterError(f"{folder} has weights that {type(model).__name__} does not have: {some(left, most=5)}")
    return model.eval()


def placed(
    auto: Any,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device | str,
    options: Mapping[str, Any],
    *,
    extra: bool = True,
    config: PreTrainedConfig | None = None,
    names: Mapping[str, str] | None = None,
) -> PreTrainedModel:
    """Loads a model as `pretrained` does, checks the user's options, and puts the model on a device.

    Args:
        auto: The library's class to load the model with.
        folder: The folder.
        dtype: Type of the weights.
        device: The device to put the model on. If the options hold a `device_map`, or the weights are quantized and
            this is `"cpu"`, the library decides.
        options: The options of `from_pretrained`, as the user gave them.
        extra: As in `pretrained`.
        config: As in `pretrained`.
        names: Patterns of the tensor names in the files, and the names in the model.

    Raises:
        AdapterError: As `pretrained`.
        ValueError: If an option is refused (see `check_options`).
    """
    given = check_options(options, device)
    fields = read_config(folder)
    quantized = bool(given.get("quantization_config") or fields.get("quantization_config"))
    if quantized and "device_map" not in given and str(device) != "cpu":
        given["device_map"] = {"": device}  # quantized weights cannot be moved
    # PyTorch 2.8 has the grouped matrix product on GPUs only, but Transformers 5.10 uses it on CPUs as well.
    on_gpus_only = hasattr(torch, "_grouped_mm") and not hasattr(torch.nn.functional, "grouped_mm")
    if on_gpus_only and torch.device(device).type == "cpu" and any("experts" in name for name in fields):
        given.setdefault("experts_implementation", "eager")
    if names is not None:
        given["key_mapping"] = dict(names)
    model = pretrained(auto, folder, dtype, extra=extra, config=config, **given)
    if quantized or given.get("device_map") is not None:
        return model
    return model.to(device)  # pyright: ignore[reportArgumentType]


def check_tied(folder: Path, model: PreTrainedModel) -> None:
    """Refuses a folder whose configuration ties the output projection to the embedding, but whose files hold both.

    The library then keeps both matrices. Its versions up to 4, for which published code was written, use the embedding
    for both.

    Args:
        folder: The folder, named in the message.
        model: The model that was loaded from it.

    Raises:
        AdapterError: If the files hold both matrices, and they differ.
    """
    if not getattr(model.config, "tie_word_embeddings", False):
        return
    tables = [
        getattr(module, "weight", None) for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    first, second = (one if isinstance(one, Tensor) and one.device.type != "meta" else None for one in tables)
    if first is None or second is None or first is second or first.device != second.device:
        return
    if first.shape == second.shape and not torch.equal(first, second):
        raise AdapterError(
            f"{folder}: config.json says tie_word_embeddings (weight_tying), but the files hold an output layer that"
            " differs from the embeddings; set it to false to use that layer, or take the layer out of the files"
        )


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "of one number"


def run_both_ways(model: PreTrainedModel) -> None:
    """Configures a causal model for bidirectional attention without a key/value cache; other models do not change."""
    if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        model.config.is_causal = False
        model.config.use_cache = False


def check_attention(model: PreTrainedModel, wanted: str) -> None:
    """Refuses a model whose attention does not support a mask for each pair of positions.

    Args:
        model: The model.
        wanted: The feature that needs such a mask, named in the message.

    Raises:
        ValueError: If the class of the model is not supported, its attention is causal or has a sliding window, or is
            computed in another way than `sdpa` or `eager`.
    """
    kind, config = type(model).__name__, model.config
    if kind not in _TAKES_MASKS:
        raise ValueError(f"{wanted} is for LLaDA, Dream, and adapted Llama and Qwen models; this is a {kind}")
    if getattr(config, "is_causal", True):
        raise ValueError(f"{wanted} is for models that unmask; the attention of this {kind} is causal")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError(f"{wanted} does not go with the sliding window of this {kind}")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{wanted} needs attn_implementation 'sdpa' or 'eager', but this {kind} has {config._attn_implementation!r}"
        )
