"""Text from nothing: evaluations against what the samples are like, for docs/results.md and docs/dependence.md.

    python -m benchmarks.free_text measure "characters" text --judge judge     # one model: measure and save
    python -m benchmarks.free_text lengths FOLDER FOLDER ... --judge judge     # models of other lengths
    python -m benchmarks.free_text profiles text --judge judge                 # profiles of less and of other data
    python -m benchmarks.free_text render                                      # the tables again, from saved figures

A model is the name of an embedded one or the folder of a checkpoint; the judge a causal model of the same data, such as
`unmask train configs/judge.yaml` makes (by subwords: configs/subword-judge.yaml). Every rule writes the same number of
windows from the same random streams. The profile of a model is measured on validation text. --device says where.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unmask import DependenceBound, Entropy, EntropyBound, One, Rule, TopK, Uniform, extrapolated_first_hitting
from unmask.denoiser import Denoiser, NetworkDenoiser, device_of
from unmask.dependence.calibrate import measure_profile
from unmask.evaluation.judge import Judge, load_judge
from unmask.evaluation.runner import mean_ci95
from unmask.evaluation.study import Measure, Study, code_fingerprint, fingerprint
from unmask.likelihood.nelbo import nelbo
from unmask.models.registry import load
from unmask.rules.blind import Dilated
from unmask.rules.geometry import geometry_of
from unmask.rules.named import NamedRule
from unmask.rules.profile import Profile
from unmask.rules.usual import default_rule
from unmask.tasks._common import stack
from unmask.tasks.of_model import task_of
from unmask.tasks.task import Prompts, Task
from unmask.tasks.text import GRAM, TextTask, distinct_n, embedded_text, unigram_entropy

from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "free-text.json"
LENGTHS = ROOT / "docs" / "results" / "text-lengths.json"
PROFILES = ROOT / "docs" / "results" / "text-profiles.json"
PAGE, THEORY = ROOT / "docs" / "results.md", ROOT / "docs" / "dependence.md"
SAMPLES = 512
WINDOW = 128
"""Tokens that a judge reads at a time; longer samples are judged window by window."""

COLUMNS = ("nelbo", "judge", "entropy", "distinct_n")
BASES = {"uniform": "uniform", "entropy": "top1-entropy"}
GAMMAS = (0.05, 0.1, 0.2, 0.4)
SHORT = ((0.05, "uniform"), (0.1, "uniform"), (0.2, "uniform"))


def admitted(gamma: float, profile: Profile, order: str) -> NamedRule:
    """The dependence bound in an order."""
    ordered = Uniform() if order == "uniform" else Entropy()
    return NamedRule(
        "dependence-bound", {"gamma": gamma, "proxy": order}, Rule(ordered, DependenceBound(gamma, profile))
    )


def rules(profile: Profile, length: int, full: bool) -> list[tuple[NamedRule, str]]:
    """The samplers, each with the order it is compared with one at a time; every setting, or the important ones."""
    quota = math.ceil(length / 13)
    found = [
        (NamedRule("uniform", {}, Rule(Uniform(), One())), "uniform"),
        (NamedRule("top1-entropy", {}, Rule(Entropy(), One())), "entropy"),
        (replace(default_rule(profile), name="auto", settings={}), "entropy"),
    ]
    pairs = [(gamma, order) for gamma in GAMMAS for order in BASES]
    found += [(admitted(gamma, profile, order), order) for gamma, order in (pairs if full else SHORT)]
    found += [
        (NamedRule("random-k", {"k": quota}, Rule(Uniform(), TopK(quota))), "uniform"),
        (NamedRule("dilated", {}, Rule(Uniform(), Dilated())), "uniform"),
    ]
    if full:
        topk = NamedRule("topk", {"k": quota, "proxy": "entropy"}, Rule(Entropy(), TopK(quota)))
        extrapolated = NamedRule("first-hitting-extrapolated", {"steps": 13}, extrapolated_first_hitting(13))
        found += [(topk, "entropy"), (extrapolated, "uniform")]
    for gamma in (0.5, 1.0, 2.0, 4.0, 16.0, 24.0) if full else (24.0, 40.0):
        named = NamedRule("entropy-bound", {"gamma": gamma}, Rule(Entropy(), EntropyBound(gamma)))
        found.append((named, "entropy" if full else "uniform"))
    return found


def calibrated(denoiser: Denoiser, task: Task, examples: int = 200) -> Profile:
    """The model's profile, measured on validation examples of its task."""
    device = device_of(denoiser)
    x, maskable = (part.to(device) for part in stack(task.examples("validation"), examples))
    empty = Profile.empty(geometry_of(task))
    return measure_profile(denoiser, x, empty, maskable=maskable, draws=4, repeats=2, seed=0)


def measured(denoiser: NetworkDenoiser, judge: Judge) -> Measure:
    """NELBO, entropy and distinct-4 of samples, and what a judge of shorter windows says of them."""

    def measure(tokens: Int[Tensor, "samples length"]) -> dict[str, Float[Tensor, " samples"]]:
        found = nelbo(denoiser, tokens.to(device_of(denoiser)), strata=16, replicates=1, seed=0)
        windows = tokens.reshape(-1, min(WINDOW, tokens.shape[1]))
        judged = torch.cat([judge(part) for part in windows.split(64)])
        return {
            "nelbo": found.per_token.double().cpu(),
            "entropy": unigram_entropy(tokens),
            "distinct_n": distinct_n(tokens, GRAM),
            "judge": judged.view(len(tokens), -1).mean(1),
        }

    return measure


def study_of(model: str, judge: str, samples: int, device: str) -> tuple[Study, Profile]:
    """Samples of a model to be, and its profile; the model computes in bfloat16, a batch at a time."""
    denoiser, task = load(model, device=device, dtype=torch.bfloat16), task_of(model, gaps="free")
    denoiser.network.together = True  # pyright: ignore
    assert isinstance(task, TextTask)
    profile = calibrated(denoiser, task)
    prompts = task.prompts("test", 1)
    prompts = Prompts(prompts.tokens.expand(samples, -1), prompts.answers.expand(samples, -1))
    name = re.sub(r"\W+", "-", model).strip("-")
    study = Study(
        denoiser,
        task,
        prompts,
        batch_size=max(32, 128 * 256 // task.length) if device != "cpu" else 64,
        measure=measured(denoiser, load_judge(judge, task, device)),
        store=ROOT / "runs" / "results" / f"free-text-{name}.jsonl",
        identity={"model": fingerprint(model), "judge": fingerprint(judge), "code": code_fingerprint()},
    )
    return study, profile


def compared(study: Study, named: list[tuple[NamedRule, str]]) -> list[dict[str, Any]]:
    """One row per rule; differences are to one at a time in the same order, which comes before."""
    rows, outcomes = [], {}
    for one, order in named:
        outcome = outcomes[str(one)] = study.run(one)
        base = outcomes[BASES[order]]
        row = outcome.row(one, 1.0) | {"order": order}
        for column in COLUMNS:
            row[f"{column}_ci95"] = mean_ci95(outcome.measures[column][0])[1]
            difference = outcome.measures[column][0] - base.measures[column][0]
            row[f"{column}_difference"], row[f"{column}_difference_ci95"] = mean_ci95(difference)
        rows.append(row)
        print(
            f"{one}: {row['nfe_mean']:.1f} evaluations, NELBO {row['nelbo']:.3f}, judge {row['judge']:.3f}", flush=True
        )
    return rows


def measure(model: str, judge: str, samples: int, device: str, full: bool) -> dict[str, Any]:
    """One model's rows, with the profile's cost and the model's own figures."""
    study, profile = study_of(model, judge, samples, device)
    examples = study.task.examples("test")
    real = torch.stack([examples[index][0] for index in range(min(256, len(examples)))])
    assert study.measure is not None
    held_out = {name: mean_ci95(values) for name, values in study.measure(real).items()}
    return {
        "model": fingerprint(model),
        "judge": fingerprint(judge),
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "samples": samples,
        "length": study.task.length,
        "calibration_evaluations": profile.evaluations,
        "held_out": held_out,
        "rows": compared(study, rules(profile, study.task.length, full)),
    }


def lengths(models: list[str], judge: str, samples: int, device: str) -> dict[str, Any]:
    """How evaluations grow: the dependence bound in uniform order beside one at a time, a model of each length."""
    found = []
    for model in models:
        study, profile = study_of(model, judge, samples, device)
        quota = math.ceil(study.task.length / 16)
        named = [
            (NamedRule("uniform", {}, Rule(Uniform(), One())), "uniform"),
            *((admitted(gamma, profile, "uniform"), "uniform") for gamma in (0.02, *GAMMAS)),
            (NamedRule("random-k", {"k": quota}, Rule(Uniform(), TopK(quota))), "uniform"),
        ]
        found.append({"length": study.task.length, "model": fingerprint(model), "rows": compared(study, named)})
    found.sort(key=lambda one: one["length"])
    return {"judge": fingerprint(judge), "samples": samples, "models": found}


def profiles(model: str, judge: str, samples: int, device: str) -> dict[str, Any]:
    """The bound with profiles of one model measured on much text, on a tenth of it, and on a novel it never saw.

    The novel is rid of what the model cannot write.
    """
    study, own = study_of(model, judge, samples, device)
    assert isinstance(study.task, TextTask)
    known = study.task.vocabulary
    with tempfile.TemporaryDirectory() as folder:
        novel = Path(folder) / "novel.txt"
        novel.write_text("".join(filter(known.__contains__, embedded_text("moby_dick"))), encoding="utf-8")
        other = calibrated(study.denoiser, TextTask(novel, vocabulary=known, length=study.task.length))
    found = {"own text": own, "a tenth of it": calibrated(study.denoiser, study.task, 20), "Moby-Dick": other}
    named = [(NamedRule("uniform", {}, Rule(Uniform(), One())), "uniform")]
    for what, profile in found.items():
        for gamma in GAMMAS[:2]:
            rule = Rule(Uniform(), DependenceBound(gamma, profile))
            named.append((NamedRule("dependence-bound", {"gamma": gamma, "profile": what}, rule), "uniform"))
    evaluations = {what: profile.evaluations for what, profile in found.items()}
    return {"samples": samples, "evaluations": evaluations, "rows": compared(study, named)}


def profiles_table(report: dict[str, Any]) -> str:
    """What a profile of less or of other data costs."""
    lines = [
        "| profile of | evaluations for it | γ | NFE | NELBO, difference | judge, difference |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"][1:]:
        what = row["settings"]["profile"]
        cells = [f"{row[f'{name}_difference']:+.3f} ± {row[f'{name}_difference_ci95']:.3f}" for name in COLUMNS[:2]]
        lines.append(
            f"| {what} | {report['evaluations'][what]:,} | {row['settings']['gamma']:g} | {row['nfe_mean']:.1f} |"
            f" {' | '.join(cells)} |"
        )
    lines.append(f"\n{report['samples']} samples a row; differences to one at a time, in nats per token.")
    return "\n".join(lines)


def exponent(lengths: list[int], values: list[float]) -> float:
    """The slope of `log value` over `log length`, by least squares."""
    x, y = torch.tensor(lengths).double().log(), torch.tensor(values).double().log()
    x, y = x - x.mean(), y - y.mean()
    return float((x * y).sum() / (x * x).sum())


def name_of(row: dict[str, Any]) -> str:
    """A row's rule as one writes it."""
    settings = ",".join(f"{key}={value}" for key, value in row["settings"].items())
    return f"{row['rule']}:{settings}" if settings else row["rule"]


def table(report: dict[str, Any]) -> str:
    """One model's table."""
    lines = [
        "| sampler | NFE | NELBO | difference | judge | difference | entropy | distinct-4 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    if "held_out" in report:
        real = {name: f"{mean:.3f} ± {ci95:.3f}" for name, (mean, ci95) in report["held_out"].items()}
        lines.append(
            f"| held-out text | – | {real['nelbo']} | – | {real['judge']} | – | {real['entropy']}"
            f" | {real['distinct_n']} |"
        )
    for row in report["rows"]:
        cells = [f"{row['nfe_mean']:.1f}"]
        for column in ("nelbo", "judge"):
            cells.append(f"{row[column]:.3f} ± {row[f'{column}_ci95']:.3f}")
            cells.append(f"{row[f'{column}_difference']:+.3f} ± {row[f'{column}_difference_ci95']:.3f}")
        cells += [f"{row[column]:.3f} ± {row[f'{column}_ci95']:.3f}" for column in ("entropy", "distinct_n")]
        lines.append(f"| `{name_of(row)}` | {' | '.join(cells)} |")
    lines.append(
        f"\n{report['samples']} samples of {report['length']} tokens each, temperature 1; nats per token, ± are 95 %"
        f" intervals. The profile took {report['calibration_evaluations']:,} evaluations, once."
    )
    return "\n".join(lines)


def agrees(row: dict[str, Any]) -> bool:
    """Whether NELBO, judge and entropy of the samples are those of one at a time, within their intervals."""
    return all(abs(row[f"{one}_difference"]) <= row[f"{one}_difference_ci95"] for one in ("nelbo", "judge", "entropy"))


def boldest(report: dict[str, Any]) -> str:
    """Says how many times fewer evaluations the boldest settings take that agree with one at a time."""
    found = []
    for one in report["models"]:
        base, *others = one["rows"]
        row = min(filter(agrees, others), key=lambda row: row["nfe_mean"])
        found.append(f"{base['nfe_mean'] / row['nfe_mean']:.1f} at {one['length']} (`{name_of(row)}`)")
    return (
        "With NELBO, judge and entropy within the intervals of one at a time, the boldest setting takes so many times"
        f" fewer evaluations: {', '.join(found)}."
    )


def lengths_table(report: dict[str, Any]) -> str:
    """NFE by length for each setting, with what it costs, and the fitted exponents."""
    models = report["models"]
    sizes = [one["length"] for one in models]
    lines = [
        f"| sampler | {' | '.join(f'{size}: NFE | NELBO, difference' for size in sizes)} | exponent |",
        "|---" * (2 * len(sizes) + 2) + "|",
    ]
    for column in zip(*(one["rows"] for one in models), strict=True):
        cells = [
            f"{row['nfe_mean']:.1f} | {row['nelbo_difference']:+.3f} ± {row['nelbo_difference_ci95']:.3f}"
            for row in column
        ]
        rule = "random-k" if column[0]["rule"] == "random-k" else name_of(column[0])
        slope = exponent(sizes, [row["nfe_mean"] for row in column])
        lines.append(f"| `{rule}` | {' | '.join(cells)} | {slope:.2f} |")
    lines.append(
        f"\n{report['samples']} samples a row; the difference is to one at a time, in nats per character; the exponent"
        f" is that of NFE over length, fitted. {boldest(report)}"
    )
    return "\n".join(lines)


def render() -> None:
    """Puts the tables of saved figures into the pages."""
    reports = json.loads(RESULTS.read_text(encoding="utf-8"))
    shown = "\n\n".join(f"### By {name}\n\n{table(report)}" for name, report in reports.items())
    fill(PAGE, {"free-text": shown})
    grown, other = (json.loads(path.read_text(encoding="utf-8")) for path in (LENGTHS, PROFILES))
    fill(THEORY, {"lengths": lengths_table(grown), "text-profiles": profiles_table(other)})


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one, several = commands.add_parser("measure"), commands.add_parser("lengths")
    one.add_argument("name", help="of the table")
    one.add_argument("model")
    one.add_argument("--full", action="store_true", help="every setting, not only the important ones")
    several.add_argument("models", nargs="+")
    data = commands.add_parser("profiles")
    data.add_argument("model")
    for command in (one, several, data):
        command.add_argument("--judge", default="judge")
        command.add_argument("--samples", type=int, default=SAMPLES)
        command.add_argument("--device", default="cpu")
        command.add_argument("--out", type=Path, help="file of the figures, instead of the one the pages are made of")
    commands.add_parser("render")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "measure":
        out = given.out or RESULTS
        saved = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        saved[given.name] = measure(given.model, given.judge, given.samples, given.device, given.full)
        out.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    elif given.what == "lengths":
        report = lengths(given.models, given.judge, given.samples, given.device)
        (given.out or LENGTHS).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    elif given.what == "profiles":
        report = profiles(given.model, given.judge, given.samples, given.device)
        (given.out or PROFILES).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    else:
        render()


if __name__ == "__main__":
    main()
