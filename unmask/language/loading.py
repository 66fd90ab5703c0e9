"""Which kind of language model a folder of the Transformers library holds, and loading it with its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..denoiser import NetworkDenoiser
from ..draws.smoothing import checked_smoothing
from ..errors import AdapterError
from ..models.networks.checkpoint import read_config
from ..models.pretrained.bidirectional import load_bidirectional
from ..models.pretrained.families import family_of, known
from ..models.pretrained.gate import said
from ..models.pretrained.hf import check_kind
from ..models.pretrained.masked_lm import HFMaskedDenoiser, MaskedLM, load_masked_lm
from ..models.pretrained.said import TOKENIZER_FILES, end_ids_of, generation_of
from ..models.pretrained.vocabulary import tokenizer_of
from .model import LanguageModel


def load_language(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    shift: bool | None,
    block_causal: int | None,
    options: dict[str, Any],
    mask_id: int | None = None,
    smoothing: float | None = None,
) -> NetworkDenoiser:
    """Loads a language model; one without a tokenizer, such as one trained here on a task, is a denoiser only.

    Args:
        folder: Of the Transformers library.
        device: Where to put it.
        dtype: The type of its weights and activations.
        shift: Whether position `i` is predicted by output `i - 1`, for a model that does not say it.
        block_causal: Length of the blocks of an adapted model with block-causal attention.
        options: The options of `from_pretrained`.
        mask_id: Id of the mask token, for a folder that does not name it.
        smoothing: Label smoothing to undo (see `unmask.draws.smoothing`).

    Raises:
        AdapterError: If it is another kind of model, is damaged, or does not say which token is the mask.
        ValueError: If `shift` or `block_causal` is given for a model that it does not apply to, or is out of range, or
            `smoothing` is not in [0, 1).
    """
    smoothing = checked_smoothing(0.0 if smoothing is None else smoothing)
    config = read_config(folder)
    if family_of(config) is not None:
        network = load_bidirectional(folder, device, dtype, shift, block_causal, mask_id, **options)
    elif shift is not None or block_causal is not None:
        given = "block_causal" if shift is None else "shift"
        raise ValueError(f"{given} does not apply to {folder}, which holds a {config.get('model_type')}")
    else:
        check_kind(folder, config, "masked", known())
        network = load_masked_lm(folder, device, dtype, mask_id, **options)
    network.smoothing = smoothing
    check_works(folder, network)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        return HFMaskedDenoiser(network)
    tokenizer = tokenizer_of(folder)
    ends = end_ids_of(config, tokenizer, network.vocab_size, generation_of(folder))
    return LanguageModel(network, network.vocab_size, network.mask_id, tokenizer, ends, network.max_length)


def check_works(folder: Path, network: MaskedLM) -> None:
    """Evaluates a network once, on two tokens, so that a configuration that only looks right is refused at once.

    A network without memory (the device `meta`) is not tried, nor one that chooses its attention by what it is shown
    first and keeps to it (BigBird).

    Raises:
        AdapterError: If it cannot be evaluated.
    """
    device = next(network.parameters()).device
    if device.type == "meta" or hasattr(network.model.base_model, "set_attention_type"):
        return
    x = torch.tensor([[int(network.mask_id == 0), network.mask_id]], device=device)
    try:
        with torch.no_grad():
            network.eval()(x, x == network.mask_id)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a network built on settings that do not go together may raise
        raise AdapterError(
            f"{folder}: the {type(network.model).__name__} cannot be evaluated ({said(error)})"
        ) from error
