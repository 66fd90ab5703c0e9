"""Checks of arguments that many modules make, with the same words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Returns an argument that must be a whole number; `True`, `2.0` and `"2"` are none.

    Args:
        name: What the message calls it.
        value: What was given.
        least: The smallest it may be.
        most: The largest it may be, if there is one.

    Raises:
        ValueError: If it is not a whole number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limits}, got {value!r}")
    return value


def key_values(text: str) -> dict[str, str]:
    """Reads settings written as `key=value,key=value`; an empty text has none.

    Raises:
        ValueError: If a part has no `=`, or a key is given twice.
    """
    settings: dict[str, str] = {}
    for item in filter(None, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not key:
            raise ValueError(f"expected key=value, got {item!r}")
        if settings.get(key, value) != value:
            raise ValueError(f"{key} is given twice, as {settings[key]} and as {value}")
        settings[key] = value
    return settings


@contextmanager
def needs_extra(extra: str, what: str) -> Iterator[None]:
    """Names the extra to install if something that is imported within a `with` block is not there.

    Args:
        extra: The extra that brings it.
        what: What needs it, as the message calls it.

    Raises:
        ImportError: If a package is missing.
    """
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] == "unmask":
            raise
        raise ImportError(
            f"{what} needs the extra {extra} ({error.name} is missing): pip install 'unmask[{extra}]', or '.[{extra}]'"
            " in a clone"
        ) from None
