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
        folder: With `config.json` and weights in safetensors, in any number of files.
        device: Where to put it.
        dtype: The type of its weights and activations.
        shift: Whether position `i` is predicted by output `i - 1`. Of most families it is known; an adapted model's
            configuration may say it (`right_shift_logits`), and if it does not, it must be given.
        block_causal: Positions look at their own block of so many, counted from the first position, and at those before
            it. Of a family that is always so, it is needed where neither the configuration nor the table says it; of an
            adapted model, default: positions look at all others.
        mask_id: Id of the mask token, for a folder that does not name it.
        **options: Of `from_pretrained`, such as `device_map` or `quantization_config`.

    Raises:
        AdapterError: If it is of no family, has an unsupported setting, lacks a weight or has one too many, does not
            say which token is the mask, or says something else than what is given.
        ValueError: If `block_causal` is out of range, or given for a family that looks at all positions, or `mask_id`
            is not a token id.
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
