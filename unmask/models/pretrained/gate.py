"""The one place where the Transformers library reads a folder: no code of the folder is run, and no question is asked.

A published checkpoint may name Python files of its own (`auto_map`, `custom_generate`), pickled weights, adapters and
kernels to download. By default the library asks on standard input whether to run such files, and text that is piped to
the program could answer that question. Therefore every call of a `from_pretrained` is in this module (a test looks for
others), and every key that may lead to code is removed from a configuration before the library sees it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from ...errors import AdapterError
from ..networks.checkpoint import read_config
from .weights import Held, check_experts, check_numbers, check_sizes, held

NEVER_READ = (
    "auto_map",
    "custom_generate",
    "custom_pipelines",
    "trust_remote_code",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
    "fusion_config",
    "transformers_weights",
    "adapter_kwargs",
    "_name_or_path",
    "name_or_path",
)
"""Keys of a `config.json`, at any depth, that name code, kernels or files: they are ignored."""

_DISTRIBUTED = re.compile(r"shard-\d+-model-.*\.safetensors$")
"""Names of the files of a distributed checkpoint, which the library would read instead of the files checked here."""

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "trust_remote_code": ((False, None), "no code of a checkpoint is run"),
    "local_files_only": ((True,), "the model is read from a folder"),
    "use_safetensors": ((True, None), "only safetensors are read"),
    "weights_only": ((True,), "only safetensors are read"),
    "gguf_file": ((None,), "only safetensors are read"),
    "state_dict": ((None,), "only safetensors are read"),
    "adapter_kwargs": ((None,), "adapters are not loaded"),
    "subfolder": (("", None), "the model is read from the given folder itself"),
    "fusion_config": ((None,), "kernels are not replaced"),
    "config": ((None,), "the folder's config.json is read"),
    "output_loading_info": ((False, None), "the weights are always checked"),
    "ignore_mismatched_sizes": ((False, None), "weights of another shape would be replaced by random ones"),
    "key_mapping": ((None,), "the names of the tensors are known"),
    "use_kernels": ((False, None), "kernels are not downloaded"),
    "kernel_config": ((None,), "kernels are not downloaded"),
    "allow_all_kernels": ((False, None), "kernels are not downloaded"),
}
"""Refused options of `from_pretrained`: the values that are accepted and ignored, and why all others are refused."""


def check_options(options: Mapping[str, Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Checks the options of `from_pretrained`, and returns those that are passed on to the library.

    Args:
        options: The options as the user gave them.
        device: The device to put the model on.

    Raises:
        ValueError: If an option would run code, read other files than safetensors, or download something, or if both
            `device_map` and a device other than `"cpu"` are given.
    """
    for name, value in options.items():
        fine, why = REFUSED.get(name, ((value,), ""))
        if not any(value is one for one in fine):
            raise ValueError(f"{name}={value!r:.60} is not possible here: {why}; leave it out")
    for name in ("attn_implementation", "experts_implementation"):
        if "/" in str(options.get(name)):
            raise ValueError(f"{name}={options[name]!r} is not possible here: kernels are not downloaded")
    if options.get("device_map") is not None and str(device) != "cpu":
        raise ValueError(f"device={str(device)!r} and device_map both say where to put the model; give one of them")
    return {name: value for name, value in options.items() if name not in REFUSED}


def read_model(
    auto: Any, folder: Path, dtype: torch.dtype, config: PreTrainedConfig | None = None, **options: Any
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Reads a model from the safetensors of a folder.

    Args:
        auto: The library's class to load the model with.
        folder: The folder.
        dtype: Type of the weights.
        config: The configuration of the model; default: the folder's.
        **options: Options of `from_pretrained`, checked by `check_options`.

    Returns:
        The model, and the library's loading info: the weights that are missing, unexpected, or of another shape.

    Raises:
        AdapterError: If the folder has no safetensors, or cannot be loaded.
    """
    found = look_at(folder, read_config(folder), options.get("variant"))
    config = native_config(folder, read_config(folder)) if config is None else config
    with _reading(folder, "as a model"):
        check_sizes(folder, auto, config, found)
        return auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the loading info, and the caller names them
            **options,
        )


def look_at(folder: Path, fields: Mapping[str, Any], variant: str | None = None) -> Held:
    """Reads the headers of a folder's safetensors and compares its configuration with them, before a model is built.

    Args:
        folder: The folder.
        fields: The content of its `config.json`.
        variant: A variant of the weights, as in `model.VARIANT.safetensors`.

    Raises:
        AdapterError: If there are no safetensors, they are damaged or lack a tensor of an expert, or a number in the
            configuration is far larger than they can support.
    """
    found = held(weight_files(folder, variant))
    check_numbers(folder, fields, found)
    check_experts(folder, found)
    return found


def native_config(folder: Path, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns the library's own configuration for the content of a `config.json`.

    Args:
        folder: The folder, named in the messages.
        fields: The content of its `config.json`.

    Raises:
        AdapterError: If the library does not know the `model_type`, or refuses the configuration.
    """
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        needs = "; it would need the checkpoint's own Python files, which are never run" if "auto_map" in fields else ""
        raise AdapterError(f"{folder} holds a {kind!r} model, which this version of transformers does not know{needs}")
    with _reading(folder, "as a model"):
        return CONFIG_MAPPING[kind].from_dict(without_code(dict(fields)))


def without_code(value: Any) -> Any:
    """Returns a configuration without the keys of `NEVER_READ`, at any depth."""
    if isinstance(value, dict):
        return {name: without_code(item) for name, item in value.items() if name not in NEVER_READ}
    return value


def weight_files(folder: Path, variant: str | None = None) -> dict[str, Path]:
    """Returns the safetensors files of a folder by name, and refuses a folder whose weights are not all in such files.

    Args:
        folder: The folder.
        variant: A variant of the weights, as in `model.VARIANT.safetensors`.

    Raises:
        AdapterError: If there are none, an index names files of another kind or files that are missing, or the folder
            holds an adapter or a distributed checkpoint.
    """
    end = "safetensors" if variant is None else f"{variant}.safetensors"
    if (folder / "adapter_config.json").exists():
        raise AdapterError(f"{folder} holds an adapter (adapter_config.json); merge it into its model and save that")
    if any(_DISTRIBUTED.match(path.name) for path in folder.iterdir()):
        raise AdapterError(f"{folder} was written by several processes; save its model in one piece")
    if (folder / f"model.{end}").is_file():
        return {f"model.{end}": folder / f"model.{end}"}
    path = folder / ("model.safetensors.index.json" if variant is None else f"model.safetensors.index.{variant}.json")
    if not path.is_file():
        raise AdapterError(f"{folder} has no model.{end}; other formats can run code when they are read")
    index = read_json(path)
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files:
        raise AdapterError(f'{path} has no "weight_map" that names the file of each tensor')
    for tensor, name in files.items():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise AdapterError(f"{path}: {tensor} is in {name!r}, which is not a safetensors file of this folder")
        if not (folder / name).is_file():
            raise AdapterError(f"{folder} lacks {name}, which {path.name} names")
    return {name: folder / name for name in sorted(set(files.values()))}


def read_tokenizer(folder: Path, kind: type[PreTrainedTokenizerBase] | None = None) -> PreTrainedTokenizerBase:
    """Reads the tokenizer of a folder.

    Args:
        folder: The folder.
        kind: The class of the tokenizer; default: the class that its files name.

    Raises:
        AdapterError: If the tokenizer cannot be loaded.
    """
    if kind is not None:
        with _reading(folder, "as a tokenizer"):
            return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    fields = said_config(folder)
    known = isinstance(fields.get("model_type"), str) and fields["model_type"] in CONFIG_MAPPING
    with _reading(folder, "as a tokenizer"):
        unknown = PreTrainedConfig.from_dict({"tokenizer_class": fields.get("tokenizer_class")})
        return AutoTokenizer.from_pretrained(
            folder,
            config=native_config(folder, fields) if known else unknown,
            local_files_only=True,
            trust_remote_code=False,
        )


def said_config(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's `config.json`, or an empty dictionary if it has none, as a bare tokenizer's.

    Raises:
        AdapterError: If the file cannot be read.
    """
    return read_config(folder) if (folder / "config.json").exists() else {}


def check_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Encodes and decodes a text once, so that a broken tokenizer is refused when it is loaded.

    Args:
        folder: The folder, named in the messages.
        tokenizer: The tokenizer.

    Raises:
        AdapterError: If the tokenizer fails, or has special tokens without an id.
    """
    known: Any = tokenizer
    with _reading(folder, "as a tokenizer"):
        known.decode(known("1 + a")["input_ids"], skip_special_tokens=True)
        ids = [known.mask_token_id, known.eos_token_id, known.sep_token_id, *known.all_special_ids]
        known.get_added_vocab()
    if not all(token is None or isinstance(token, int) for token in ids):
        raise AdapterError(f"the tokenizer of {folder} has special tokens that are not in its vocabulary: {ids}")


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file.

    Raises:
        AdapterError: If the file cannot be read, or does not hold an object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"cannot read {path} ({said(error)})") from error
    if not isinstance(found, dict):
        raise AdapterError(f"{path} holds a JSON {type(found).__name__}, expected an object")
    return found


def said(error: BaseException) -> str:
    """Returns the type and message of an exception in one line, with at most 300 characters of the message."""
    text = " ".join(str(error).split())
    if type(error).__name__.startswith("StrictDataclass") and "Field '" in text:
        where = text.index("Field '")
        return f"config.json: {text[where : where + 300]}"
    text = text if len(text) <= 300 else f"{text[:300]}..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextlib.contextmanager
def _reading(folder: Path, what: str) -> Iterator[None]:
    """Turns any exception that the library raises into an `AdapterError`, which names the folder.

    That includes exceptions that are not derived from `Exception`, such as the panics of the tokenizers library.
    """
    try:
        with quiet():
            yield
    except (AdapterError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise AdapterError(f"cannot load {folder} {what} ({said(error)})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the library's progress bars and warnings, within a `with` block."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
