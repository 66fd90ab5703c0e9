"""Loading models: the embedded ones by name, checkpoints by path."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..denoiser import NetworkDenoiser
from ..folders import model_folder

if TYPE_CHECKING:
    pass


def load(
    model: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    shift: bool | None = None,
    block_causal: int | None = None,
    mask_id: int | None = None,
    batch_invariant: bool = False,
    **options: Any,
) -> NetworkDenoiser:
    """Loads a model as a denoiser; language models that come with a tokenizer as a `LanguageModel`.

    Models of the Transformers library need the extra `train`. No code that comes with a model is run, and nothing is
    downloaded.

    Args:
        model: The name of an embedded model (one of `EMBEDDED`); or a folder with weights in safetensors and
            `config.json`, or the name of one on the hub (`owner/name`) that is in the local cache: a checkpoint of
            this package, a LLaDA, a Dream, an adapted Llama or Qwen, or any masked language model.
        device: Where to put it.
        dtype: Of its weights and activations.
        shift: Of an adapted Llama or Qwen that does not say it: whether position `i` is predicted by output `i - 1`.
        block_causal: Of an adapted Llama or Qwen that was trained so: positions look at their own block of so many,
            counted from the first position, and at the blocks before it.
        mask_id: Id of the mask token of a model of the Transformers library whose files do not name it (iLLaDA: 5,
            LLaDA-MoE: 156895).
        batch_invariant: Whether to evaluate sequences one by one, so that no bit depends on what they are batched with
            (see `NetworkDenoiser.batch_invariant`). Without, sums may be made in another order in another batch.
        **options: Of `from_pretrained` for models of the Transformers library, such as `device_map` (instead of
            `device`) or `quantization_config`.

    Raises:
        AdapterError: If there is no such model, or the checkpoint is unreadable, foreign or does not fit.
        ValueError: If an option does not apply to the model.
    """
    with model_folder(model) as folder:
        loaded = _load(folder, device, dtype, shift, block_causal, mask_id, options)
        return loaded.batch_invariant() if batch_invariant else loaded


def _load(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    shift: bool | None,
    block_causal: int | None,
    mask_id: int | None,
    options: dict[str, Any],
) -> NetworkDenoiser:
    from .networks import coconet
    from .networks.checkpoint import load_checkpoint, of_transformers, read_checkpoint

    if not coconet.is_coconet(folder) and of_transformers(folder):
        from ..language.loading import load_language

        return load_language(folder, device, dtype, shift, block_causal, options, mask_id)
    ours = {"shift": shift, "block_causal": block_causal, "mask_id": mask_id}
    if extra := [*options, *(name for name, value in ours.items() if value is not None)]:
        raise ValueError(f"{', '.join(extra)} does not apply to {folder}: it is for models of the Transformers library")
    if coconet.is_coconet(folder):
        network = coconet.load_coconet(folder, device=device, dtype=dtype)
        return NetworkDenoiser(network, coconet.VOCAB_SIZE, coconet.MASK_ID, coconet.LENGTH)
    checkpoint = read_checkpoint(folder)
    network = load_checkpoint(folder, device=device, dtype=dtype)
    return NetworkDenoiser(network, **checkpoint.ids(), wants_time=checkpoint.wants_time)
