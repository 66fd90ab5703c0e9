"""Loads tokenizers with classes of the Transformers library, also where a folder's own class is Python code.

Code of a folder is never run. Dream, for example, is published with a tokenizer in Python for the vocabulary of a
Qwen2. The library's class is found, in this order: by the name in the tokenizer's configuration; by `tokenizer.json`,
which the library's general class reads; by the base class in the Python code, whose text is parsed; by the names in
`DERIVED`; and by the kind of the model.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name

from ...errors import AdapterError
from .gate import check_tokenizer, read_json, read_tokenizer, said_config

DERIVED = {"DreamTokenizer": "Qwen2Tokenizer"}
"""Published tokenizers in Python whose code does not name the standard class that is equivalent to them."""

KINDS = {"dream": "qwen2"}
"""Kinds of models that the library does not know, and the kinds that have the same vocabulary."""

_PLAIN = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "PreTrainedTokenizerBase", "PythonBackend")
_LONGEST = 1 << 20
"""How many characters of Python code are parsed at most."""


def tokenizer_of(folder: Path) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder with a class of the library.

    Raises:
        AdapterError: If there is no tokenizer, only the folder's own code could read it, it fails, or it gives a token
            another id than `tokenizer_config.json` does.
    """
    path = folder / "tokenizer_config.json"
    said = read_json(path) if path.is_file() else {}
    kind = _own_class(folder, said) if said else None
    tokenizer = read_tokenizer(folder, kind)
    files = {*tokenizer.vocab_files_names.values(), "tokenizer.json"}
    if tokenizer.vocab_files_names and not any((folder / name).is_file() for name in files):
        raise AdapterError(f"{folder} has no tokenizer: expected {' or '.join(sorted(files))}")
    if kind is not None:
        _check_ids(folder, said, tokenizer)
    check_tokenizer(folder, tokenizer)
    return tokenizer


def _own_class(folder: Path, said: dict[str, Any]) -> type[PreTrainedTokenizerBase] | None:
    """Returns the class for a tokenizer that is Python code, or `None` if it is one of the library's."""
    name = said.get("tokenizer_class")
    code = _code(said.get("auto_map"))
    if not isinstance(name, str) or _known(name) is not None:
        if not code or isinstance(name, str):
            return None
        name = code[0].rpartition(".")[2]
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast
    kind = str(said_config(folder).get("model_type")).lower().removeprefix("a2d-")
    candidates = [*_bases(folder, code), DERIVED.get(name), TOKENIZER_MAPPING_NAMES.get(KINDS.get(kind, kind))]
    for candidate in candidates:
        if candidate is not None and (found := _known(candidate)) is not None:
            return found
    raise AdapterError(
        f"the tokenizer of {folder} is a {name}, which is Python code and is never run; save it once as tokenizer.json"
    )


def _known(name: str) -> type[PreTrainedTokenizerBase] | None:
    """Returns the library's tokenizer class of this name, or `None` if there is none or it is only a base class."""
    if name in _PLAIN:
        return PreTrainedTokenizerFast if name == "PreTrainedTokenizerFast" else None
    for one in (name, name.removesuffix("Fast"), f"{name}Fast"):
        found = tokenizer_class_from_name(one)
        if isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase):
            return found
    return None


def _code(named: Any) -> list[str]:
    """Returns the classes in Python files that a tokenizer's `auto_map` names, as `module.Class`."""
    found = named.get("AutoTokenizer") if isinstance(named, dict) else named
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str)]


def _bases(folder: Path, code: list[str]) -> Iterator[str]:
    """Yields the base classes of classes in Python files, whose text is parsed and not run."""
    for reference in code:
        module, _, name = reference.rpartition(".")
        path = folder / f"{module}.py"
        if not module.isidentifier() or not path.is_file():
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8")[:_LONGEST])
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                yield from (base.id for base in node.bases if isinstance(base, ast.Name) and base.id not in _PLAIN)
                yield from (base.attr for base in node.bases if isinstance(base, ast.Attribute))


def _check_ids(folder: Path, said: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a tokenizer that gives an added token another id than `tokenizer_config.json` does."""
    added = said.get("added_tokens_decoder")
    for number, token in (added if isinstance(added, dict) else {}).items():
        text = token.get("content") if isinstance(token, dict) else None
        if isinstance(text, str) and str(tokenizer.convert_tokens_to_ids(text)) != str(number):
            raise AdapterError(
                f"the tokenizer of {folder} gives {text!r} the id {tokenizer.convert_tokens_to_ids(text)}, but"
                f" tokenizer_config.json says {number}: a vocabulary file is missing or belongs to another model"
            )
