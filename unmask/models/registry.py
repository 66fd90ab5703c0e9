"""Loading models: the embedded ones by name, checkpoints by path, those of the hub by owner and name."""

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
    smoothing: float | None = None,
    batch_invariant: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    **options: Any,
) -> NetworkDenoiser:
    """Loads a model as a denoiser; language models that come with a tokenizer as a `LanguageModel`.

    Models of the Transformers library, and those of the hub, need the extra `train`. No code that comes with a model is
    run, and of a model of the hub neither code nor pickles are downloaded.

    Args:
        model: The name of an embedded model (one of `EMBEDDED`); or a folder with weights in safetensors and
            `config.json`, or the name of one on the hub (`owner/name`, or `owner/name@revision`), which is downloaded
            to the hub's cache if it is not there: a checkpoint of this package, a diffusion language model of a family
            in `docs/families.md`, or any masked language model.
        device: Where to put it.
        dtype: Of its weights and activations.
        shift: Of an adapted Llama or Qwen that does not say it: whether position `i` is predicted by output `i - 1`.
        block_causal: Of a model with block-causal attention whose files do not say it: positions look at their own
            block of so many, counted from the first position, and at the blocks before it.
        mask_id: Id of the mask token of a model of the Transformers library whose files do not name it.
        smoothing: The ε of the label smoothing that a model of the Transformers library was trained with, to be undone
            in everything it says (see `unmask.draws.smoothing`; `unmask doctor --model` sees it): what is certain is
            then of no entropy.
        batch_invariant: Whether to evaluate sequences one by one, so that no bit depends on what they are batched with
            (see `NetworkDenoiser.batch_invariant`). Without, sums may be made in another order in another batch.
        revision: Branch, tag or commit of a model of the hub; default: its branch `main`.
        token: Of the hub, for a model that is private or gated; default: `HF_TOKEN`, or that of `hf auth login`.
        local_files_only: Take a model of the hub as it was downloaded before, and ask the hub nothing.
        **options: Of `from_pretrained` for models of the Transformers library, such as `device_map` (instead of
            `device`) or `quantization_config`.

    Raises:
        AdapterError: If there is no such model, the hub does not give it, or the checkpoint is unreadable, foreign or
            does not fit.
        ValueError: If an option does not apply to the model.
    """
    variant = options.get("variant")
    with model_folder(
        model, revision=revision, token=token, local_files_only=local_files_only, variant=variant
    ) as folder:
        loaded = _load(folder, device, dtype, shift, block_causal, mask_id, smoothing, options)
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
