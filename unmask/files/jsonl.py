"""Reads JSON Lines, and the prompts in them, in the forms that are usual for data sets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .reading import STDIN, read_text, split_lines

_SHOWN = 60


def read_jsonl(
    path: Path | str, what: str = "the JSON Lines", encoding: str | None = None
) -> Iterator[tuple[str, Any]]:
    """Reads JSON values, one per line, or those of one JSON array; blank lines are skipped.

    Args:
        path: The file, gzipped or not; `-` is standard input.
        what: What messages call the content of the file.
        encoding: See `unmask.files.reading.read_text`.

    Yields:
        The place of the value, such as `"prompts.jsonl, line 3"`, and the value.

    Raises:
        DataError: If the file cannot be read, or a line is not JSON. The message names the line.
    """
    name = "standard input" if str(path) == STDIN else str(path)
    text = read_text(path, what, encoding)
    if text.lstrip().startswith("["):
        whole = _array(text)
        if whole is not None:
            yield from ((f"{name}, item {number}", value) for number, value in enumerate(whole, start=1))
            return
    for number, line in enumerate(split_lines(text), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            value = json.loads(line)
        except RecursionError:
            raise DataError(f"{where}: the JSON is nested too deeply") from None
        except ValueError as error:
            said = str(error).splitlines()[0]
            raise DataError(
                f"{where}: this is not JSON ({said}): {_start(line)!r}; each line is one value, such as"
                ' {"prompt": "..."}'
            ) from None
        yield where, value


def read_json(text: str, name: str) -> Any:
    """Parses a text as one JSON value.

    Args:
        text: The text.
        name: What the message calls the text.

    Raises:
        DataError: If the text is not JSON.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise DataError(f"{name} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise DataError(f"{name} is not JSON ({str(error).splitlines()[0]})") from None


def read_prompts(
    path: Path | str, field: str, choice: str | None = None, encoding: str | None = None
) -> list[str | list[dict[str, Any]]]:
    """Reads prompts or texts with gaps from JSON Lines: a text or a chat from each value.

    Args:
        path: The file, see `read_jsonl`.
        field: The field of the text if there is no `choice`: `"prompt"` or `"text"`. For `"prompt"`, a chat may be in
            the field `messages` instead. A value may also be the text itself.
        choice: The path of the text or chat: names of fields and indices of lists joined by dots, as in `question`,
            `turns.0` or `body.messages`. The texts of several paths separated by commas, as in `instruction,input`, are
            joined with an empty line between them; those that are empty or missing are left out, but the first must be
            present.
        encoding: See `unmask.files.reading.read_text`.

    Raises:
        DataError: If the file cannot be read, holds no values, or a value has no such text or chat. The message names
            the line.
        ValueError: If a path of the choice is empty.
    """
    if choice is not None and not all(part.strip() for part in choice.split(",")):
        raise ValueError(f"--field must name fields, such as question, turns.0 or instruction,input, got {choice!r}")
    prompts = []
    for where, value in read_jsonl(path, "the prompts", encoding):
        found = _usual(value, field, where) if choice is None else _chosen(value, choice, where)
        _check_characters(found, where)
        prompts.append(found)
    if not prompts:
        raise DataError(f'{path} holds no prompts: each line must be one, such as {{"{field}": "..."}}')
    return prompts


def _usual(value: Any, field: str, where: str) -> str | list[dict[str, Any]]:
    names = (field, "messages") if field == "prompt" else (field,)
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        for name in names:
            if value.get(name) is not None:
                return _text_or_chat(value[name], where, name, field == "prompt")
        candidates = [name for name, one in value.items() if isinstance(one, str) and one and name.isidentifier()]
        advice = f"; choose among its fields, such as --field {candidates[0]}" if candidates else ""
        wanted = " or ".join(f'"{name}"' for name in names)
        raise DataError(f'{where}: expected {{"{field}": "..."}}, but there is no {wanted}: {_fields(value)}{advice}')
    raise DataError(f'{where}: expected {{"{field}": "..."}}, got {_shown(value)}')


def _chosen(value: Any, choice: str, where: str) -> str | list[dict[str, Any]]:
    names = [name.strip() for name in choice.split(",")]
    parts = []
    for number, name in enumerate(names):
        found = _at(value, name)
        if found is None and number:
            continue
        if found is None:
            raise DataError(f"{where}: there is no field {name!r}: {_fields(value)}")
        parts.append(_text_or_chat(found, where, name, chats=len(names) == 1))
    if len(parts) == 1:
        return parts[0]
    return "\n\n".join(part for part in parts if isinstance(part, str) and part)


def _fields(value: Any) -> str:
    """Describes the fields of a value, for a message of one line."""
    if not isinstance(value, dict):
        return "it is not an object"
    names = ", ".join(name if name.isprintable() else ascii(name) for name in value)
    return f"it has {names}"[:200] if value else "it is empty"


def _at(value: Any, name: str) -> Any:
    """Returns the value at a path of fields and indices, or `None`; names of fields may also contain dots."""
    if isinstance(value, dict) and name in value:
        return value[name]
    for part in name.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif (
            isinstance(value, list) and part.isascii() and part.isdigit() and len(part) < 10 and int(part) < len(value)
        ):
            value = value[int(part)]
        else:
            return None
    return value


def _text_or_chat(found: Any, where: str, name: str, chats: bool) -> str | list[dict[str, Any]]:
    if isinstance(found, str):
        return found
    if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
        if len(found) == 1:
            return found[0]
        raise DataError(f"{where}: {name} holds {len(found)} texts; choose one of them, such as --field {name}.0")
    if chats and isinstance(found, list) and found and all(isinstance(one, dict) for one in found):
        for number, message in enumerate(found):
            if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
                raise DataError(
                    f'{where}: message {number} of {name} must be {{"role": "...", "content": "..."}}, '
                    f"got {_shown(message)}"
                )
        return found
    kinds = 'a text, or a chat [{"role": ..., "content": ...}, ...]' if chats else "a text"
    raise DataError(f"{where}: {name} must be {kinds}, got {_shown(found)}")


def _check_characters(prompt: str | list[dict[str, Any]], where: str) -> None:
    texts = [prompt] if isinstance(prompt, str) else [text for one in prompt for text in one.values()]
    for text in texts:
        lone = next((char for char in text if "\ud800" <= char <= "\udfff"), None) if isinstance(text, str) else None
        if lone is not None:
            raise DataError(f"{where}: it holds {ascii(lone)[1:-1]}, half of a character (a lone surrogate)")


def _array(text: str) -> list[Any] | None:
    """Returns the values of a text that is one JSON array, or `None` if it is something else."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        return None
    lines = [line for line in split_lines(text) if line.strip()]
    # A single line that is a list is an ordinary line, unless it is a list of objects or texts.
    return whole if len(lines) > 1 or all(isinstance(one, (dict, str)) for one in whole) else None


def _start(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _shown(value: Any) -> str:
    try:
        return _start(json.dumps(value))
    except RecursionError:
        return f"a {type(value).__name__} nested too deeply"


def strict(value: Any) -> Any:
    """Returns a value with what JSON has no number for replaced: infinities by strings (`"inf"`), NaN by `None`."""
    if isinstance(value, dict):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
