"""Samplers on every task with a shipped model: settings chosen on validation, figures on test, for docs/results.md.

    python -m benchmarks.results maze          # measure one task (or several, or all)
    python -m benchmarks.results render        # the whole page's tables and plots again, from all saved figures

On validation every setting of a rule is tried from the gentlest on, up to the first that is, with 95 % confidence, not
within the tolerance of Top-1 (see `unmask.evaluation.tuning`); the last accepted one is run on test, beside Top-1, a
fixed number of positions per evaluation of about the same cost, and other settings for the plot. Every batch is kept in
runs/results/, so an interrupted measurement continues. Figures go to docs/results/tasks-NAME.json.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from unmask.evaluation.frontier import gentlest_first, plot_study, sweep
from unmask.evaluation.runner import answer
from unmask.evaluation.study import Study, code_fingerprint, fingerprint
from unmask.evaluation.tuning import fewest, tune
from unmask.models.registry import load
from unmask.rules.named import NamedRule, brief, named_rule
from unmask.rules.usual import COMMITMENT
from unmask.sampling.loop import Sampler
from unmask.tasks.named import named_task

from . import free_text, headline, text_plane
from .conditional import profile_of
from .music import table as music_table
from .pages import fill, wall_clock
from .sudoku import table as sudoku_table
from .time_agnostic import table as time_table

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
FAMILIES = (
    "entropy-bound",
    "entropy-bound:proxy=confidence",
    "entropy-bound:proxy=margin",
    "threshold",
    "dependence-bound",
)


@dataclass(frozen=True)
class Spec:
    """One measurement.

    Attributes:
        task: Name of the task.
        settings: Its settings.
        model: Name of the embedded model.
        validation: Number of validation prompts.
        test: Number of test prompts.
        temperature: Of the draw.
        tolerance: The loss of quality that choosing a setting allows.
        reference: The rule whose quality is to be kept.
    """

    task: str
    settings: dict[str, Any]
    model: str
    validation: int = 200
    test: int = 500
    temperature: float = 1.0
    tolerance: float = 0.01
    reference: str = "top1-entropy"


SPECS = {
    "sudoku": Spec("sudoku", {}, "sudoku", validation=150, test=200, temperature=0.0),
    "maze": Spec("maze", {}, "maze", validation=100, test=200),
    "maze-loops": Spec(
        "maze", {"kind": "loops", "size": 8}, "maze-loops", validation=100, test=200, temperature=0.0, tolerance=0.05
    ),
    "arithmetic": Spec("arithmetic", {"kind": "addition"}, "arithmetic", validation=200, test=400, tolerance=0.002),
    "infill": Spec("text", {"gaps": "infill"}, "text", validation=100, test=200),
    "infill-subwords": Spec(
        "text", {"gaps": "infill", "level": "subword"}, "runs/subword/checkpoint", validation=100, test=200
    ),
}
"""Embedded models, and one from `unmask train configs/subword.yaml`."""


OTHERS = {
    "sudoku-test": sudoku_table,
    "music-test": music_table,
    "music-others": music_table,
    "time-agnostic": time_table,
}
"""Tables of figures that other benchmarks save."""


SUMMARY = {
    "maze": "6×6 mazes",
    "maze-loops": "8×8 mazes with several shortest paths",
    "arithmetic": "three-digit sums",
    "infill": "gaps in text, by characters",
    "infill-subwords": "gaps in text, by subwords",
}
"""Studies in the first table of the page."""


def _study(spec: Spec, name: str, split: str, limit: int) -> Study:
    task = named_task(spec.task, **spec.settings)
    return Study(
        load(spec.model),
        task,
        task.prompts(split, limit),
        store=ROOT / "runs" / "results" / f"{name}.jsonl",
        identity={"model": fingerprint(spec.model), "task": [spec.task, spec.settings], "code": code_fingerprint()},
    )


def measure(name: str) -> dict[str, Any]:
    """Chooses settings on validation and runs them on test."""
    spec = SPECS[name]
    reference = named_rule(spec.reference)
    study = _study(spec, name, "validation", spec.validation)
    masks = int((study.prompts.tokens == study.task.mask_id).sum(-1).max())
    own = profile_of(spec.model, study)
    chosen: list[NamedRule] = []
    trials: list[dict[str, Any]] = []
    for family in FAMILIES:
        if family == "dependence-bound" and spec.temperature < 1:
            family = f"{family}:commitment={COMMITMENT}"
        settings = gentlest_first(sweep(family, masks, own))
        _, found = tune(study, reference, [settings], tolerance=spec.tolerance, temperature=spec.temperature)
        trials += [trial.row(spec.temperature) for trial in found]
        best = fewest(found)
        if best is not None:
            chosen.append(best.named)
        print(f"{name}: {family} -> {best.named if best else 'no setting keeps the quality'}", flush=True)
    test = _study(spec, name, "test", spec.test)
    base = test.run(reference, spec.temperature)
    rows = [row_of(reference, base, base, spec, "reference")]
    for one in chosen:
        rows.append(row_of(one, test.run(one, spec.temperature), base, spec, "chosen"))
    least = min((row["nfe_mean"] for row in rows), default=float(masks))
    for k in sorted({math.ceil(masks / max(1.0, least)), math.ceil(masks / max(1.0, 2 * least))}):
        one = named_rule("topk", k=min(masks, k))
        rows.append(row_of(one, test.run(one, spec.temperature), base, spec, "same cost"))
    grid = [named_rule("entropy-bound", gamma=gamma) for gamma in (0.01, 0.05, 0.2, 0.5, 1.0, 2.0)]
    for one in (named_rule("first-hitting"), named_rule("ancestral", steps=masks)):
        rows.append(row_of(one, test.run(one, spec.temperature), base, spec, "other"))
    for one in [*grid, *(named_rule("topk", k=k) for k in (2, 4)), named_rule("all")]:
        rows.append(row_of(one, test.run(one, spec.temperature), base, spec, "plot"))
    best_rule = min(chosen, key=lambda one: float(test.run(one, spec.temperature).nfe.mean()), default=reference)
    seconds = {
        str(batch): {str(one): time(test, one, spec, batch) for one in (reference, best_rule)} for batch in (1, 64)
    }
    return {
        "task": spec.task,
        "settings": spec.settings,
        "model": fingerprint(spec.model),
        "quality_is": test.task.quality,
        "masks": masks,
        "temperature": spec.temperature,
        "tolerance": spec.tolerance,
        "validation_prompts": len(study.prompts),
        "test_prompts": len(test.prompts),
        "validation": trials,
        "test": rows,
        "seconds_per_prompt": seconds,
    }


def row_of(named: NamedRule, outcome: Any, base: Any, spec: Spec, why: str) -> dict[str, Any]:
    """One row of the test table."""
    difference, ci95 = outcome.difference(base)
    return {
        **outcome.row(named, spec.temperature),
        "difference": difference,
        "difference_ci95": ci95,
        "speed_up": float(base.nfe.mean() / outcome.nfe.mean()),
        "why": why,
    }


def time(study: Study, named: NamedRule, spec: Spec, batch: int) -> float:
    """Seconds per prompt, on the first 8 prompts one by one or the first 64 together."""
    prompts = study.prompts.tokens[: 8 if batch == 1 else 64]
    sampler = Sampler(study.denoiser, named.rule)
    run = answer(sampler, prompts, seed=0, temperature=spec.temperature, batch_size=batch)
    return run.seconds / len(prompts)


def table(report: dict[str, Any]) -> str:
    """One task's table."""
    lines = ["| sampler | quality | difference to Top-1, paired | NFE | times fewer |", "|---|---|---|---|---|"]
    for row in report["test"]:
        if row["why"] == "plot":
            continue
        what = {"reference": "Top-1: ", "same cost": "same cost: "}.get(row["why"], "")
        quality = f"{row['quality']:.4f} ± {row['quality_ci95']:.4f}"
        difference = f"{row['difference']:+.4f} ± {row['difference_ci95']:.4f}"
        cost = f"{row['nfe_mean']:.2f} | {row['speed_up']:.1f}"
        lines.append(f"| {what}`{brief(row['rule'], row['settings'])}` | {quality} | {difference} | {cost} |")
    short: dict[str, str] = {free_text.name_of(row): brief(row["rule"], row["settings"]) for row in report["test"]}
    seconds: dict[str, dict[str, float]] = {
        batch: {short.get(name) or name: value for name, value in found.items()}
        for batch, found in report["seconds_per_prompt"].items()
    }
    return "\n".join([*lines, *wall_clock(seconds)])


def summary() -> str:
    """What the page says first, of every kind of data: EB, and our own rule where it takes fewer evaluations."""
    lines = ["| | sampler | evaluations | fewer | difference to one at a time, paired |", "|---|---|---|---|---|"]

    def add(what: str, rule: str, nfe: float, base: float, difference: str) -> None:
        lines.append(f"| {what} | `{rule}` | {nfe:.1f} for {base:.0f} | {base / nfe:.1f} × | {difference} |")

    for name, what in SUMMARY.items():
        if saved(name).exists():
            base, *rows = json.loads(saved(name).read_text(encoding="utf-8"))["test"]
            chosen = {row["rule"]: row for row in reversed(rows) if row["why"] == "chosen"}
            shown = [chosen["entropy-bound"]]  # the first of them, which is by entropy
            ours = chosen.get("dependence-bound")
            if ours is not None and ours["nfe_mean"] < shown[0]["nfe_mean"]:
                shown.append(ours)
            for row in shown:
                difference = f"{100 * row['difference']:+.1f} ± {100 * row['difference_ci95']:.1f} points"
                add(what, brief(row["rule"], row["settings"]), row["nfe_mean"], base["nfe_mean"], difference)
    music = [("music-test", "entropy-bound"), ("music-others", "dependence-bound")]
    for name, rule in music:
        top1, *rows = _figures(name)["comparisons"][0]["rows"]
        row = next(row for row in rows if row["rule"].startswith(rule))
        loss = f"{row['log_likelihood_difference']:+.3f} ± {row['log_likelihood_difference_ci95']:.3f} nats a note"
        add(f"Bach chorales, harmonised ({row['pieces']})", row["rule"], row["nfe"], top1["nfe"], loss)
    texts = [(f"text from nothing, by {name}", report) for name, report in _figures("free-text").items()]
    longest = _figures("text-lengths")["models"][-1]
    for what, report in [*texts, (f"text from nothing, {longest['length']} characters", longest)]:
        rows = report["rows"]
        if "both orders" not in what:
            # The settings that are shown everywhere: one at a time in a random order, and the bound in the same.
            ours = [row for row in rows if row["rule"] == "dependence-bound" and row["settings"]["gamma"] <= 0.1]
            row = min(ours, key=lambda row: row["nfe_mean"])
            loss = f"NELBO {row['nelbo_difference']:+.3f} ± {row['nelbo_difference_ci95']:.3f} nats a token"
            add(what, free_text.name_of(row), row["nfe_mean"], rows[0]["nfe_mean"], loss)
    return "\n".join(lines)


def _figures(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def render() -> None:
    """Puts tables and plots of all saved figures into the pages."""
    tables = {}
    for name in [name for name in SPECS if saved(name).exists()]:
        report = json.loads(saved(name).read_text(encoding="utf-8"))
        tables[name] = table(report)
        plot_study(report["test"], ROOT / "docs" / "img" / f"results-{name}.png", f"{name}: {report['quality_is']}")
    for name, shown in OTHERS.items():
        path = ROOT / "docs" / "results" / f"{name}.json"
        if path.exists():
            tables[name] = shown(json.loads(path.read_text(encoding="utf-8")))
    fill(PAGE, tables | {"summary": summary()})
    headline.render()
    free_text.render()
    text_plane.render()


def saved(name: str) -> Path:
    """Where a task's figures are kept."""
    return ROOT / "docs" / "results" / f"tasks-{name}.json"


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=[*SPECS, "all", "render"])
    what = parser.parse_args().what
    torch.set_num_threads(1)
    for name in SPECS if "all" in what else [name for name in what if name in SPECS]:
        saved(name).write_text(json.dumps(measure(name), indent=1) + "\n", encoding="utf-8")
    render()


if __name__ == "__main__":
    main()
