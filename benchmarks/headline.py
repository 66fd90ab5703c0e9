"""The picture of the front page: evaluations saved by task, and what others report, from saved figures alone.

    python -m benchmarks.headline              # docs/img/headline.png, and the tables of docs/results.md

A bar is how many times fewer evaluations a sampler took than one token at a time, at the setting that validation data
chose, on test data. It is filled if the 95 % interval of the paired loss reaches zero, and hollow if the sampler lost.
The picture holds the figures that it shows, as JSON in its description, which a test compares with the saved ones.
"""

from __future__ import annotations

import argparse
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unmask.files.writing import write_output
from unmask.viewing import drawing

from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS, PICTURE, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "img" / "headline.png", ROOT / "docs" / "results.md"
SAMPLERS = {
    "entropy-bound": ("EB-Sampler", "#3f51b5"),
    "dependence-bound": ("dependence bound (ours)", "#e07b00"),
    "threshold": ("threshold, as Fast-dLLM has it", "#4f9d69"),
}
TASKS = {
    "sudoku": "Sudoku, real puzzles",
    "maze": "mazes, 6×6",
    "maze-loops": "mazes, 8×8, several shortest paths",
    "arithmetic": "sums of three-digit numbers",
    "infill": "gaps in text, characters",
    "infill-subwords": "gaps in text, subwords",
}
"""Studies of `benchmarks.results`, whose settings were chosen on validation data."""


@dataclass(frozen=True)
class Bar:
    """One sampler on one task.

    Attributes:
        task: What the picture calls it.
        rule: The named rule.
        fewer: The evaluations of one token at a time, divided by those of the sampler.
        kept: Whether the interval of the loss reaches zero.
    """

    task: str
    rule: str
    fewer: float
    kept: bool


def bars(results: Path = RESULTS) -> list[Bar]:
    """Every bar of the picture, task by task."""
    found = [bar for name, task in TASKS.items() for bar in _studied(task, _saved(results, f"tasks-{name}"))]
    found += _harmonised([_saved(results, name) for name in ("music-test", "music-others")])
    texts = _saved(results, "free-text")
    found += _written("text from nothing, 128 characters", texts["characters"])
    found += _written("text from nothing, 128 subwords", texts["subwords"])
    longest = _saved(results, "text-lengths")["models"][-1]
    return found + _written(f"text from nothing, {longest['length']} characters", longest)


def _saved(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))


def _studied(task: str, report: dict[str, Any]) -> list[Bar]:
    """The chosen setting of each sampler; of several proxies the first, entropy or the rule's own."""
    first = {row["rule"]: row for row in reversed(report["test"]) if row["why"] == "chosen" and row["speed_up"] > 1}
    kept = {rule: row["difference"] + row["difference_ci95"] >= 0 for rule, row in first.items()}
    return [Bar(task, rule, first[rule]["speed_up"], kept[rule]) for rule in SAMPLERS if rule in first]


def _harmonised(reports: list[dict[str, Any]]) -> list[Bar]:
    """The first row of each sampler, beside one at a time on the same pieces; higher is better."""
    first: dict[str, Bar] = {}
    for report in reports:
        base, *rows = report["comparisons"][0]["rows"]
        for row in rows:
            rule = row["rule"].partition(":")[0]
            if rule not in SAMPLERS:
                continue
            kept = row["log_likelihood_difference"] + row["log_likelihood_difference_ci95"] >= 0
            first.setdefault(rule, Bar("Bach chorales, harmonised", rule, base["nfe"] / row["nfe"], kept))
    return [first[rule] for rule in SAMPLERS if rule in first]


def _written(task: str, report: dict[str, Any]) -> list[Bar]:
    """The bound in a random order with the fewest evaluations of those shown everywhere; a lower NELBO is better."""
    base, *rows = report["rows"]
    ours = [row for row in rows if row["rule"] == "dependence-bound" and row["settings"]["gamma"] <= 0.1]
    row = min(ours, key=lambda row: row["nfe_mean"])
    kept = row["nelbo_difference"] - row["nelbo_difference_ci95"] <= 0
    return [Bar(task, row["rule"], base["nfe_mean"] / row["nfe_mean"], kept)]


def published(results: Path = RESULTS) -> list[dict[str, Any]]:
    """What others report of their own models; nothing of it was measured here."""
    return _saved(results, "published")


def table(rows: list[dict[str, Any]]) -> str:
    """The published figures, for the page of results."""
    lines = [
        "| source | sampler | model | task | evaluations | fewer | what it says |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        words = [row[key] for key in ("source", "sampler", "model", "task")]
        lines.append(f"| {' | '.join(words)} | {_range(row['evaluations'])} | {_range(row['fewer'])} | {row['said']} |")
    return "\n".join(lines)


def _range(ends: list[float] | None) -> str:
    return "–" if ends is None else " to ".join(dict.fromkeys(f"{end:g}" for end in ends))


def draw(found: list[Bar], others: list[dict[str, Any]], path: Path) -> None:
    """Draws the picture on white, so that it can be read on pages of any colour.

    Raises:
        ImportError: If matplotlib is not installed (extra `plot`).
    """
    pyplot = drawing.pyplot()
    groups: dict[str, list[Bar]] = {}
    for bar in found:
        groups.setdefault(bar.task, []).append(bar)
    figure, axes = pyplot.subplots(figsize=(6.6, 8.6), constrained_layout=True)
    place = 0.0

    def title(text: str) -> None:
        axes.text(1.0, place - 0.16, text, va="bottom", fontsize=10.5, color="#222222")

    for task, group in groups.items():
        title(task)
        place += 0.45
        for bar in group:
            colour = SAMPLERS[bar.rule][1]
            face = colour if bar.kept else "white"
            axes.barh(place, bar.fewer, 0.84, left=0, color=face, edgecolor=colour, linewidth=1.5)
            axes.text(bar.fewer * 1.03, place, f"{bar.fewer:.1f} ×", va="center", fontsize=10.5, color="#222222")
            place += 1
        place += 0.85
    for row in (row for row in others if row["fewer"]):
        low, high = row["fewer"]
        title(f"{row['task']}, {row['model']} (not ours)")
        place += 0.45
        axes.barh(place, high - low, 0.84, left=low, color="white", edgecolor="#3f51b5", hatch="///")
        axes.text(high * 1.03, place, f"{low:.1f} to {high:.1f} ×, as its paper reports", va="center", fontsize=10.5)
    axes.set_yticks([])
    axes.set_xscale("log")
    axes.set_xlim(1, 42)
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"], fontsize=10.5)
    axes.minorticks_off()
    axes.set_ylim(place + 0.9, -1.2)
    axes.set_xlabel("times fewer evaluations of the model than one token at a time", fontsize=10.5)
    axes.set_title("Evaluations saved; filled: at no measurable loss", fontsize=12.5, loc="left", pad=4)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.axvline(1, color="#222222", linewidth=1.2)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    patch = pyplot.matplotlib.patches.Patch
    legend = [patch(facecolor=colour, edgecolor=colour, label=label) for label, colour in SAMPLERS.values()]
    legend.append(patch(facecolor="white", edgecolor="#555555", label="hollow: quality was lost"))
    figure.legend(handles=legend, loc="outside lower center", ncols=2, fontsize=10.5, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200, format="png", metadata={"Description": described(found, others)})
    pyplot.close(figure)
    write_output(path, buffer.getvalue())


def described(found: list[Bar], others: list[dict[str, Any]]) -> str:
    """What the picture shows, as JSON."""
    return json.dumps({"bars": [asdict(bar) for bar in found], "published": others})


def render() -> None:
    """Draws the picture and writes the table beside it."""
    draw(bars(), published(), PICTURE)
    fill(PAGE, {"published": table(published())})


def main() -> None:
    """Parses the command."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    render()


if __name__ == "__main__":
    main()
