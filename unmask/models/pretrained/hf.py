"""Folders of the Transformers library: what they say they hold, and loading them from the disk and nowhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from ...errors import AdapterError

Kind = Literal["masked", "causal"]

_ENDS = ("<|endoftext|>", "<|eot_id|>", "<|im_end|>")
"""Tokens that end a text or a turn of a chat wherever a vocabulary has them."""

_TAKES_MASKS = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""Classes whose body takes a mask of attention of four dimensions, positions, and keys and values that were kept."""

_ADVICE = {
    "masked": "expected a masked language model, such as BertForMaskedLM or ModernBertForMaskedLM",
    "causal": "expected a causal language model, such as GPT2LMHeadModel or LlamaForCausalLM",
}


def check_kind(folder: Path | str, config: dict[str, Any], wanted: Kind) -> None:
    """Refuses a folder that holds another kind of model, by the name its configuration gives.

    Args:
        folder: Named in the message.
        config: The content of its `config.json`.
        wanted: What it must be.

    Raises:
        AdapterError: If it is a sequence-to-sequence model, causal where a masked one is wanted or the other way round,
            or of a kind the installed library does not know.
    """
    masked, causal = set(MODEL_FOR_MASKED_LM_MAPPING_NAMES.values()), set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    kind = config.get("model_type")
    name = (config.get("architectures") or [f"a {kind} model"])[0]
    if config.get("is_encoder_decoder"):
        raise AdapterError(f"{folder} holds {name}, a sequence-to-sequence model; {_ADVICE[wanted]}")
    if name in masked or name in causal:
        is_causal = name not in masked or bool(config.get("is_decoder"))
    elif kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES or kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        is_causal = kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or bool(config.get("is_decoder"))
    else:
        raise AdapterError(f"{folder} holds {name}, no language model that this version of transformers knows")
    if is_causal != (wanted == "causal"):
        raise AdapterError(f"{folder} holds {name}, a {'causal' if is_causal else 'masked'} model; {_ADVICE[wanted]}")


def pretrained(
    auto: Any, folder: Path, dtype: torch.dtype = torch.float32, *, extra: bool = True, **options: Any
) -> PreTrainedModel:
    """Loads a model, in evaluation mode, from the safetensors of a folder; no code of the folder is run.

    Args:
        auto: The library's class to load it with, such as `AutoModelForMaskedLM`.
        folder: The folder.
        dtype: Of the weights.
        extra: Whether the folder may hold weights that the model has no use for.
        **options: Of `from_pretrained`.

    Raises:
        AdapterError: If there are no safetensors, they cannot be read, or weights are missing (those would be random)
            or, unless `extra`, left over; they are named.
    """
    if not any(folder.glob("*.safetensors")):
        raise AdapterError(f"{folder} has no model.safetensors; other formats can run code when they are read")
    try:
        with quiet():
            model, info = auto.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True, **options
            )
    except Exception as error:  # whatever the library raises for a damaged folder, it is the folder's fault
        raise AdapterError(f"cannot load {folder} as a model ({type(error).__name__}: {error})") from error
    wrong = [*sorted(info["missing_keys"]), *sorted(map(str, info["mismatched_keys"]))]
    if wrong:
        raise AdapterError(
            f"{folder} lacks weights of {type(model).__name__}, or has them in another shape: {_some(wrong)}"
        )
    if not extra and (left := sorted(info["unexpected_keys"])):
        raise AdapterError(f"{folder} has weights that {type(model).__name__} has not: {_some(left)}")
    return model.eval()


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder.

    Raises:
        AdapterError: If there is none; the library would make up one that knows no text.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # as above
        raise AdapterError(f"cannot load the tokenizer of {folder} ({type(error).__name__}: {error})") from error
    files = {*tokenizer.vocab_files_names.values(), "tokenizer.json"}
    if tokenizer.vocab_files_names and not any((folder / name).is_file() for name in files):
        raise AdapterError(f"{folder} has no tokenizer: expected {' or '.join(sorted(files))}")
    return tokenizer


def run_both_ways(model: PreTrainedModel) -> None:
    """Tells a causal model, in its configuration, to look in both directions and to keep no cache."""
    if type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        model.config.is_causal = False
        model.config.use_cache = False


def check_attention(model: PreTrainedModel, wanted: str) -> None:
    """Refuses a model whose attention cannot be told, position by position, where to look.

    Args:
        model: The model.
        wanted: What it is to be told for; named in the message.

    Raises:
        ValueError: If it is no Llama or Qwen, runs in one direction, slides a window, or computes attention in another
            way than `sdpa` or `eager`.
    """
    kind, config = type(model).__name__, model.config
    if kind not in _TAKES_MASKS:
        raise ValueError(f"{wanted} is for LLaDA, Dream, and adapted Llama and Qwen models; this is a {kind}")
    if getattr(config, "is_causal", True):
        raise ValueError(f"{wanted} is for models that unmask; this {kind} looks in one direction")
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise ValueError(f"{wanted} does not go with the sliding window of this {kind}")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(
            f"{wanted} needs attn_implementation 'sdpa' or 'eager', this {kind} has {config._attn_implementation!r}"
        )


def end_ids_of(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase | None, vocab_size: int) -> list[int]:
    """Returns the tokens that end a text: those the configuration and the tokenizer name, and the usual ends of turns.

    Where there is none of these, as in BERT, it is what the tokenizer puts between texts.
    """
    named = config.get("eos_token_id")
    found: list[Any] = list(named) if isinstance(named, (list, tuple)) else [named]
    if tokenizer is not None:
        known: Any = tokenizer
        vocabulary = known.get_added_vocab()
        found += [known.eos_token_id, *(vocabulary.get(token) for token in _ENDS)]
        if all(token is None for token in found):
            found = [known.sep_token_id]
    return sorted({token for token in found if isinstance(token, int) and 0 <= token < vocab_size})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the library from drawing progress bars and from giving advice."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
