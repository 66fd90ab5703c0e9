"""Harmonising chorales with a model trained by others: Top-1 against EB-Sampler, and top-k at the same evaluations.

    python -m benchmarks.music check      # the model on real chorales and from nothing, beside the figures it came with
    python -m benchmarks.music validate   # chooses gamma, on validation chorales
    python -m benchmarks.music test       # the comparison, on test chorales
    python -m benchmarks.music others     # every other sampler, each with a setting chosen on validation
    python -m benchmarks.music clock      # seconds a prompt of Top-1 and the chosen setting, at batch 1 and 64
    python -m benchmarks.music table      # prints the comparison again from the saved figures

γ is the largest of the grid whose mean loss on validation is within one standard error.

The soprano of the last 64 steps of a chorale is given, 192 tokens are to be composed. Quality is the chain
log-likelihood per composed token under one-at-a-time evaluation. Its mean over orders is minus the NELBO, which `nelbo`
estimates without bias from 24 evaluations in place of 192, with the same masks for all completions of a prompt; of the
first pieces the chain itself is evaluated too, in one order. Differences are paired.

Figures go to docs/results/music-{check,validation,test,others}.json, and --json prints them. What was measured is kept
in runs/ for as long as weights and code stay the same, so an interrupted run continues. --pieces N makes it shorter,
and --device says where to compute.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask import DependenceBound, Entropy, Rule
from unmask.cli.compose import GAMMA
from unmask.denoiser import Denoiser, Query
from unmask.draws.streams import prompt_streams
from unmask.evaluation.runner import answer, mean_ci95
from unmask.likelihood.nelbo import nelbo
from unmask.models.registry import load
from unmask.rules.named import NamedRule, named_rule
from unmask.rules.profile import load_profile
from unmask.sampling.loop import Sampler
from unmask.tasks.music import MusicTask, chain_score, equal_previous, voices_in_order
from unmask.tasks.task import Prompts

from .pages import wall_clock

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
GAMMAS = (0.01, 0.02, 0.05, 0.1, 0.2)
BATCH = 4
DEVICE = "cpu"
"""Where everything is computed; --device replaces it."""

STRATA = 24
CHAINS = 2
"""Of how many pieces the chain itself is evaluated."""

VALIDATION = 40
"""Number of validation pieces."""

COMPARISONS = (("entropy", 1.0, 40), ("confidence", 1.0, 16), ("entropy", 0.0, 16))
"""Proxy, temperature and number of test pieces; γ is chosen for the first."""

CHOSEN_ON, TESTED_ON = 20, 16
"""Numbers of validation and test pieces of the other samplers."""

FAMILIES: dict[str, tuple[dict[str, Any], ...]] = {
    "threshold": tuple({"threshold": value} for value in (0.99, 0.95, 0.9, 0.8)),
    "dependence-bound": tuple({"gamma": value} for value in (0.003, 0.01, 0.03, 0.1)),
}
"""Their settings, from the gentlest on."""

RATES = {0.05: 0.09, 0.25: 0.20, 0.5: 0.38, 0.75: 0.76, 0.9: 1.27, 1.0: 2.69}
"""Share of masked tokens, and the cross-entropy in nats that came with the weights."""

FROM_NOTHING = {
    "first-hitting-parallel:steps=1": (0.09, 0.77),
    "first-hitting-parallel:steps=4": (0.59, 0.90),
    "first-hitting-parallel:steps=16": (0.76, 0.94),
    "first-hitting-parallel:steps=64": (0.80, 1.00),
    "steps:steps=16,proxy=entropy": (0.63, 0.98),
    "steps:steps=64,proxy=entropy": (0.86, 0.98),
}
"""Samplers, and the shares equal to the previous step and in order that came with the weights (eight pieces each)."""

CODE = (
    "networks/coconet.py",
    "tasks/music.py",
    "likelihood.py",
    "sampler.py",
    "categorical.py",
    "streams.py",
    "rules/*",
)


def judge(denoiser: Denoiser, prompts: Prompts, tokens: Tensor, chains: int) -> dict[str, list[float]]:
    """Figures of completions, one a prompt; the chain likelihood itself of the first `chains` only."""
    masked = prompts.tokens == denoiser.mask_id
    streams = prompt_streams(prompts.tokens.tolist(), 0)
    bound = nelbo(denoiser, tokens.to(DEVICE), maskable=masked.to(DEVICE), strata=STRATA, replicates=1, streams=streams)
    asked, filled = (part[:chains].to(DEVICE) for part in (prompts.tokens, tokens))
    chained = chain_score(denoiser, asked, filled).tolist() if chains > 0 else []
    return {
        "log_likelihood": (-bound.per_token).tolist(),
        "chain": chained,
        "equal_previous": equal_previous(tokens).tolist(),
        "voices_in_order": voices_in_order(tokens).tolist(),
    }


def cache_folder() -> Path:
    """Where measurements of these weights and this code are kept."""
    digest = hashlib.sha256(checkpoint_sha().encode())
    for pattern in CODE:
        for path in sorted((ROOT / "unmask").glob(pattern)):
            if path.is_file():
                digest.update(path.read_bytes())
    return ROOT / "runs" / f"music-{digest.hexdigest()[:12]}"


def checkpoint_sha() -> str:
    """Identifies the shipped weights."""
    return hashlib.sha256(resources.files("unmask").joinpath("data/music/model.safetensors").read_bytes()).hexdigest()


def collect(
    task: MusicTask, split: str, pieces: int, named: NamedRule | None, temperature: float = 1.0, chains: int = 0
) -> dict[str, list[float]]:
    """Completes the first prompts of a split, or judges the real chorales if there is no rule.

    Finished batches are kept in a file, so that an interrupted run continues.
    """
    prompts, denoiser = task.prompts(split, pieces), load("music")
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{task.kind}-{split}-{named or 'real'}-{temperature:g}-{chains}.jsonl".replace(":", "-")
    kept: dict[int, dict[str, list[float]]] = {}
    if path.exists():
        for line in path.read_text().splitlines():
            if line.endswith("}"):  # the last line may be half-written
                batch = json.loads(line)
                kept[batch.pop("first")] = batch
    columns: dict[str, list[float]] = {}
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        batch = kept.get(start)
        if batch is None or len(batch["log_likelihood"]) != len(part):
            batch, tokens = {}, part.answers
            if named is not None:
                sampler = Sampler(denoiser, named.rule)
                run = answer(sampler, part.tokens.to(DEVICE), seed=0, temperature=temperature, batch_size=BATCH)
                batch, tokens = {"nfe": run.nfe.tolist(), "seconds": [run.seconds]}, run.tokens.cpu()
            batch |= judge(denoiser, part, tokens, chains - start)
            with path.open("a") as stream:
                stream.write(json.dumps({"first": start, **batch}) + "\n")
            print(
                f"  {split} {named or 'real chorales'}, temperature {temperature:g}: {start + len(part)}",
                file=sys.stderr,
            )
        for name, values in batch.items():
            columns.setdefault(name, []).extend(values)
    return columns


def row(name: str, temperature: float, found: dict[str, list[float]], base: dict[str, list[float]]) -> dict[str, Any]:
    """Figures of one sampler, and its paired differences from another."""

    def mean(values: list[float]) -> tuple[float, float]:
        return mean_ci95(torch.tensor(values, dtype=torch.float64))

    figures: dict[str, Any] = {"rule": name, "temperature": temperature, "pieces": len(found["log_likelihood"])}
    for column in ("nfe", "log_likelihood", "equal_previous", "voices_in_order", "chain"):
        if found.get(column):
            figures[column], figures[f"{column}_ci95"] = mean(found[column])
    for column in ("log_likelihood", "chain"):
        if found[column]:
            paired = [one - other for one, other in zip(found[column], base[column], strict=True)]
            figures[f"{column}_difference"], figures[f"{column}_difference_ci95"] = mean(paired)
    figures["chains"], figures["seconds"] = len(found["chain"]), sum(found.get("seconds", []))
    return figures


def keeps_quality(found: dict[str, Any]) -> bool:
    """Whether the mean loss against Top-1 is within one standard error."""
    return found["log_likelihood_difference"] + found["log_likelihood_difference_ci95"] / 1.96 >= 0


def compared(task: MusicTask, split: str, proxy: str, temperature: float, pieces: int, chains: int) -> dict[str, Any]:
    """Top-1, EB-Sampler over the grid (on test: with the chosen γ), top-k at as many evaluations, real chorales."""
    gammas = GAMMAS if split == "validation" else (GAMMA,)
    top1 = named_rule(f"top1-{proxy}")
    base = collect(task, split, pieces, top1, temperature, chains)
    rows = [row(str(top1), temperature, base, base)]
    for gamma in gammas:
        bound = named_rule("entropy-bound", gamma=gamma, proxy=proxy)
        rows.append(row(str(bound), temperature, collect(task, split, pieces, bound, temperature, chains), base))
    if split == "test":
        quota = named_rule("steps", steps=round(rows[-1]["nfe"]), proxy=proxy)
        rows.append(row(str(quota), temperature, collect(task, split, pieces, quota, temperature, chains), base))
        rows.append(row("real chorales", temperature, collect(task, split, pieces, None, 1.0, chains), base))
    return {"proxy": proxy, "temperature": temperature, "pieces": rows[0]["pieces"], "rows": rows}


def others(task: MusicTask) -> dict[str, Any]:
    """The samplers that `compared` leaves out, at temperature 1; settings chosen like γ, but from the gentlest on."""
    own = load_profile("music")

    def named(family: str, settings: dict[str, Any]) -> NamedRule:
        if family == "dependence-bound":
            return NamedRule(family, settings, Rule(Entropy(), DependenceBound(settings["gamma"], own)))
        return named_rule(family, **settings)

    top1, bound = named_rule("top1-entropy"), named_rule("entropy-bound", gamma=GAMMA, proxy="entropy")
    base, trials, chosen = collect(task, "validation", CHOSEN_ON, top1), [], []
    for family, grid in FAMILIES.items():
        best = None
        for settings in grid:
            one = named(family, settings)
            trials.append(row(str(one), 1.0, collect(task, "validation", CHOSEN_ON, one), base))
            if not keeps_quality(trials[-1]):
                break
            best = one
        chosen += [] if best is None else [best]
    proxies = [named_rule("entropy-bound", gamma=GAMMA, proxy=proxy) for proxy in ("confidence", "margin")]
    shown = [top1, bound, *proxies, *chosen, named_rule("first-hitting"), named_rule("ancestral", steps=192)]
    # Of those two the chains are there already, from `compared`.
    found = [collect(task, "test", TESTED_ON, one, 1.0, CHAINS if one in (top1, bound) else 0) for one in shown]
    rows = [row(str(one), 1.0, columns, found[0]) for one, columns in zip(shown, found, strict=True)]
    comparison = {"proxy": "entropy", "temperature": 1.0, "rows": rows}
    return {"checkpoint_sha256": checkpoint_sha(), "validation": trials, "comparisons": [comparison]}


def check() -> dict[str, Any]:
    """The model on real test chorales by share of masked tokens, and its samples from nothing."""
    torch.set_grad_enabled(False)
    denoiser, answers = load("music"), MusicTask().prompts("test", 1000).answers
    generator, rates = torch.Generator().manual_seed(0), []
    for rate, published in RATES.items():
        nats, hits = [], []
        for tokens in answers.split(1):
            masked = torch.rand(tokens.shape, generator=generator) < rate
            logits = denoiser(Query.of(torch.where(masked, denoiser.mask_id, tokens), denoiser.mask_id))
            nats.append(F.cross_entropy(logits, tokens[masked], reduction="none").double())
            hits.append((logits.argmax(-1) == tokens[masked]).double())
        error = 1.96 * float(torch.stack([piece.mean() for piece in nats if len(piece)]).std()) / len(nats) ** 0.5
        rates.append(
            {
                "masked": rate,
                "cross_entropy": float(torch.cat(nats).mean()),
                "cross_entropy_ci95": error,
                "published": published,
                "accuracy": float(torch.cat(hits).mean()),
            }
        )
    samples = []
    for name, (repeated, ordered) in FROM_NOTHING.items():
        prompts = MusicTask("compose").prompts("test", 8).tokens
        run = answer(Sampler(denoiser, named_rule(name).rule), prompts, seed=0, temperature=1.0, batch_size=8)
        samples.append(
            {
                "rule": name,
                "pieces": len(prompts),
                "equal_previous": float(equal_previous(run.tokens).mean()),
                "voices_in_order": float(voices_in_order(run.tokens).mean()),
                "published": {"equal_previous": repeated, "voices_in_order": ordered},
            }
        )
    real = {"equal_previous": equal_previous(answers), "voices_in_order": voices_in_order(answers)}
    return {
        "checkpoint_sha256": checkpoint_sha(),
        "rates": rates,
        "samples": samples,
        "real": {name: float(values.mean()) for name, values in real.items()},
    }


def clock() -> dict[str, dict[str, float]]:
    """Seconds per prompt of Top-1 and of the chosen setting: the first four test prompts one by one, 64 together."""
    denoiser, task, seconds = load("music"), MusicTask(), {}
    for batch, pieces in ((1, 4), (64, 64)):
        prompts, found = task.prompts("test", pieces).tokens.to(DEVICE), {}
        for named in (named_rule("top1-entropy"), named_rule("entropy-bound", gamma=GAMMA)):
            run = answer(Sampler(denoiser, named.rule), prompts, seed=0, temperature=1.0, batch_size=batch)
            found[str(named)] = run.seconds / len(prompts)
        seconds[str(batch)] = found
    return seconds


def table(report: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| temperature | pieces | sampler | NFE | log-likelihood per token | difference from Top-1, paired"
        " | equal to previous | voices in order |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group in report["comparisons"]:
        for found in group["rows"]:
            nfe = f"{found['nfe']:.1f} ± {found['nfe_ci95']:.1f}" if "nfe" in found else "–"
            lines.append(
                f"| {found['temperature']:g} | {found['pieces']} | {found['rule']} | {nfe}"
                f" | {found['log_likelihood']:.3f} ± {found['log_likelihood_ci95']:.3f}"
                f" | {found['log_likelihood_difference']:+.3f} ± {found['log_likelihood_difference_ci95']:.3f}"
                f" | {found['equal_previous']:.1%} | {found['voices_in_order']:.1%} |"
            )
    return "\n".join([*lines, *wall_clock(report.get("seconds_per_prompt", {}))])


def check_table(report: dict[str, Any]) -> str:
    """What `check` measured as Markdown, beside what came with the weights."""
    lines = ["| masked | cross-entropy, nats | as published | pitches right |", "| ---: | ---: | ---: | ---: |"]
    for found in report["rates"]:
        nats = f"{found['cross_entropy']:.3f} ± {found['cross_entropy_ci95']:.3f}"
        lines.append(f"| {found['masked']:.0%} | {nats} | {found['published']:.2f} | {found['accuracy']:.1%} |")
    lines += ["", "| from nothing | equal to previous | as published | voices in order | as published |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for found in report["samples"]:
        lines.append(
            f"| {found['rule']} | {found['equal_previous']:.2f} | {found['published']['equal_previous']:.2f}"
            f" | {found['voices_in_order']:.2f} | {found['published']['voices_in_order']:.2f} |"
        )
    real = report["real"]
    lines.append(f"| test chorales | {real['equal_previous']:.2f} | 0.78 | {real['voices_in_order']:.2f} | 0.98 |")
    return "\n".join(lines)


def main() -> None:
    """Parses the command, measures, and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["check", "validate", "test", "others", "clock", "table"])
    parser.add_argument("--pieces", type=int, default=None, help="only so many pieces (writes no figures)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    parser.add_argument(
        "--device", default="cpu", help="where to compute; elsewhere than on a CPU, 64 pieces at a time"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    global DEVICE, BATCH
    DEVICE, BATCH = arguments.device, BATCH if arguments.device == "cpu" else 64
    RESULTS.mkdir(parents=True, exist_ok=True)
    if arguments.command == "check":
        report, show, name = check(), check_table, "check"
    elif arguments.command == "others":
        report, show, name = others(MusicTask()), table, "others"
    elif arguments.command in ("table", "clock"):
        report, show, name = json.loads((RESULTS / "music-test.json").read_text()), table, None
        if arguments.command == "clock":
            report["seconds_per_prompt"], name = clock(), "test"
    else:
        split = "validation" if arguments.command == "validate" else "test"
        chosen = [(*COMPARISONS[0][:2], VALIDATION)] if split == "validation" else COMPARISONS
        groups = []
        for number, (proxy, temperature, pieces) in enumerate(chosen):
            chains = CHAINS if split == "test" and number == 0 else 0
            groups.append(compared(MusicTask(), split, proxy, temperature, arguments.pieces or pieces, chains))
        report = {"split": split, "gamma": GAMMA, "checkpoint_sha256": checkpoint_sha(), "comparisons": groups}
        show, name = table, None if arguments.pieces else split
    if name is not None:
        (RESULTS / f"music-{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1) if arguments.json else show(report))


if __name__ == "__main__":
    main()
