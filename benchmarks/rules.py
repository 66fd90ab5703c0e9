"""Every rule at its best setting on every task, and `auto` beside them; for docs/results.md.

    python -m benchmarks.rules measure ROW [ROW ...]   # ROW: one of the rows below, or all; resumes
    python -m benchmarks.rules ending                  # what ending a sequence early saves and loses, on validation
    python -m benchmarks.rules render                  # the tables again, from the saved figures

A row is a task, a model and a temperature. Settings are chosen on validation prompts: of each rule the last one, from
the gentlest on, that is within the tolerance of one at a time with 95 % confidence (`unmask.evaluation.tuning`). They
are reported on test prompts, `auto` with its default loss and no choice at all. Differences are paired. Seconds are
those of the sampling, a batch at a time, and depend on the machine. Every batch is kept in runs/results/, so an
interrupted measurement goes on. Figures go to docs/results/rules.json, those of `ending` to auto-ending.json beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from unmask.evaluation.study import Outcome, Study, fingerprint
from unmask.evaluation.tuning import Trial, fewest, tune
from unmask.models.registry import load
from unmask.rules.named import NamedRule, brief, named_rule
from unmask.rules.ranked import Rule
from unmask.rules.usual import COMMITMENT, default_rule, suited
from unmask.tasks.named import named_task

from . import working
from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "rules.json"
ENDING_RESULTS = ROOT / "docs" / "results" / "auto-ending.json"
PAGE = ROOT / "docs" / "results.md"
TOP1, EB = "top1-entropy", "entropy-bound"
CODE = ("sampling/*.py", "draws/*.py", "rules/ranked.py", "rules/order.py", "rules/budget.py", "tasks/*.py")
"""The part of the package that all figures depend on, besides the module of a rule."""

RULES: dict[str, tuple[str, ...]] = {
    "EB": tuple(f"{EB}:gamma={g}" for g in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "EB, confidence": tuple(f"{EB}:gamma={g},proxy=confidence" for g in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "EB, noisy order": tuple(f"noisy-bound:gamma={g}" for g in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "total per sequence": tuple(f"carried-bound:epsilon={e}" for e in (0.03, 0.1, 0.3, 1.0, 3.0)),
    "threshold": tuple(f"threshold:threshold={t}" for t in (0.99, 0.98, 0.95, 0.9, 0.8, 0.6)),
    "factor": tuple(f"factor:factor={f}" for f in (0.1, 0.3, 0.5, 1.0)),
    "Fréchet": tuple(f"frechet:delta={d}" for d in (0.97, 0.9, 0.7, 0.5, 0.2)),
    "KLASS": tuple(f"klass:threshold={t}" for t in (0.95, 0.9, 0.8, 0.6)),
    "hierarchy": tuple(f"hierarchy:low={low},high={high}" for low, high in ((0.9, 0.99), (0.7, 0.95), (0.4, 0.9))),
    "CreditDecoding": tuple(f"credit:threshold={t}" for t in (0.99, 0.95, 0.9, 0.8)),
    "dependence bound": tuple(f"dependence-bound:gamma={g}" for g in (0.01, 0.03, 0.1, 0.3, 1.0)),
    "tempered bound": tuple(f"auto:loss={loss}" for loss in (0.003, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)),
    "top-k": tuple(f"topk:k={k}" for k in (2, 4, 8, 16)),
    "random-k": tuple(f"random-k:k={k}" for k in (2, 4, 8, 16)),
}
"""Settings of each rule, gentlest first. The tempered bound is `auto` with other losses."""


@dataclass(frozen=True)
class Row:
    """A task, a model and a temperature.

    Attributes:
        title: What the table calls it.
        task: Name of the task.
        model: Name of the embedded model.
        temperature: Of the draw.
        settings: Of the task.
        validation: Number of validation prompts.
        test: Number of test prompts.
        tolerance: The loss of quality that choosing a setting allows.
        options: How the model is loaded.
    """

    title: str
    task: str
    model: str
    temperature: float
    settings: dict[str, Any] = field(default_factory=dict)
    validation: int = 200
    test: int = 200
    tolerance: float = 0.01
    options: dict[str, Any] = field(default_factory=dict)


_LOOPS, _SUMS, _GAPS = {"kind": "loops", "size": 8}, {"kind": "addition"}, {"gaps": "infill"}
_RANDOM, _HEAVY = {"kind": "random", "length": 132}, {"chain": "heavy", "kind": "random"}
_CHAT = {"kinds": "sums", "length": 40, "canvas": 8}
_HALF = {"dtype": torch.bfloat16}
ROWS = {
    "sudoku-0": Row("Sudoku", "sudoku", "sudoku", 0.0, validation=600),
    "maze-0": Row("mazes", "maze", "maze", 0.0),
    "sums-0": Row("sums", "arithmetic", "arithmetic", 0.0, _SUMS),
    "reactions-0": Row("reactions, 40 % masked", "reactions", "rxnmapper", 0.0, _RANDOM, 235, 209, options=_HALF),
    "loops-0": Row("mazes with loops", "maze", "maze-loops", 0.0, _LOOPS, tolerance=0.03),
    "chat-0": Row("sums in a chat", "instructions", "chat", 0.0, _CHAT),
    "working-0": Row("problems with working", "working", "working", 0.0, tolerance=0.02),
    "gaps-0": Row("gaps in text", "text", "text", 0.0, _GAPS),
    "heavy-0": Row("antibody chains", "antibodies", "sapiens-vh", 0.0, _HEAVY),
    "sums-1": Row("sums", "arithmetic", "arithmetic", 1.0, _SUMS, tolerance=0.002),
    "maze-1": Row("mazes", "maze", "maze", 1.0),
    "sudoku-1": Row("Sudoku", "sudoku", "sudoku", 1.0, validation=400, tolerance=0.02),
    "reactions-1": Row("reactions, 40 % masked", "reactions", "rxnmapper", 1.0, _RANDOM, 235, 209, options=_HALF),
    "loops-1": Row("mazes with loops", "maze", "maze-loops", 1.0, _LOOPS, tolerance=0.03),
    "gaps-1": Row("gaps in text", "text", "text", 1.0, _GAPS),
    "heavy-1": Row("antibody chains", "antibodies", "sapiens-vh", 1.0, _HEAVY),
    "music-1": Row("harmonising a chorale", "music", "music", 1.0, {}, 20, 40, 0.05),
}
"""Free text has no score of its own: it is in the tables of `benchmarks.free_text`."""


ENDINGS = (0.0, 0.03, 0.1, 0.3, 1.0)
"""The doubts with which `ending` tries to end a sequence; `auto` takes the third at temperature 0."""

ENDING_ROWS = ("sudoku-0", "loops-0", "sums-0")
CANVAS_PROBLEMS = 300


class Bench:
    """Runs rules on the prompts of a row."""

    def __init__(self, name: str) -> None:
        self.row, self.name = ROWS[name], name
        self.task = named_task(self.row.task, **self.row.settings)
        self.denoiser = load(self.row.model, **self.row.options)
        self.prompts = {
            "validation": self.task.prompts("validation", self.row.validation),
            "test": self.task.prompts("test", self.row.test),
        }
        self.model = fingerprint(self.row.model)

    def rule(self, text: str) -> NamedRule:
        """A rule, told the temperature of the draw and the profile of the model where it takes them."""
        own, temperature = self.row.model, self.row.temperature
        given = suited(text, own, temperature)
        if text.startswith("dependence-bound"):
            given |= {"profile": own, "commitment": COMMITMENT if temperature < 1 else 1.0}
        return named_rule(text, **given)

    def study(self, half: str, named: NamedRule) -> Study:
        """What keeps the figures of a rule: they depend on its own module, and on no other rule's."""
        return Study(
            self.denoiser,
            self.task,
            self.prompts[half],
            batch_size=50,
            store=ROOT / "runs" / "results" / f"rules-{self.name}.jsonl",
            identity={"model": self.model, "options": str(self.row.options), "code": code(named)},
        )

    def run(self, half: str, named: NamedRule) -> Outcome:
        """What a rule does with a half of the prompts."""
        return self.study(half, named).run(named, self.row.temperature)


class Runner:
    """What `tune` runs rules with: the prompts of a half."""

    def __init__(self, bench: Bench, half: str) -> None:
        self.bench, self.half = bench, half

    def run(self, named: NamedRule, temperature: float = 1.0, on_batch: Any = None) -> Outcome:
        """Runs a rule at the temperature of the row."""
        return self.bench.run(self.half, named)


def code(named: NamedRule) -> str:
    """Identifies the code that the figures of a rule depend on."""
    files = {path for pattern in CODE for path in (ROOT / "unmask").glob(pattern)}
    parts = (named.rule.order, named.rule.budget) if isinstance(named.rule, Rule) else (named.rule,)
    files |= {Path(inspect.getfile(type(part))) for part in parts}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def measure(name: str) -> dict[str, Any]:
    """Chooses the settings of each rule on validation and runs them on test."""
    bench = Bench(name)
    row, reference = bench.row, bench.rule(TOP1)
    runner: Any = Runner(bench, "validation")
    base = bench.run("test", reference)
    rows = [figures("one at a time", reference, base, base)]
    trials: list[Trial] = []
    for label, settings in RULES.items():
        family = [bench.rule(text) for text in settings]
        _, found = tune(runner, reference, [family], tolerance=row.tolerance, temperature=row.temperature)
        trials += found
        best = fewest(found)
        print(f"{name}: {label} -> {best.named if best else 'no setting keeps the quality'}", flush=True)
        if best is not None:
            rows.append(figures(label, best.named, bench.run("test", best.named), base))
    auto = default_rule(row.model, row.temperature)
    rows.append(figures("auto", auto, bench.run("test", auto), base))
    return {
        "title": row.title,
        "temperature": row.temperature,
        "quality_is": bench.task.quality,
        "model": bench.model,
        "tolerance": row.tolerance,
        "prompts": {half: len(prompts) for half, prompts in bench.prompts.items()},
        "says": auto.says,
        "validation": [trial.row(row.temperature) for trial in trials],
        "rows": rows,
    }


def figures(label: str, named: NamedRule, outcome: Outcome, base: Outcome) -> dict[str, Any]:
    """One line of a table."""
    difference, ci95 = outcome.difference(base)
    nfe = float(outcome.nfe.mean())
    return {
        "label": label,
        "rule": brief(named.name, named.settings),
        "quality": float(outcome.quality.mean()),
        "difference": difference,
        "difference_ci95": ci95,
        "nfe": nfe,
        "fewer": float(base.nfe.mean()) / nfe,
        "seconds": outcome.seconds / outcome.nfe.numel(),
    }


def lossless(row: dict[str, Any]) -> bool:
    """Whether a rule loses nothing that test prompts show."""
    return row["difference"] + row["difference_ci95"] >= 0


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """How `auto` compares with the best rule at no loss and with EB."""
    rows = {row["label"]: row for row in report["rows"]}
    auto = rows.pop("auto")
    others = [row for row in rows.values() if lossless(row) and row["label"] != "tempered bound"]
    best = min(others, key=lambda row: row["nfe"])
    bounds = [rows[name] for name in ("EB", "EB, confidence") if name in rows and lossless(rows[name])]
    eb = min(bounds, key=lambda row: row["nfe"], default=rows["one at a time"])
    return {"auto": auto, "best": best, "eb": eb}


def summary(reports: dict[str, Any]) -> str:
    """`auto` on every row, beside the best rule that loses nothing and EB, worst row last."""
    lines = [
        "| T | task | `auto`: NFE | times fewer | points, paired | best other at no loss: NFE | EB at no loss: NFE |"
        " `auto` over best |",
        "|---|---|---:|---:|---:|---|---:|---:|",
    ]
    found = [(report, verdict(report)) for report in reports.values()]
    for report, one in sorted(found, key=lambda pair: pair[1]["auto"]["nfe"] / pair[1]["best"]["nfe"]):
        auto, best, eb = one["auto"], one["best"], one["eb"]
        lines.append(
            f"| {report['temperature']:g} | {report['title']} | {auto['nfe']:.2f} | {auto['fewer']:.1f} |"
            f" {points(auto)} | `{best['rule']}`: {best['nfe']:.2f} | {eb['nfe']:.2f} |"
            f" {auto['nfe'] / best['nfe']:.2f} |"
        )
    return "\n".join(lines)


def ending() -> list[dict[str, Any]]:
    """A tempered bound at argmax that ends sequences with more and more doubt, on validation prompts.

    The last of the tasks is the model with working on a whole canvas whose ends are free, where responses are counted.
    """
    rules = [f"tempered-bound:gamma=0,epsilon=0.01,ending={one:g},proxy=confidence" for one in ENDINGS]
    rows = []
    for name in ENDING_ROWS:
        bench = Bench(name)
        base = bench.run("validation", bench.rule(TOP1))
        found = [
            figures(str(one), rule, bench.run("validation", rule), base)
            for one, rule in zip(ENDINGS, map(bench.rule, rules), strict=True)
        ]
        rows.append({"task": bench.row.title, "prompts": len(base.nfe[0]), "rows": found})
    asked = working.Asked(working.MODEL, "validation", CANVAS_PROBLEMS)
    mode = working.CANVAS + working.FREE
    base_row = asked.row(TOP1, mode)
    found = []
    for one, text in zip(ENDINGS, rules, strict=True):
        told = working.summary(asked.row(text, mode), base_row)
        found.append(
            {
                "label": str(one),
                "fewer": told["ratio"],
                "difference": told["difference"][0],
                "difference_ci95": told["difference"][1],
            }
        )
    return [*rows, {"task": "problems with working, free ends", "prompts": CANVAS_PROBLEMS, "rows": found}]


def ending_table(reports: list[dict[str, Any]]) -> str:
    """What each ending saves and loses, task by task."""
    lines = [
        "| doubts at the end | " + " | ".join(f"{one['task']}, {one['prompts']}" for one in reports) + " |",
        "|---|" + "---|" * len(reports),
    ]
    for number, value in enumerate(ENDINGS):
        cells = [f"{one['rows'][number]['fewer']:.1f} ×, {points(one['rows'][number])}" for one in reports]
        lines.append(f"| {value:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def points(row: dict[str, Any]) -> str:
    """A difference in points."""
    return f"{100 * row['difference']:+.1f} ± {100 * row['difference_ci95']:.1f}"


def table(report: dict[str, Any]) -> str:
    """One row's table."""
    lines = [
        f"### {report['title'].capitalize()}, temperature {report['temperature']:g}\n",
        "| rule | setting | quality | to one at a time, points, paired | NFE | times fewer | ms a prompt |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['label']} | `{row['rule']}` | {100 * row['quality']:.1f} | {points(row)} | {row['nfe']:.2f} |"
            f" {row['fewer']:.1f} | {1000 * row['seconds']:.0f} |"
        )
    halves = report["prompts"]
    missing = [label for label in RULES if label not in {row["label"] for row in report["rows"]}]
    left = f" No setting of these passed: {', '.join(missing)}." if missing else ""
    lines.append(
        f"\n{halves['test']} test prompts, settings chosen on {halves['validation']}; the quality is the"
        f" {report['quality_is']}.{left}"
    )
    return "\n".join(lines)


def render() -> None:
    """Puts the tables of saved figures into the page."""
    reports = json.loads(RESULTS.read_text(encoding="utf-8"))
    ordered = {name: reports[name] for name in ROWS if name in reports}
    fill(PAGE, {"auto": summary(ordered), "rules": "\n\n".join(table(report) for report in ordered.values())})
    fill(PAGE, {"auto-ending": ending_table(json.loads(ENDING_RESULTS.read_text(encoding="utf-8")))})


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    commands.add_parser("measure").add_argument("rows", nargs="+", choices=[*ROWS, "all"])
    commands.add_parser("ending")
    commands.add_parser("render")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "ending":
        ENDING_RESULTS.write_text(json.dumps(ending(), indent=1) + "\n", encoding="utf-8")
    for name in () if given.what != "measure" else ROWS if "all" in given.rows else given.rows:
        report = measure(name)
        saved = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps({**saved, name: report}, indent=1) + "\n", encoding="utf-8")
    render()


if __name__ == "__main__":
    main()
