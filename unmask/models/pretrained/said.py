"""What a checkpoint says about its tokens: which is the mask, and which end a text.

Several files may say it: `config.json`, `generation_config.json` and the tokenizer's. A configuration also holds the
defaults of its class, which nobody may have meant.
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
"""Tokens that end a text or a turn of a chat wherever a vocabulary has them."""

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""A folder with one of these has a tokenizer."""


def generation_of(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's `generation_config.json`, nothing if there is none.

    Raises:
        AdapterError: If it cannot be read.
    """
    path = folder / "generation_config.json"
    return read_json(path) if path.is_file() else {}


def mask_id_of(folder: Path, config: dict[str, Any], given: int | None = None, *, usual: int | None = None) -> int:
    """Returns the mask token of a model.

    It is the one that is given; or else what `config.json` names, unless its class has that as a default (XLM's names
    the wrong token); what `generation_config.json` names; the tokenizer's; `mask_index`; the default of the class; and
    the usual one of its family.

    Args:
        folder: The folder.
        config: The content of its `config.json`.
        given: What the user says.
        usual: The mask token of the published models of its family.

    Raises:
        AdapterError: If nothing says it.
        ValueError: If what is given is not a token id.
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
        f"{folder} does not say which token is the mask, neither in config.json nor in generation_config.json nor by"
        " a tokenizer; give its id with mask_id=... (--mask-id)"
    )


def mask_of_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """Returns the mask token of a model in memory, by the same order as `mask_id_of`.

    Raises:
        AdapterError: If nothing says it.
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
    """Returns the id of a mask token that a user gives.

    Raises:
        ValueError: If it is not a whole number >= 0.
    """
    if not _is_token(given):
        raise ValueError(f"mask_id is the id of a token, a whole number >= 0, got {given!r}")
    return given


def end_ids_of(
    config: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    vocab_size: int,
    generation: dict[str, Any] | None = None,
) -> list[int]:
    """Returns the tokens that end a text: those that the files and the tokenizer name, and the usual ends of turns.

    Where there is none of these, as in BERT, it is what the tokenizer puts between texts.

    Args:
        config: The content of `config.json`.
        tokenizer: The tokenizer.
        vocab_size: Number of token ids; others are left out.
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
