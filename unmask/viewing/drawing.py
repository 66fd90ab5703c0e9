"""The door to the packages that draw, which are extras: whether they are installed, and what to say if they are not."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

_MODULES = {"matplotlib": "matplotlib", "pillow": "PIL"}


def missing(*packages: str) -> list[str]:
    """Returns those of the packages that are not installed; what is known are `matplotlib` and `pillow`."""
    return [package for package in packages if find_spec(_MODULES[package]) is None]


def check_drawing(what: str, *packages: str) -> None:
    """Raises `ImportError` if one of the packages is not installed; `what` needs them, in the plural."""
    if gone := missing(*packages):
        raise ImportError(f'{what} need {" and ".join(gone)}: pip install "unmask[plot]", or ".[plot]" in a clone')


def pyplot(what: str = "plots") -> Any:
    """Returns `matplotlib.pyplot`, for files: it opens no window.

    Args:
        what: What the message says needs it, in the plural.

    Raises:
        ImportError: If matplotlib is not installed (extra `plot`).
    """
    check_drawing(what, "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
