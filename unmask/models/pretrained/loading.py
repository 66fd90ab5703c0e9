"""Which kind of language model a folder of the Transformers library holds, and loading it with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...denoiser import NetworkDenoiser
from ...language.model import LanguageModel
from ..networks.checkpoint import read_config
from .bidirectional import family, load_bidirectional
from .hf import end_ids_of, tokenizer_of
from .masked_lm import HFMaskedDenoiser, load_masked_lm


def load_language(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    shift: bool | None,
    block_causal: int | None,
    options: dict[str, Any],
) -> NetworkDenoiser:
    """Loads a language model; one without a tokenizer, such as one trained here on a task, is a denoiser only.

    Args:
        folder: Of the Transformers library.
        device: Where to put it.
        dtype: Of its weights and activations.
        shift: Whether position `i` is predicted by output `i - 1`, for a model that does not say it.
        block_causal: Length of the blocks of an adapted model with block-causal attention.
        options: Of `from_pretrained`.

    Raises:
        AdapterError: If it is another kind of model, is damaged, or does not say which token is the mask.
        ValueError: If `shift` or `block_causal` is given for a model that it does not apply to, or is out of range.
    """
    config = read_config(folder)
    if family(config) is not None:
        network = load_bidirectional(folder, device, dtype, shift, block_causal, **options)
    elif shift is not None or block_causal is not None:
        given = "block_causal" if shift is None else "shift"
        raise ValueError(f"{given} does not apply to {folder}, which holds a {config.get('model_type')}")
    else:
        network = load_masked_lm(folder, device, dtype, **options)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return HFMaskedDenoiser(network)
    tokenizer = tokenizer_of(folder)
    ends = end_ids_of(config, tokenizer, network.vocab_size)
    return LanguageModel(network, network.vocab_size, network.mask_id, tokenizer, ends, network.max_length)
