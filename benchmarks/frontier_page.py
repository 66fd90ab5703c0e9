"""The tables and plots of docs/frontier.md, from the saved figures: what a sweep says about evaluations and error."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from .frontier_rules import BASE, FAMILIES, LENGTH, NEWER
from .pages import fill

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "img"
PAGE = ROOT / "docs" / "frontier.md"

LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02)
"""Divergences looked at, as shares of what drawing everything at once costs: the total correlation."""
SHOWN = (BASE, "EB, margin", "total, paced by masks", "threshold", "steps, uniform order", "EB, noise 1")
"""What the plots show."""


def hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The lower convex hull of (evaluations, divergence), from fewest evaluations to least divergence.

    A sampler that picks one of two settings per sequence takes the average of their evaluations, and the divergence of
    a mixture is at most the average: every point of the hull can be reached.
    """
    kept: list[tuple[float, float]] = []
    for nfe, kl in sorted(points):
        if kept and kl >= kept[-1][1]:
            continue
        while len(kept) > 1:
            (n0, k0), (n1, k1) = kept[-2:]
            if (k1 - k0) * (nfe - n0) < (kl - k0) * (n1 - n0):
                break
            kept.pop()
        kept.append((nfe, kl))
    return kept


def evaluations_for(line: list[tuple[float, float]], level: float) -> float:
    """The fewest expected evaluations on a hull at which the divergence is at most `level`; infinite if none."""
    for (n0, k0), (n1, k1) in zip([(line[0][0], math.inf), *line], line, strict=False):
        if k1 <= level + 1e-9:
            return n1 if math.isinf(k0) else n0 + (n1 - n0) * min(1.0, (k0 - level) / (k0 - k1))
    return math.inf


def divergence_at(line: list[tuple[float, float]], evaluations: float) -> float:
    """The divergence of a hull at so many expected evaluations; that of its ends outside."""
    for (n0, k0), (n1, k1) in itertools.pairwise(line):
        if n0 <= evaluations <= n1:
            return k0 + (k1 - k0) * (evaluations - n0) / (n1 - n0)
    return line[0][1] if evaluations < line[0][0] else line[-1][1]


def ratios(families: dict[str, Any], by: str = "kl") -> dict[str, float]:
    """Evaluations needed, over those of EB in the entropy order: the geometric mean over the levels of divergence.

    Infinite where a rule does not reach one of the levels.
    """
    lines = {name: hull([(row["nfe"], row["kl"]) for row in rows]) for name, rows in families.items()}
    levels = [share * lines[BASE][0][1] for share in LEVELS]
    base = [evaluations_for(lines[BASE], level) for level in levels]
    found = {}
    for name, rows in families.items():
        if any(row[by] is None for row in rows):
            continue
        line = hull([(row["nfe"], row[by]) for row in rows])
        each = [evaluations_for(line, level) / least for level, least in zip(levels, base, strict=True)]
        found[name] = math.exp(math.fsum(map(math.log, each)) / len(each)) if max(each) < math.inf else math.inf
    return found


def ratio_table(report: dict[str, Any]) -> str:
    """The verdict: evaluations relative to EB, per group of oracles, as Markdown."""
    groups = report["groups"]
    lines = [
        "| rule | " + " | ".join(groups) + " | best | worst |",
        "| --- |" + " ---: |" * (len(groups) + 2),
    ]
    every = {name: ratios(families) for oracles in groups.values() for name, families in oracles.items()}
    apart = {name: ratios(families, "dependence") for o in groups.values() for name, families in o.items()}
    rows = [(family, family, every) for family in FAMILIES]
    rows.insert(list(FAMILIES).index("EB, noise 1") + 1, ("the same, by its dependence error", "EB, noise 1", apart))
    for label, family, found in rows:
        cells, seen = [], []
        for oracles in groups.values():
            values = [found[name][family] for name in oracles if family in found[name]]
            seen += values
            mean = math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan
            cells.append(f"{mean:.2f}" if math.isfinite(mean) else "–")
        ends = (f"{end:.2f}" if math.isfinite(end) else "–" for end in (min(seen), max(seen)))
        lines.append(f"| {label} | " + " | ".join([*cells, *ends]) + " |")
    lines += ["", f"`{report['command']}`, torch {report['torch']}, {report['seconds']} s."]
    return "\n".join(lines)


def _points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that miss no part of the data."""
    return [row for row in rows if row["nfe"] is not None and row["kl"] is not None]


def newer_table(report: dict[str, Any]) -> str:
    """The newer rules beside EB: evaluations relative to it, and what is left of the error at equal evaluations."""
    groups, at = report["newer"]["groups"], (3, 4, 5, 8)
    lines = [
        "| rule | " + " | ".join(groups) + " | best | worst | states | " + " | ".join(f"at {n}" for n in at) + " |",
        "| --- |" + " ---: |" * (len(groups) + 3 + len(at)),
    ]
    for name in NEWER:
        cells, every, states = [], [], []
        left: dict[int, list[float]] = {n: [] for n in at}
        for oracles in groups.values():
            values = []
            for families in oracles.values():
                base, rows = _points(families[BASE]), _points(families[name])
                values.append(ratios({BASE: base, name: rows})[name] if rows else math.inf)
                states += [row.get("states", row["nfe"]) / row["nfe"] for row in rows]
                whole = hull([(row["nfe"], row["kl"]) for row in base])[0][1]
                line = hull([(row["nfe"], row["kl"]) for row in rows])
                for n in at:
                    left[n].append(divergence_at(line, n) / whole if line and line[0][0] <= n + 1e-9 else math.nan)
            every += values
            cells.append(
                math.exp(math.fsum(map(math.log, values)) / len(values)) if max(values) < math.inf else math.inf
            )
        cells += [min(every), max(every), math.fsum(states) / len(states)]
        shown = [f"{value:.2f}" if math.isfinite(value) else "–" for value in cells]
        means = [math.fsum(left[n]) / len(left[n]) for n in at]
        shown += [f"{100 * mean:.1f} %" if math.isfinite(mean) else "–" for mean in means]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines += ["", f"`{report['newer']['command']}`, {report['newer']['seconds']} s."]
    return "\n".join(lines)


def newer_wrong_table(report: dict[str, Any]) -> str:
    """Divergence of the newer rules with a wrong model at equal evaluations, as Markdown."""
    names, at = list(report["newer"]["wrong"]), (3, 5, 8)
    lines = [
        "| rule | " + " | ".join(f"{name}: at {n}" if n == at[0] else f"at {n}" for name in names for n in at) + " |",
        "| --- |" + " ---: |" * (len(names) * len(at)),
    ]
    for rule in NEWER:
        cells = []
        for name in names:
            line = hull([(row["nfe"], row["kl"]) for row in _points(report["newer"]["wrong"][name][rule])])
            cells += [f"{divergence_at(line, n):.3f}" if line and line[0][0] <= n + 1e-9 else "–" for n in at]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def grids_table(report: dict[str, Any]) -> str:
    """What share of 4×4 grids is wrong at equal evaluations, as Markdown."""
    at = (6, 8, 10, 12, 16)
    lines = ["| 4×4 grids | " + " | ".join(f"at {n}" for n in at) + " |", "| --- |" + " ---: |" * len(at)]
    for name, rows in report["newer"]["grids"].items():
        line = hull([(row["nfe"], row["invalid"]) for row in rows])
        cells = [f"{100 * divergence_at(line, n):.0f} %" if line[0][0] <= n else "–" for n in at]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def exact_table(report: dict[str, Any]) -> str:
    """Expected evaluations on the 4×4 grid without error, as Markdown."""
    lines = ["| rule | evaluations at divergence 0 |", "| --- | ---: |"]
    for family, rows in report["groups"]["4×4 Sudoku"]["4×4 Sudoku"].items():
        least = min((row["nfe"] for row in rows if row["kl"] <= 1e-9), default=math.inf)
        lines.append(f"| {family} | {least:.2f} |")
    return "\n".join(lines)


def wrong_table(report: dict[str, Any]) -> str:
    """Divergence with a wrong model, at half the evaluations and at all of them, as Markdown."""
    names = list(report["wrong"])
    lines = [
        "| rule | "
        + " | ".join(f"{name}: {n:g} evaluations | {LENGTH}" for name in names for n in (LENGTH / 2,))
        + " |",
        "| --- |" + " ---: |" * (2 * len(names)),
    ]
    for family in report["wrong"][names[0]]:
        cells = []
        for name in names:
            line = hull([(row["nfe"], row["kl"]) for row in report["wrong"][name][family]])
            cells += [f"{divergence_at(line, LENGTH / 2):.3f}", f"{divergence_at(line, LENGTH):.3f}"]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def long_table(report: dict[str, Any]) -> str:
    """Dependence error of long sequences at equal evaluations, as Markdown."""
    at = (48, 32, 16, 8)
    lines = [
        "| 64 tokens | rule | " + " | ".join(f"{n} evaluations" for n in at) + " |",
        "| --- | --- |" + " ---: |" * len(at),
    ]
    for name, families in report["long"].items():
        for family, rows in families.items():
            line = sorted((row["nfe"], row["dependence"]) for row in rows)
            inside = [line[0][0] <= n <= line[-1][0] for n in at]
            cells = [f"{divergence_at(line, n):.2f}" if ok else "" for n, ok in zip(at, inside, strict=True)]
            lines.append(f"| {name} | {family} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(report: dict[str, Any]) -> None:
    """Writes the two PNGs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    IMAGES.mkdir(parents=True, exist_ok=True)
    colours = dict(zip(SHOWN, ("#0072b2", "#56b4e9", "#e69f00", "#999999", "#009e73", "#d55e00"), strict=True))
    panels = [("lazy chains", "stay 0.75"), ("HMMs", "HMM 0"), ("sharp tables", "sharp table 0"), ("4×4 Sudoku",) * 2]
    figure, grid = pyplot.subplots(2, 2, figsize=(9, 6.6), dpi=110, constrained_layout=True)
    for axes, (group, name) in zip(grid.flat, panels, strict=True):
        for family in SHOWN:
            rows = report["groups"][group][name][family]
            line = hull([(row["nfe"], row["kl"]) for row in rows])
            axes.plot(*zip(*line, strict=True), color=colours[family], lw=1.6, marker="o", ms=3, label=family)
        top = max(row["kl"] for row in report["groups"][group][name][BASE])
        axes.set_yscale("symlog", linthresh=0.01 * top)
        axes.set_ylim(0, 1.1 * top)
        axes.set_title(f"{name}, {16 if group == name else report['length']} tokens", fontsize=10)
        axes.grid(alpha=0.3)
    grid[1, 0].set_xlabel("expected evaluations")
    grid[1, 1].set_xlabel("expected evaluations")
    grid[0, 0].set_ylabel("KL(data ‖ sampler), nats")
    grid[1, 0].set_ylabel("KL(data ‖ sampler), nats")
    grid[0, 0].legend(fontsize=8)
    figure.savefig(IMAGES / "frontier-oracles.png")
    pyplot.close(figure)

    figure, axes = pyplot.subplots(figsize=(8, 4.6), dpi=110, constrained_layout=True)
    every = {name: ratios(families) for oracles in report["groups"].values() for name, families in oracles.items()}
    for family in SHOWN[1:]:
        points = [(i, found[family]) for i, found in enumerate(every.values()) if math.isfinite(found[family])]
        axes.plot(*zip(*points, strict=True), "o", ms=6, color=colours[family], label=family)
    axes.axhline(1, color=colours[BASE], lw=1.2, label=BASE)
    axes.set_xticks(range(len(every)), list(every), rotation=60, ha="right", fontsize=8)
    axes.set_yscale("log")
    axes.set_yticks([0.5, 0.6, 0.7, 0.8, 1, 1.2, 1.5], ["0.5", "0.6", "0.7", "0.8", "1", "1.2", "1.5"])
    axes.minorticks_off()
    axes.set_ylabel("evaluations at equal divergence, relative to EB")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncol=2)
    figure.savefig(IMAGES / "frontier-ratios.png")
    pyplot.close(figure)


def write_page(report: dict[str, Any]) -> None:
    """Puts the tables between their markers."""
    tables = {"ratios": ratio_table, "exact": exact_table, "wrong": wrong_table, "long": long_table}
    tables |= {"newer": newer_table, "newer-wrong": newer_wrong_table, "grids": grids_table}
    fill(PAGE, {name: table(report) for name, table in tables.items()})
