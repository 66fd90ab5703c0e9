"""Everything public in the package has a docstring, of its own or of what it implements."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import pytest

import unmask

NEED = {"unmask.draws.kernels.triton_rows": "triton"}
"""Modules that cannot be imported without a package that is not installed everywhere."""


def modules() -> list[str]:
    names = [module.name for module in pkgutil.walk_packages(unmask.__path__, "unmask.")]
    return ["unmask", *(name for name in names if not name.endswith("__main__"))]


def public(module: Any) -> Iterator[tuple[str, Any]]:
    """Functions and classes that are defined in a module."""
    for name, value in vars(module).items():
        own = getattr(value, "__module__", None) == module.__name__
        if own and not name.startswith("_") and (inspect.isfunction(value) or inspect.isclass(value)):
            yield name, value


def members(kind: type) -> dict[str, Any]:
    """Public methods and properties of a class."""
    found = {name: value for name, value in vars(kind).items() if not name.startswith("_")}
    methods = (property, cached_property, classmethod, staticmethod)
    return {name: value for name, value in found.items() if inspect.isfunction(value) or isinstance(value, methods)}


def is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


@pytest.fixture(scope="module")
def protocols() -> list[type]:
    found = []
    for name in modules():
        if name not in NEED:
            found += [value for _, value in public(importlib.import_module(name)) if inspect.isclass(value)]
    return [kind for kind in found if is_protocol(kind)]


def implements(kind: type, name: str, protocols: list[type]) -> bool:
    """Whether a method is that of a protocol which the class has all the methods of, and which says what it does."""
    return any(
        name in members(protocol) and inspect.getdoc(members(protocol)[name])
        and all(hasattr(kind, other) for other in members(protocol))
        for protocol in protocols
        if not is_protocol(kind)
    )  # fmt: skip


@pytest.mark.parametrize(
    "name",
    modules(),
)
def test_every_public_thing_says_what_it_does(name: str, protocols: list[type]):
    if name in NEED:
        pytest.importorskip(NEED[name])
    module = importlib.import_module(name)
    missing = [] if module.__doc__ else ["the module"]
    for one, value in public(module):
        # A dataclass without a docstring gets its signature for one.
        if not value.__doc__ or value.__doc__.startswith(f"{one}("):
            missing.append(one)
        if inspect.isclass(value):
            for method, found in members(value).items():
                told = inspect.getdoc(getattr(value, method) if inspect.isfunction(found) else found)
                if not told and not implements(value, method, protocols):
                    missing.append(f"{one}.{method}")
    assert missing == []
