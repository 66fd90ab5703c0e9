"""The frontier of a set of samplers on an oracle: exact error against evaluations."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..files.writing import write_figure
from ..oracles import Oracle, exact_law
from ..rules.named import FAMILIES, NamedRule, named_rule
from ..rules.profile import Profile
from ..viewing import drawing

GAMMAS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, math.inf)
EPSILONS = (0.0, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, math.inf)
DEPENDENCE_GAMMAS = (0.0, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, math.inf)
FACTORS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
DELTAS = (0.0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97)


def sweep(text: str, length: int, own: str | Profile | None = None) -> list[NamedRule]:
    """Returns the rules that a name stands for: one if its main setting is given, and one per value of a grid if not.

    The grids are `GAMMAS` (for rules that read a dependence profile, `DEPENDENCE_GAMMAS`), `EPSILONS`, `THRESHOLDS`,
    `FACTORS`, `DELTAS`, and for `k` and `steps` the numbers from 1 to the length, or if that is above 16, only 1, 2, 3,
    4, 6, 8, 12, 16, ... and the length. For the time steps of `ancestral`, the grid is the powers of two up to 8 times
    the length.

    Args:
        text: A rule's name, with or without settings, such as `entropy-bound:gamma=0.1`.
        length: Tokens per sequence.
        own: The dependence profile for rules that read one, unless their settings name another: a model's name, a
            folder, or the profile itself.

    Raises:
        ValueError: If the name or a setting is unknown or out of range.
    """
    name, _, inline = text.partition(":")
    setting = FAMILIES[name].setting if name in FAMILIES else None
    needs: dict[str, Any] = {"profile": own} if name in FAMILIES and "profile" in FAMILIES[name].settings else {}
    grid: dict[str, list[float]] = {
        "gamma": list(DEPENDENCE_GAMMAS if needs else GAMMAS),
        "epsilon": list(EPSILONS),
        "threshold": list(THRESHOLDS),
        "factor": list(FACTORS),
        "delta": list(DELTAS),
        "k": _counts(length),
        "steps": _counts(length),
    }
    if setting not in grid or re.search(rf"\b{setting}=", inline):
        return [named_rule(text, **needs)]
    values = grid[setting]
    if name == "ancestral":
        values = [2**power for power in range((8 * length).bit_length())]
    joined = f"{text}," if inline else f"{name}:"
    return [named_rule(f"{joined}{setting}={value}", **needs) for value in values]


def _counts(length: int) -> list[float]:
    if length <= 16:
        return list(range(1, length + 1))
    halves = [2**power + extra for power in range(length.bit_length()) for extra in (0, 2**power // 2)]
    return [*sorted({count for count in halves if count < length}), length]


def gentlest_first(rules: list[NamedRule]) -> list[NamedRule]:
    """Orders the settings of one rule from the most evaluations to the fewest.

    Larger thresholds, numbers of steps and deltas come first; of all other settings, smaller values come first.
    """
    if not rules:
        return rules
    setting = FAMILIES[rules[0].name].setting
    descending = setting in ("threshold", "steps", "delta")
    return sorted(rules, key=lambda one: one.settings[setting] if setting else 0, reverse=descending)


def split_rules(text: str) -> list[str]:
    """Splits a comma-separated list of rules, in which `a:x=1,y=2` is a single rule."""
    return [part.strip() for part in re.split(r",(?![a-z_]+=)", text) if part.strip()]


def frontier(
    oracle: Oracle, length: int, rules: list[NamedRule], on_rule: Callable[[], None] | None = None
) -> list[dict[str, Any]]:
    """Computes the exact law of each rule on an oracle, starting from a sequence that is entirely masked.

    Args:
        oracle: The oracle.
        length: Tokens per sequence.
        rules: The rules.
        on_rule: Called after each rule.

    Returns:
        One row per rule, with `kl` and `bound` (in nats), `tv`, and the expected numbers of evaluations: `nfe_mean`
        under the sampler's law, `nfe_mean_data` under the data's. `evaluations_mean` counts the states evaluated, of
        which a rule may evaluate several at once.
    """
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
                "evaluations_mean": law.evaluations_mean,
            }
        )
        if on_rule is not None:
            on_rule()
    return rows


def _lines(axes: Any, rows: list[dict[str, Any]], point: Callable[[dict[str, Any]], tuple[float, float]]) -> None:
    """Draws a line per rule, proxy, schedule and temperature."""
    groups: dict[str, set[tuple[float, float]]] = {}
    for row in rows:
        kept = [str(value) for key, value in row["settings"].items() if key in ("proxy", "schedule")]
        hot = [f"T = {row['temperature']:g}"] if len({one.get("temperature") for one in rows}) > 1 else []
        groups.setdefault(", ".join([row["rule"], *kept, *hot]), set()).add(point(row))
    for marker, (label, points) in zip("osD^v<>Pp*hXd" * 4, groups.items(), strict=False):
        axes.plot(*zip(*sorted(points), strict=True), marker=marker, markersize=5, linewidth=1, label=label)


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws the KL divergence against the expected evaluations, with a line per rule.

    Args:
        rows: The rows, from `frontier`.
        path: The file to write; its suffix determines the format.
        title: The title of the picture.

    Raises:
        ImportError: If matplotlib is not installed (extra `plot`).
        ValueError: If the file cannot be written.
    """
    pyplot = drawing.pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 4.5), constrained_layout=True)
    _lines(axes, rows, lambda row: (round(row["nfe_mean"], 9), row["kl"] if row["kl"] > 1e-12 else 0.0))
    axes.set_yscale("symlog", linthresh=1e-2)
    axes.set_ylim(bottom=-5e-4)
    axes.set_xlabel("expected evaluations")
    axes.set_ylabel("KL(data ‖ sampler), nats")
    axes.set_title(title)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    write_figure(path, figure, dpi=120)
    pyplot.close(figure)


def plot_study(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draws a task's quality against evaluations and against seconds, with a line per rule.

    Args:
        rows: The rows, from `Outcome.row`.
        path: The file to write; its suffix determines the format.
        title: The title of the picture.

    Raises:
        ImportError: If matplotlib is not installed (extra `plot`).
        ValueError: If the file cannot be written.
    """
    pyplot = drawing.pyplot()
    from matplotlib import ticker

    figure, both = pyplot.subplots(1, 2, figsize=(10, 4.5), sharey=True, constrained_layout=True)
    for axes, key, label in zip(both, ("nfe_mean", "seconds"), ("evaluations", "seconds of sampling"), strict=True):
        _lines(axes, rows, lambda row, key=key: (row[key], row["quality"]))
        axes.set_xscale("log")
        # The range is a decade or two: ticks are written as 1, 2, 5, 10; the default's powers of ten would overlap.
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xlabel(label)
        axes.grid(alpha=0.3)
    both[0].set_ylabel("quality")
    both[0].legend(fontsize=8)
    figure.suptitle(title)
    write_figure(path, figure, dpi=120)
    pyplot.close(figure)
