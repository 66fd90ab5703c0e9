"""The dependence bound beside EB where something is given: puzzles, sums, gaps, music; for docs/dependence.md.

    python -m benchmarks.conditional measure NAME [NAME ...]     # NAME: one of the sets below, or all
    python -m benchmarks.conditional render                      # the table again, from the saved figures

Every rule answers the same prompts from the same streams. A row of the dependence bound is compared with EB *at its own
number of evaluations*: the quality of the two nearest settings of EB, interpolated in the logarithm of NFE, prompt by
prompt. Where it is cheaper than every setting of EB that was run, with the cheapest of those. A set by subwords or of
another model needs --model FOLDER.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unmask import DependenceBound, Entropy, EntropyBound, One, Rule
from unmask.errors import AdapterError
from unmask.evaluation.runner import mean_ci95
from unmask.evaluation.study import Outcome, Study, code_fingerprint, fingerprint
from unmask.models.registry import load
from unmask.rules.named import NamedRule
from unmask.rules.profile import Profile, load_profile
from unmask.tasks.named import named_task

from .free_text import calibrated
from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "conditional.json"
PAGE = ROOT / "docs" / "dependence.md"
EB = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 8.0)
GAMMAS = (0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Set:
    """Prompts of a task: a model, how many of them, the temperatures, and the commitments that are tried at 0."""

    task: str
    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    limit: int = 150
    temperatures: tuple[float, ...] = (1.0, 0.0)
    commitments: tuple[float, ...] = (0.1, 1.0)


SETS = {
    "sudoku": Set("sudoku", "sudoku"),
    "mazes": Set("maze", "maze"),
    "sums": Set("arithmetic", "arithmetic", {"kind": "addition"}),
    "gaps": Set("text", "text", {"gaps": "infill"}),
    "music": Set("music", "music", {}, 8, (1.0,)),
    "gaps, subwords": Set("text", "", {"gaps": "infill", "level": "subword"}),
    "loops": Set("maze", "", {"kind": "loops", "size": 8}),
    "mixed sums": Set("arithmetic", "", {"kind": "mixed"}),
}


def profile_of(model: str, study: Study) -> Profile:
    """The profile that lies beside a model, or one measured on validation examples."""
    try:
        return load_profile(model)
    except AdapterError:
        return calibrated(study.denoiser, study.task, 150)


def measure(name: str, model: str, limit: int | None, device: str) -> dict[str, Any]:
    """Rows of one set at every temperature."""
    spec = SETS[name]
    if not (model or spec.model):
        raise SystemExit(f"{name!r} needs --model FOLDER")
    model = model or spec.model
    settings = spec.settings | ({"device": device} if spec.task == "music" else {})
    task, denoiser = named_task(spec.task, **settings), load(model, device=device)
    study = Study(
        denoiser,
        task,
        task.prompts("test", limit or spec.limit),
        batch_size=64 if device == "cpu" else 256,
        store=ROOT / "runs" / "results" / f"conditional-{name.replace(', ', '-').replace(' ', '-')}.jsonl",
        identity={"model": fingerprint(model), "code": code_fingerprint()},
    )
    profile = profile_of(model, study)
    rows = []
    for temperature in spec.temperatures:
        base = study.run(NamedRule("top1-entropy", {}, Rule(Entropy(), One())), temperature)
        rows.append(row("top1-entropy", {}, temperature, base, base))
        bounds = []
        for gamma in EB:
            named = NamedRule("entropy-bound", {"gamma": gamma}, Rule(Entropy(), EntropyBound(gamma)))
            bounds.append(study.run(named, temperature))
            rows.append(row("entropy-bound", named.settings, temperature, bounds[-1], base))
        for commitment in spec.commitments if temperature < 1 else (1.0,):
            for gamma in GAMMAS:
                settings = {"gamma": gamma, "commitment": commitment}
                rule = Rule(Entropy(), DependenceBound(gamma, profile, commitment=commitment))
                outcome = study.run(NamedRule("dependence-bound", settings, rule), temperature)
                found = row("dependence-bound", settings, temperature, outcome, base)
                found["against_eb"], found["against_eb_ci95"] = mean_ci95(
                    values(outcome) - at_nfe(outcome, [base, *bounds])
                )
                rows.append(found)
        print(f"{name}, temperature {temperature:g}: {len(rows)} rows", flush=True)
    return {
        "model": fingerprint(model),
        "prompts": len(study.prompts),
        "quality_is": task.quality,
        "calibration_evaluations": profile.evaluations,
        "rows": rows,
    }


def values(outcome: Outcome) -> Float[Tensor, " prompts"]:
    """The quality of each prompt."""
    return outcome.quality.mean(0)


def at_nfe(outcome: Outcome, others: list[Outcome]) -> Float[Tensor, " prompts"]:
    """The quality of each prompt under other settings at the same mean number of evaluations, interpolated."""
    nfe = float(outcome.nfe.mean())
    points = sorted(((float(one.nfe.mean()), one) for one in others), key=lambda point: point[0])
    if nfe <= points[0][0]:
        return values(points[0][1])
    for (low, few), (high, many) in pairwise(points):
        if low <= nfe <= high:
            share = math.log(nfe / low) / math.log(high / low) if high > low else 0.0
            return (1 - share) * values(few) + share * values(many)
    return values(points[-1][1])


def row(rule: str, settings: dict[str, Any], temperature: float, outcome: Outcome, base: Outcome) -> dict[str, Any]:
    """Figures of one rule, and its paired difference to Top-1."""
    quality, quality_ci95 = mean_ci95(values(outcome))
    difference, difference_ci95 = mean_ci95(values(outcome) - values(base))
    return {
        "rule": rule,
        "settings": settings,
        "temperature": temperature,
        "quality": quality,
        "quality_ci95": quality_ci95,
        "difference": difference,
        "difference_ci95": difference_ci95,
        "nfe_mean": float(outcome.nfe.mean()),
    }


def table(report: dict[str, Any]) -> str:
    """One set's table."""
    lines = [
        "| T | sampler | NFE | quality | to Top-1, paired | to EB at this NFE, paired |",
        "|---|---|---|---|---|---|",
    ]
    for one in report["rows"]:
        settings = ",".join(f"{key}={value:g}" for key, value in one["settings"].items())
        name = f"{one['rule']}:{settings}" if settings else one["rule"]
        against = f"{one['against_eb']:+.4f} ± {one['against_eb_ci95']:.4f}" if "against_eb" in one else ""
        lines.append(
            f"| {one['temperature']:g} | `{name}` | {one['nfe_mean']:.2f} | {one['quality']:.4f} ±"
            f" {one['quality_ci95']:.4f} | {one['difference']:+.4f} ± {one['difference_ci95']:.4f} | {against} |"
        )
    lines.append(f"\n{report['prompts']} test prompts; the quality is the {report['quality_is']}.")
    return "\n".join(lines)


def render() -> None:
    """Puts the tables of saved figures into the page."""
    if not RESULTS.exists():
        return
    reports = json.loads(RESULTS.read_text(encoding="utf-8"))
    fill(
        PAGE, {"conditional": "\n\n".join(f"### {name.capitalize()}\n\n{table(one)}" for name, one in reports.items())}
    )


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("measure")
    one.add_argument("names", nargs="+", choices=[*SETS, "all"])
    one.add_argument("--model", default="", help="folder of a checkpoint, instead of the embedded model")
    one.add_argument("--limit", type=int)
    one.add_argument("--device", default="cpu")
    one.add_argument("--out", type=Path, default=RESULTS, help="file of the figures")
    commands.add_parser("render")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "render":
        render()
        return
    for name in [name for name, spec in SETS.items() if spec.model] if "all" in given.names else given.names:
        report = measure(name, given.model, given.limit, given.device)
        saved = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        given.out.write_text(json.dumps({**saved, name: report}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
