"""Finds the mask token of a checkpoint, and the tokens that end a text.

Several files may name them: `config.json`, `generation_config.json` and those of the tokenizer. A configuration also
holds the defaults of its class, which the authors of the checkpoint may not have chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeGuard

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ...errors import AdapterError
from .gate import read_json
from .vocabulary import tokenizer_of

ENDS = ("<|endoftext|>", "<|eot_id|>", "<|im_end|>")
"""Tokens that end a text or a turn of a chat in every vocabulary that has them."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""A folder with one of these files has a tokenizer."""


def generation_of(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's `generation_config.json`, or an empty dictionary if there is none.

    Raises:
        AdapterError: If the file cannot be read.
    """
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def mask_id_of(folder: Path, config: dict[str, Any], given: int | None = None, *, usual: int | None = None) -> int:
    """Returns the id of a model's mask token.

    It is the first that is known of: the user's; that of `config.json`, unless it is only the default of the class
    (XLM's is the wrong token); that of `generation_config.json`; the tokenizer's; `mask_index` of `config.json`; the
    default of the class; the usual one of the model's family.

    Args:
        folder: The folder.
        config: The content of its `config.json`.
        given: The user's setting `mask_id`; `None` if there is none.
        usual: The mask token of the published models of its family.

    Raises:
        AdapterError: If none of these names a mask token, or a file cannot be read.
        ValueError: If `given` is not a token id.
    """
    if given is not None:
        return checked_mask(given)

    def tokenizer() -> Any:
        try:
            return tokenizer_of(folder)
        except AdapterError:
            if any((folder / name).is_file() for name in TOKENIZER_FILES):
                raise
            return None

    found = _mask(config, lambda: generation_of(folder), tokenizer)
    found = usual if found is None else found
    if found is not None:
        return found
    raise AdapterError(
        f"{folder} does not say which token is the mask, neither in config.json nor in generation_config.json nor in"
        " a tokenizer; give its id with mask_id=... (--mask-id)"
    )


def mask_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Returns the id of the mask token of a model in memory, in the same order as `mask_id_of`.

    Args:
        model: The model.
        tokenizer: Its tokenizer, if it has one.

    Raises:
        AdapterError: If neither the model's configurations nor the tokenizer names a mask token.
    """
    generation = getattr(model, "generation_config", None)
    named = {"mask_token_id": getattr(generation, "mask_token_id", None)}
    found = _mask(model.config.to_dict(), lambda: named, lambda: tokenizer)
    if found is None:
        raise AdapterError("neither the model's configuration nor a tokenizer names the mask token; give mask_id")
    return found


def _mask(config: dict[str, Any], generation: Callable[[], dict[str, Any]], tokenizer: Callable[[], Any]) -> int | None:
    named = config.get("mask_token_id")
    if _is_token(named) and named != _default(config):
        return named
    if _is_token(found := generation().get("mask_token_id")):
        return found
    if _is_token(found := getattr(tokenizer(), "mask_token_id", None)):
        return found
    return next((found for found in (config.get("mask_index"), named) if _is_token(found)), None)


def checked_mask(given: object) -> int:
    """Returns the id of the mask token as a user gave it, checked.

    Raises:
        ValueError: If it is not a whole number >= 0.
    """
    if not _is_token(given):
        raise ValueError(f"mask_id must be the id of a token, a whole number >= 0, got {given!r}")
    return given


def end_ids_of(
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    generation: dict[str, Any] | None = None,
) -> list[int]:
    """Returns the ids of the tokens that end a text, in ascending order.

    They are the tokens that the files and the tokenizer name, and the usual ends of turns (`ENDS`). If there are none
    of these, as in BERT, it is the tokenizer's separator.

    Args:
        config: The content of `config.json`.
        tokenizer: The tokenizer, if there is one.
        vocab_size: Number of the model's token ids; larger ids are left out.
        generation: The content of `generation_config.json`.
    """
    found = [*_several(config.get("eos_token_id")), *_several((generation or {}).get("eos_token_id"))]
    if tokenizer is not None:
        known: Any = tokenizer
        vocabulary = known.get_added_vocab()
        found += [known.eos_token_id, *(vocabulary.get(token) for token in ENDS)]
        if all(token is None for token in found):
            found = [known.sep_token_id]
    return sorted({token for token in found if _is_token(token) and token < vocab_size})


def _several(named: Any) -> Iterable[Any]:
    return named if isinstance(named, (list, tuple)) else (named,)


def _is_token(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _default(config: dict[str, Any]) -> Any:
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    return getattr(CONFIG_MAPPING[kind], "mask_token_id", None)
