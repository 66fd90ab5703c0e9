"""Loads models: embedded ones by name, checkpoints by path, and models of the Hugging Face hub by owner and name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..checks import needs_extra
from ..denoiser import NetworkDenoiser
from ..folders import EMBEDDED, model_folder


def load(
    model: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    shift: bool | None = None,
    block_causal: int | None = None,
    mask_id: int | None = None,
    smoothing: float | None = None,
    batch_invariant: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> NetworkDenoiser:
    """Loads a model as a denoiser; a language model with a tokenizer becomes a `LanguageModel`.

    Models of the Transformers library, and those of the hub, need the extra `train`. No code that comes with a model is
    ever run, and neither code nor pickles are downloaded from the hub.

    Args:
        model: The name of an embedded model (one of `EMBEDDED`), a folder with weights in safetensors and
            `config.json`, or a model on the hub (`owner/name` or `owner/name@revision`), which is downloaded to the
            hub's cache if it is not there. A folder or a model on the hub is a checkpoint of this package, a diffusion
            language model of a family in `docs/families.md`, or any masked language model.
        device: The device to put the model on.
        dtype: The type of its weights and activations.
        shift: Whether position `i` is predicted by output `i - 1`, for an adapted Llama or Qwen whose files do not say.
        block_causal: Block length of a model with block-causal attention whose files do not say it. A position attends
            to its own block, counted from the first position, and to the blocks before it.
        mask_id: Id of the mask token, for a model of the Transformers library whose files do not name it.
        smoothing: The ε of the label smoothing that a model of the Transformers library was trained with. Its effect on
            the predictions is undone, so that certain tokens have an entropy of 0 (see `unmask.draws.smoothing`; the
            command `unmask doctor --model` detects it).
        batch_invariant: Whether to evaluate sequences one by one, so that no bit depends on the batch (see
            `NetworkDenoiser.batch_invariant`). If not, sums may be made in a different order in a different batch.
        revision: Branch, tag or commit of a model of the hub; default: its branch `main`.
        token: Access token of the hub, for a private or gated model; default: `HF_TOKEN`, or that of `hf auth login`.
        local_files_only: Use the downloaded copy of a model of the hub, without contacting the hub.
        **options: Options of `from_pretrained` for models of the Transformers library, such as `device_map` (instead of
            `device`) or `quantization_config`.

    Raises:
        AdapterError: If there is no such model, the hub refuses it, or the checkpoint is unreadable, of an unknown kind
            or does not fit.
        ValueError: If an option does not apply to the model.
    """
    variant = options.get("variant")
    with model_folder(
        model, revision=revision, token=token, local_files_only=local_files_only, variant=variant
    ) as folder:
        loaded = _load(folder, device, dtype, shift, block_causal, mask_id, smoothing, options)
        loaded.source = str(model) if str(model) in EMBEDDED else str(folder)
        return loaded.batch_invariant() if batch_invariant else loaded


def _load(
    folder: Path,
    device: torch.device | str,
    dtype: torch.dtype,
    shift: bool | None,
    block_causal: int | None,
    mask_id: int | None,
    smoothing: float | None,
    options: dict[str, Any],
) -> NetworkDenoiser:
    from .networks import coconet
    from .networks.checkpoint import load_checkpoint, of_transformers, read_checkpoint

    if not coconet.is_coconet(folder) and of_transformers(folder):
        with needs_extra("train", f"{folder.name}, a model of the Transformers library,"):
            from ..language.loading import load_language

        return load_language(folder, device, dtype, shift, block_causal, options, mask_id, smoothing)
    ours = {"shift": shift, "block_causal": block_causal, "mask_id": mask_id, "smoothing": smoothing}
    if extra := [*options, *(name for name, value in ours.items() if value is not None)]:
        raise ValueError(f"{', '.join(extra)} does not apply to {folder}: it is for models of the Transformers library")
    if coconet.is_coconet(folder):
        network = coconet.load_coconet(folder, device=device, dtype=dtype)
        return NetworkDenoiser(network, coconet.VOCAB_SIZE, coconet.MASK_ID, coconet.LENGTH)
    checkpoint = read_checkpoint(folder)
    network = load_checkpoint(folder, device=device, dtype=dtype)
    return NetworkDenoiser(network, **checkpoint.ids(), wants_time=checkpoint.wants_time)
