"""Reading saved figures, and how far a smaller sample may be from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SURE = 3.3
"""Standard errors on either side of a mean: a sample that should agree is outside once in a thousand times."""


def saved(name: str) -> Any:
    """The figures in `docs/results` by the name of their file."""
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def slack(ci95: float, of: int, taken: int) -> float:
    """How far the mean of `taken` of the things measured may be from the saved mean of `of` of them.

    `ci95` is 1.96 standard errors of the saved mean, so the standard deviation of one is `ci95 / 1.96 * sqrt(of)`. The
    errors of both means are added in quadrature.
    """
    deviation = ci95 / 1.96 * of**0.5
    return SURE * deviation * (1 / taken + 1 / of) ** 0.5
