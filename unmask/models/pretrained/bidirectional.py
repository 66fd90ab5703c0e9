"""Loads diffusion language models on causal architectures: any family of the table in `families`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...errors import AdapterError
from ..networks.checkpoint import read_config
from .families import family_of, known
from .gate import look_at, said
from .hf import check_tied, placed
from .masked_lm import MaskedLM
from .said import mask_id_of


def load_bidirectional(
    folder: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    shift: bool | None = None,
    block_causal: int | None = None,
    mask_id: int | None = None,
    **options: Any,
) -> MaskedLM:
    """Loads a model of one of the families in `FAMILIES`; no code in the folder is run.

    Args:
        folder: A folder with `config.json` and weights in safetensors, in any number of files.
        device: The device to put the model on.
        dtype: The type of its weights and activations.
        shift: Whether position `i` is predicted by output `i - 1`. It is known for most families. For an adapted model
            it must be given, unless its configuration says it (`right_shift_logits`).
        block_causal: Block length of block-causal attention: a position attends to its own block, counted from the
            first position, and to the blocks before it. For a family with such attention, it must be given where
            neither the configuration nor the table of families says it. For an adapted model, the default is attention
            to all positions.
        mask_id: Id of the mask token, for a folder that does not name it.
        **options: Options of `from_pretrained`, such as `device_map` or `quantization_config`.

    Raises:
        AdapterError: If the model does not belong to a known family, has an unsupported setting, lacks a weight or has
            one too many, does not name its mask token, or contradicts `shift` or `block_causal`.
        ValueError: If `block_causal` is out of range, or given for a family with attention to all positions, or
            `mask_id` is not a token id.
    """
    config = read_config(folder)
    family = family_of(config)
    if family is None:
        raise AdapterError(f"{folder} holds a {config.get('model_type')!r:.60} model; {known()}")
    size = family.block_of(folder, config, block_causal)
    look_at(folder, config, options.get("variant"))
    try:
        native = family.config(config)
    except Exception as error:  # the library checks its settings in many ways
        raise AdapterError(f"{folder}: {error if type(error) is ValueError else said(error)}") from error
    shifted = family.shift_of(folder, config, shift)
    mask = mask_id_of(folder, config, mask_id, usual=family.mask_id)
    tokens: int = native.vocab_size  # pyright: ignore[reportAttributeAccessIssue]
    if not 0 <= mask < tokens:
        raise AdapterError(f"{folder}: mask token {mask} is outside the vocabulary of {tokens} tokens")
    model = placed(family.auto, folder, dtype, device, options, extra=False, config=native, names=family.names)
    check_tied(folder, model)
    return MaskedLM(model, tokens, mask, shift=shifted, block_causal=size)
