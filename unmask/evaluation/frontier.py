"""The frontier of a set of samplers on an oracle: exact error against evaluations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..oracles import Oracle, exact_law
from ..rules.named import FAMILIES, NamedRule, named_rule

GAMMAS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, math.inf)
FACTORS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def sweep(text: str, length: int) -> list[NamedRule]:
    """Turns a rule's name into rules: one with the settings given, or one for each value of a grid.

    The grids are `GAMMAS`, `THRESHOLDS`, `FACTORS`, `k` from 1 to the length, and steps from 1 to the length (time
    steps of `ancestral`: powers of two up to 8 times the length).

    Raises:
        ValueError: If the name or a setting is unknown or out of range.
    """
    name, _, inline = text.partition(":")
    setting = FAMILIES[name].setting if name in FAMILIES else None
    if setting is None or re.search(rf"\b{setting}=", inline):
        return [named_rule(text)]
    grid: dict[str, list[float]] = {
        "gamma": list(GAMMAS),
        "threshold": list(THRESHOLDS),
        "factor": list(FACTORS),
        "k": list(range(1, length + 1)),
        "steps": list(range(1, length + 1)),
    }
    values = grid[setting]
    if name == "ancestral":
        values = [2**power for power in range((8 * length).bit_length())]
    joined = f"{text}," if inline else f"{name}:"
    return [named_rule(f"{joined}{setting}={value}") for value in values]


def split_rules(text: str) -> list[str]:
    """Splits a comma-separated list of rules, in which `a:x=1,y=2` is one of them."""
    return [part.strip() for part in re.split(r",(?![a-z_]+=)", text) if part.strip()]


def frontier(
    oracle: Oracle, length: int, rules: list[NamedRule], on_rule: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """Returns one row per rule with its exact `kl`, `tv`, `bound` (nats) and expected evaluations `nfe_mean`."""
    x = torch.full((length,), oracle.mask_id)
    rows = []
    for named in rules:
        law = exact_law(oracle, named.rule, x)
        rows.append(
            {
                "rule": named.name,
                "settings": named.settings,
                "kl": law.kl,
                "tv": law.tv,
                "bound": law.bound,
                "nfe_mean": law.nfe_mean,
                "nfe_mean_data": law.nfe_mean_data,
            }
        )
        if on_rule is not None:
            on_rule()
    return rows


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws KL against expected evaluations, a line per rule.

    Raises:
        ImportError: If matplotlib is not installed (extra `plot`).
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "unmask[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), constrained_layout=True)
    groups: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        label = ", ".join([row["rule"], *(str(v) for k, v in row["settings"].items() if k in ("proxy", "schedule"))])
        groups.setdefault(label, []).append((row["nfe_mean"], row["kl"]))
    for marker, (label, points) in zip("osD^v<>Pp*hXd" * 4, groups.items(), strict=False):
        points = sorted({(round(nfe, 9), kl if kl > 1e-12 else 0.0) for nfe, kl in points})
        axes.plot(*zip(*points, strict=True), marker=marker, markersize=5, linewidth=1, label=label)
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set_ylim(bottom=-5e-4)
    axes.set_xlabel("expected evaluations")
    axes.set_ylabel("KL(data ‖ sampler), nats")
    axes.set_title(title)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
