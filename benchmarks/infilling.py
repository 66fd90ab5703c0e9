"""Filling in chemical reactions and antibody chains, by models that nobody here trained; for docs/results.md.

    python -m benchmarks.infilling measure SET [SET ...]     # SET: one of the sets below, or all
    python -m benchmarks.infilling smoothing                 # EB with and without label smoothing, for docs/numerics.md
    python -m benchmarks.infilling render                    # the tables again, from the saved figures

Every rule fills in the same prompts from the same streams. Settings are chosen on the validation half of the data: of
each rule the one with the fewest evaluations, from the gentlest on, whose mean loss against one at a time is within one
standard error, or half a point and 0.01 nats, in everything that is measured. They are reported on the test half,
beside fixed rules *at the same number of evaluations*: the figures of their two nearest settings, interpolated in the
logarithm of NFE, prompt by prompt.

At temperature 1 the likelihood is given too: minus the NELBO per filled-in token under the model itself, which is the
mean over orders of its chain log-likelihood, estimated with the same masks for all completions of a prompt. Every batch
is kept in runs/results/, so an interrupted measurement goes on. Figures go to docs/results/infilling.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask.cli.common import progress
from unmask.draws.streams import prompt_streams
from unmask.evaluation.runner import mean_ci95
from unmask.evaluation.study import Outcome, Study, fingerprint
from unmask.likelihood.nelbo import nelbo
from unmask.models.registry import load
from unmask.rules import named
from unmask.rules.named import NamedRule, brief, named_rule
from unmask.rules.profile import load_profile
from unmask.rules.usual import COMMITMENT
from unmask.tasks.named import named_task
from unmask.tasks.task import Foreign, Prompts

from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "infilling.json"
SMOOTHING = ROOT / "docs" / "results" / "smoothing.json"
PAGE, NUMERICS = ROOT / "docs" / "results.md", ROOT / "docs" / "numerics.md"
TOP1 = "top1-entropy"
VALIDATION, TEST, BATCH = 50, 200, 50

FAMILIES: dict[str, tuple[float, ...]] = {
    "entropy-bound": (0.1, 0.3, 1.0, 3.0),
    "dependence-bound": (0.03, 0.1, 0.3),
    "threshold": (0.95, 0.8, 0.6),
    "factor": (0.3, 1.0),
    "frechet": (0.5, 0.2),
}
"""Settings of each rule that adapts, from the gentlest on: validation chooses one."""

FIXED: dict[str, tuple[float, ...]] = {"topk": (4, 8, 12), "random-k": (4, 8, 12)}
"""Settings of the rules that do not adapt, all of which are run on test."""

AGAINST = (*FIXED, "threshold")
"""What the bounds are compared with at equal NFE."""

NOTHING = {"likelihood": 0.01}
"""A loss that is next to nothing, in nats per token; of a share, half a point."""

SHOWN = ("recovered", "well_formed")
"""Shares that tables show where they were measured."""

BOUNDS = ("entropy-bound", "dependence-bound")
CODE = ("rules/*.py", "sampling/*.py", "draws/categorical.py", "draws/streams.py", "likelihood/nelbo.py", "tasks/_*.py")
"""The part of the package that the figures depend on, besides the model and the prompts."""


@dataclass(frozen=True)
class Set:
    """Prompts of a task and a model.

    Attributes:
        title: Of its table.
        model: An embedded model.
        task: Name of the task.
        settings: Of the task.
        families: The rules that adapt.
        chosen_on: The set whose validation half chooses the settings; default: this one.
        smoothing: Label smoothing of the model that is undone; likelihoods are then the model's as it is, for without
            smoothing some tokens are impossible.
        dtype: What the model computes in.
        strata: Evaluations per estimate of the likelihood.
    """

    title: str
    model: str
    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    chosen_on: str = ""
    smoothing: float | None = None
    dtype: torch.dtype = torch.float32
    strata: int = 4
    families: tuple[str, ...] = tuple(FAMILIES)


def _reactions(title: str, kind: str, chosen_on: str = "") -> Set:
    settings = {"kind": kind, "length": 132}
    return Set(f"Reactions, {title}", "rxnmapper", "reactions", settings, chosen_on, dtype=torch.bfloat16)


def _chains(chain: str, title: str, kind: str, chosen_on: str = "", smoothing: float | None = None) -> Set:
    model = "sapiens-vh" if chain == "heavy" else "sapiens-vl"
    settings = {"chain": chain, "kind": kind}
    # Between predictions with impossible tokens divergences are infinite: no prices of dependence.
    families = ("entropy-bound", "threshold") if smoothing else (*BOUNDS, "threshold")
    title = f"{chain.capitalize()} chains, {title}"
    return Set(title, model, "antibodies", settings, chosen_on, smoothing, families=families)


_RANDOM, _SPANS = "40 % masked at random", "spans of 10, 40 % in all"
_UNDONE = "label smoothing undone"

SETS = {
    "reactions": _reactions(_RANDOM, "random"),
    "reactions-product": _reactions("the product masked", "product", "reactions"),
    "reactions-spans": _reactions("spans of 8, 40 % in all", "spans", "reactions"),
    "heavy": _chains("heavy", f"{_RANDOM}, the model as it is", "random"),
    "heavy-undone": _chains("heavy", f"{_RANDOM}, {_UNDONE}", "random", smoothing=0.1),
    "heavy-spans": _chains("heavy", f"{_SPANS}, {_UNDONE}", "spans", "heavy-undone", 0.1),
    "light-undone": _chains("light", f"{_RANDOM}, {_UNDONE}", "random", smoothing=0.1),
    "light-spans": _chains("light", f"{_SPANS}, {_UNDONE}", "spans", "light-undone", 0.1),
}


class Bench:
    """Runs rules on the halves of a set."""

    def __init__(self, name: str, limits: Mapping[str, int]) -> None:
        self.spec = spec = SETS[name]
        self.task = named_task(spec.task, **spec.settings)
        self.judge = load(spec.model, dtype=spec.dtype)
        self.denoiser = self.judge if spec.smoothing is None else load(spec.model, smoothing=spec.smoothing)
        self.profile = load_profile(spec.model)
        about = {"model": fingerprint(spec.model), "dtype": str(spec.dtype), "strata": spec.strata, "code": code()}
        about |= {} if spec.smoothing is None else {"smoothing": spec.smoothing}
        self.studies = {
            (half, judged): Study(
                self.denoiser,
                self.task,
                self.task.prompts(half, limit),
                batch_size=BATCH,
                measure=getattr(self.task, "measures", None),
                judge=self.likelihood if judged else None,
                store=ROOT / "runs" / "results" / f"infilling-{name}.jsonl",
                identity=about | {"judged": judged},
            )
            for half, limit in limits.items()
            for judged in (False, True)
        }

    def likelihood(self, prompts: Prompts, tokens: Int[Tensor, "samples length"]) -> dict[str, Tensor]:
        """The model's own estimate of the log-likelihood of what was filled in, in nats per token."""
        assert isinstance(self.task, Foreign)
        rows = [row[row != self.task.fill_id] for row in prompts.answers]
        rows = [filled[: len(row)] for filled, row in zip(tokens, rows, strict=True)]
        masked = (prompts.tokens == self.task.mask_id)[:, : max(map(len, rows))]
        streams = prompt_streams(prompts.tokens.tolist(), 0)
        found = nelbo(
            self.judge,
            rows,
            maskable=masked,
            strata=self.spec.strata,
            replicates=1,
            streams=streams,
            batch_size=BATCH,
        )
        return {"likelihood": -found.per_token.double()}

    def rule(self, family: str, value: float, temperature: float) -> NamedRule:
        """A rule of a family by its setting; what it reads is the model's profile."""
        setting = named.FAMILIES[family].setting
        assert setting is not None
        settings: dict[str, Any] = {setting: value}
        if family == "dependence-bound":
            settings |= {"profile": self.profile, "commitment": COMMITMENT if temperature < 1 else 1.0}
        return named_rule(family, **settings)

    def run(self, half: str, named: NamedRule, temperature: float) -> Outcome:
        """Runs a rule on a half, with a bar."""
        study = self.studies[half, temperature > 0]
        with progress() as bar:
            job = bar.add_task(f"{self.spec.title}, {half}, T {temperature:g}, {named}"[:90], total=study.batches())
            return study.run(named, temperature, lambda: bar.advance(job))


def code() -> str:
    """Identifies the code that the figures depend on."""
    digest = hashlib.sha256()
    for pattern in CODE:
        for path in sorted((ROOT / "unmask").glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def columns(outcome: Outcome) -> dict[str, Float[Tensor, " prompts"]]:
    """What is compared: the share recovered, the likelihood, and whatever the task measures, prompt by prompt."""
    return {"recovered": outcome.quality[0], **{name: values[0] for name, values in outcome.measures.items()}}


def differences(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """Paired differences with the half widths of their 95 % intervals."""
    return {name: list(mean_ci95(one[name] - other[name])) for name in one}


def keeps(found: Mapping[str, list[float]]) -> bool:
    """Whether the mean loss is within one standard error, or next to nothing, in everything that is measured."""
    allowed = {name: max(ci95 / 1.96, NOTHING.get(name, 0.005)) for name, (_, ci95) in found.items()}
    return all(
        mean >= -allowed[name] - 1e-12 for name, (mean, _) in found.items()
    )  # one of n lost is one error, rounded


def choose(bench: Bench, temperature: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The setting that validation chooses of each rule; those without one keep their gentlest."""
    base = bench.run("validation", named_rule(TOP1), temperature)
    chosen, trials = {}, []
    for family in bench.spec.families:
        values = FAMILIES[family]
        chosen[family] = values[0]
        for value in values:
            outcome = bench.run("validation", bench.rule(family, value, temperature), temperature)
            found = differences(columns(outcome), columns(base))
            kept = keeps(found)
            nfe = float(outcome.nfe.mean())
            trials.append({"rule": family, "value": value, "nfe": nfe, "differences": found, "kept": kept})
            if not kept:
                break
            chosen[family] = value
    return chosen, trials


def at_nfe(nfe: float, others: list[Outcome]) -> dict[str, Float[Tensor, " prompts"]] | None:
    """Figures of a rule's settings at a mean number of evaluations, interpolated; `None` outside their range."""
    points = sorted(((float(one.nfe.mean()), columns(one)) for one in others), key=lambda point: point[0])
    for (low, few), (high, many) in pairwise(points):
        if low <= nfe <= high and high > low:
            share = math.log(nfe / low) / math.log(high / low)
            return {name: (1 - share) * few[name] + share * many[name] for name in few}
    return None


def measure(name: str, limits: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """Yields the report of a set when a temperature is done, the last time with both."""
    bench = Bench(name, limits)
    chooser = Bench(bench.spec.chosen_on, {"validation": limits["validation"]}) if bench.spec.chosen_on else bench
    report: dict[str, Any] = {
        "title": bench.spec.title,
        "model": fingerprint(bench.spec.model),
        "dtype": str(bench.spec.dtype).removeprefix("torch."),
        "validation_prompts": len(chooser.studies["validation", True].prompts),
        "test_prompts": len(bench.studies["test", True].prompts),
        "masks": float((bench.studies["test", True].prompts.tokens == bench.task.mask_id).sum(1).double().mean()),
        "calibration_evaluations": bench.profile.evaluations,
        "temperatures": {},
    }
    for temperature in (0.0, 1.0):
        chosen, trials = choose(chooser, temperature)
        base = bench.run("test", named_rule(TOP1), temperature)
        rows, outcomes = [row(named_rule(TOP1), base, base)], {}
        grids = {family: FIXED.get(family) or FAMILIES[family] for family in AGAINST}
        grids |= {family: (value,) for family, value in chosen.items() if family not in grids}
        for family, values in grids.items():
            outcomes[family] = {}
            for value in values:
                one = bench.rule(family, value, temperature)
                outcomes[family][value] = bench.run("test", one, temperature)
                if value == chosen.get(family, value):
                    rows.append(row(one, outcomes[family][value], base))
        # One at a time is top-1 too, and a threshold that nothing reaches.
        fixed = {family: [*outcomes[family].values(), *[base] * (family != "random-k")] for family in AGAINST}
        equal = []
        for family in [family for family in BOUNDS if family in outcomes]:
            mine = outcomes[family][chosen[family]]
            nfe = float(mine.nfe.mean())
            found = {other: at_nfe(nfe, runs) for other, runs in fixed.items()}
            against = {
                other: differences(columns(mine), figures) for other, figures in found.items() if figures is not None
            }
            equal.append({"rule": family, "nfe": nfe, "against": against})
        report["temperatures"][f"{temperature:g}"] = {"rows": rows, "equal": equal, "validation": trials}
        yield report


def smoothing(limit: int) -> dict[str, Any]:
    """EB on so many heavy chains at argmax, by the model as it is and with its label smoothing undone."""
    rows: list[dict[str, Any]] = []
    base: Outcome | None = None
    for name in ("heavy", "heavy-undone"):
        bench = Bench(name, {"test": limit})
        if base is None:
            base = bench.run("test", named_rule(TOP1), 0.0)
        for value in FAMILIES["entropy-bound"][1:]:
            one = bench.rule("entropy-bound", value, 0.0)
            rows.append({"smoothing": bench.spec.smoothing, **row(one, bench.run("test", one, 0.0), base)})
    assert base is not None
    return {"prompts": limit, "top1_nfe": float(base.nfe.mean()), "rows": rows}


def smoothing_table(report: dict[str, Any]) -> str:
    """Evaluations of EB by γ, with and without label smoothing."""
    lines = [
        "| sampler | NFE as it is | recovered, points | NFE, undone | recovered, points |",
        "|---|---|---|---|---|",
    ]
    half = len(report["rows"]) // 2
    for before, after in zip(report["rows"][:half], report["rows"][half:], strict=True):
        cells = [f"`{brief(before['rule'], before['settings'])}`"]
        for one in (before, after):
            cells += [f"{one['nfe']:.1f}", _points(one["differences"]["recovered"])]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append(
        f"\n{report['prompts']} heavy chains with 40 % masked, by `sapiens-vh` at argmax; differences, paired, are to"
        f" one at a time by the model as it is, which takes {report['top1_nfe']:.1f} evaluations."
    )
    return "\n".join(lines)


def row(named: NamedRule, outcome: Outcome, base: Outcome) -> dict[str, Any]:
    """Figures of one rule, and its paired differences to one at a time."""
    own = columns(outcome)
    return {
        "rule": named.name,
        "settings": named.settings,
        "nfe": float(outcome.nfe.mean()),
        "figures": {name: list(mean_ci95(values)) for name, values in own.items()},
        "differences": differences(own, columns(base)),
    }


def _points(pair: list[float]) -> str:
    return f"{100 * pair[0]:+.1f} ± {100 * pair[1]:.1f}"


def _nats(found: Mapping[str, list[float]]) -> str:
    """A difference in likelihood, where it was measured."""
    if "likelihood" not in found:
        return ""
    mean, ci95 = found["likelihood"]
    return f"{mean:+.3f} ± {ci95:.3f} nats"


def table(report: dict[str, Any]) -> str:
    """One set's tables: the samplers, and the bounds beside fixed rules at equal NFE."""
    shown = [name for name in SHOWN if name in next(iter(report["temperatures"].values()))["rows"][0]["figures"]]
    head = ["T", "sampler", "NFE", *(f"{name.replace('_', ' ')} | difference" for name in shown)]
    lines = [f"| {' | '.join([*head, 'likelihood, difference'])} |", "|---" * (4 + 2 * len(shown)) + "|"]
    for temperature, found in report["temperatures"].items():
        tried, kept = ({one["rule"] for one in found["validation"] if one["kept"] or every} for every in (True, False))
        for one in found["rows"]:
            mark = " ¹" if one["rule"] in tried - kept else ""
            cells = [temperature, f"`{brief(one['rule'], one['settings'])}`{mark}", f"{one['nfe']:.1f}"]
            for name in shown:
                cells += [f"{one['figures'][name][0]:.1%}", _points(one["differences"][name])]
            cells.append(_nats(one["differences"]) or "–")
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"| T | at equal NFE | NFE | {' | '.join(f'minus {other}' for other in AGAINST)} |"]
    lines.append("|---" * (3 + len(AGAINST)) + "|")
    for temperature, found in report["temperatures"].items():
        for one in found["equal"]:
            cells = [_against(one["against"].get(other), shown) for other in AGAINST]
            lines.append(f"| {temperature} | `{one['rule']}` | {one['nfe']:.1f} | {' | '.join(cells)} |")
    rules = {one["rule"] for found in report["temperatures"].values() for one in found["rows"]}
    profile = f" The profile took {report['calibration_evaluations']:,} evaluations, once." * (BOUNDS[1] in rules)
    lines.append(
        f"\n{report['test_prompts']} test prompts with {report['masks']:.1f} masks on average, settings chosen on"
        f" {report['validation_prompts']} of the other half; computed in {report['dtype']}. Differences are in points"
        f" of the share, and in nats per token.{profile} ¹ Validation accepted no setting; the gentlest is shown."
    )
    return "\n".join(lines)


def _against(found: Mapping[str, list[float]] | None, shown: list[str]) -> str:
    if found is None:
        return "–"
    parts = [f"{name.replace('_', ' ')} {_points(found[name])}" for name in shown]
    return "; ".join([*parts, *filter(None, [_nats(found)])])


def render() -> None:
    """Puts the tables of saved figures into the page."""
    if RESULTS.exists():
        reports = json.loads(RESULTS.read_text(encoding="utf-8"))
        ordered = [reports[name] for name in SETS if name in reports]
        fill(PAGE, {"infilling": "\n\n".join(f"### {one['title']}\n\n{table(one)}" for one in ordered)})
    if SMOOTHING.exists():
        fill(NUMERICS, {"smoothing": smoothing_table(json.loads(SMOOTHING.read_text(encoding="utf-8")))})


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one = commands.add_parser("measure")
    one.add_argument("names", nargs="+", choices=[*SETS, "all"])
    one.add_argument("--limit", type=int, help="only so many prompts of each half (writes no page)")
    one.add_argument("--out", type=Path, default=RESULTS, help="file of the figures")
    commands.add_parser("smoothing")
    commands.add_parser("render")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "render":
        render()
        return
    if given.what == "smoothing":
        report = smoothing(VALIDATION)
        SMOOTHING.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(smoothing_table(report))
        return
    limits = {"validation": given.limit or VALIDATION, "test": given.limit or TEST}
    for name in SETS if "all" in given.names else given.names:
        saved = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
        for report in measure(name, limits):
            saved[name] = report
            given.out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
        print(table(saved[name]), flush=True)


if __name__ == "__main__":
    main()
