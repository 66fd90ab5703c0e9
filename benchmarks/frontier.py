"""The sweep of docs/frontier.md: exact error against evaluations, of every rule on every oracle.

    python -m benchmarks.frontier [--json]   # measure, plot, write the tables into the page (four minutes of one core)
    python -m benchmarks.frontier newer      # only the rules of `NEWER`, beside the rest of the saved figures
    python -m benchmarks.frontier newer --line auto   # of these only the lines that are named
    python -m benchmarks.frontier render     # plots and tables again, from the saved figures

Figures go to docs/results/frontier.json, plots to docs/img/ (they need matplotlib, the extra `plot`).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unmask import (
    CarriedBound,
    Confidence,
    Entropy,
    EntropyBound,
    LeftToRight,
    Noisy,
    Rule,
    Sampler,
    Steps,
    TopK,
    Uniform,
    sample,
)
from unmask.denoiser import Query
from unmask.oracles import (
    HMMDenoiser,
    Oracle,
    PerturbedDenoiser,
    Sudoku4Denoiser,
    exact_law,
)
from unmask.rules import (
    DrawnConfidence,
    Editing,
    Gibbs,
    Hierarchy,
    Moment,
    PathPlanning,
    Remasking,
    Spaced,
    UpstreamGate,
    Wino,
)
from unmask.sampling.conversation import AnyRule

from .frontier_page import LEVELS, SHOWN, plot, ratios, write_page
from .frontier_rules import BASE, FAMILIES, LENGTH, LONG, NEWER, ORACLES, WRONG

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "frontier.json"


def laws(denoiser: Oracle | PerturbedDenoiser, rules: Sequence[AnyRule]) -> list[dict[str, float | None]]:
    """Exact figures of each rule on sequences of `LENGTH` masks."""
    rows = []
    for rule in rules:
        law = exact_law(denoiser, rule, torch.full((LENGTH,), denoiser.mask_id))
        row = {"nfe": law.nfe_mean, "kl": law.kl, "dependence": law.dependence, "bound": law.bound}
        row |= {"states": law.evaluations_mean} if law.evaluations_mean > law.nfe_mean + 1e-9 else {}
        rows.append({key: value if math.isfinite(value) else None for key, value in row.items()})
    return rows


def sudoku4() -> dict[str, list[dict[str, float | None]]]:
    """Rules that are functions of the state exactly; `Noisy` and the uniform order from 4,000 samples.

    With a random order the law is the same for all grids of one class of symmetry, of which there are two, so that two
    frequencies give the divergence.
    """
    oracle, found = Sudoku4Denoiser(), {}
    x = torch.full((16,), oracle.mask_id)
    classes, samples = oracle.orbits(), 4000
    share = torch.bincount(classes).double() / len(classes)
    known = {tuple(point): int(number) for point, number in zip(oracle.points.tolist(), classes, strict=True)}
    gammas = (0.0, 0.6, 0.7, 1.4, 2.1, 2.8, 5.6, math.inf)
    totals = (0.0, 0.7, 1.4, 2.1, 2.8, 4.2, 5.6, 8.0, 11.0, 16.0, math.inf)
    for name, rules in FAMILIES.items():
        if isinstance(rules[0].order, (DrawnConfidence, Moment)):
            continue
        if name == "top-k":
            rules = [Rule(Confidence(), TopK(k)) for k in (1, 2, 3, 4, 5, 6, 8, 16)]
        elif isinstance(rules[0].budget, EntropyBound):
            rules = [Rule(rules[0].order, EntropyBound(g)) for g in gammas]
        elif isinstance(rules[0].budget, CarriedBound):
            rules = [Rule(rules[0].order, replace(rules[0].budget, epsilon=e)) for e in totals]
        elif isinstance(rules[0].budget, Steps):
            rules = [Rule(rules[0].order, Steps(n)) for n in (16, 12, 8, 6, 4, 3, 2, 1)]
        rows = []
        for rule in rules:
            if not rule.order.random:
                law = exact_law(oracle, rule, x)
                rows.append({"nfe": law.nfe_mean, "kl": law.kl, "dependence": law.dependence, "bound": law.bound})
                continue
            runs = sample(oracle, x.expand(samples, -1), rule, seed=0)
            cell = torch.tensor([known.get(tuple(row), 2) for row in runs.tokens.tolist()])
            q = torch.bincount(cell, minlength=3).double() / samples
            valid = float(q[:2].sum())
            # Where all were valid, the divergence between the two classes is chance: it is 0 as far as samples tell.
            kl = float((share * (share / q[:2]).log()).sum()) if valid < 1 else 0.0
            rows.append({"nfe": float(runs.nfe.double().mean()), "kl": kl, "dependence": None, "bound": None})
        found[name] = [row for row in rows if math.isfinite(row["kl"])]
    return found


def newer(name: str, oracle: Oracle, length: int) -> list[AnyRule]:
    """The rules of a line of `NEWER`, for an oracle."""
    rules = NEWER[name]
    return rules if isinstance(rules, list) else rules(oracle, length)


def grids(lines: Sequence[str], samples: int = 1000) -> dict[str, list[dict[str, float]]]:
    """The rules of `NEWER` on the 4×4 grid, where no law can be followed: the share of samples that are grids."""
    oracle, found = Sudoku4Denoiser(), {}
    x = torch.full((16,), oracle.mask_id)
    steps, gammas = (2, 3, 4, 6, 8, 12, 16, 24), (0.0, 0.7, 1.4, 2.1, 2.8, 5.6, math.inf)
    some: dict[str, list[AnyRule]] = {
        BASE: [Rule(Entropy(), EntropyBound(g)) for g in gammas],
        "EB, noise 1": [Rule(Noisy(), EntropyBound(g)) for g in gammas],
        "upstream gate": [Rule(Entropy(), UpstreamGate(EntropyBound(g), b)) for g in gammas for b in (1.0, 4.0)],
        "spaced": [Rule(Entropy(), Spaced(EntropyBound(g), s, None)) for g in gammas for s in (2, 4)],
        "ancestral (ReMDM, rate 0)": [Remasking(n, 0.0) for n in steps],
        "ReMDM, cap": [Remasking(n, rate) for n in steps for rate in (0.05, 0.2)],
        "ReMDM, rescale": [Remasking(n, rate, "rescale") for n in steps for rate in (0.05, 0.2)],
        "ReMDM, loop": [Remasking(n, rate, "loop") for n in steps for rate in (0.02, 0.1)],
        "P2": [PathPlanning(n) for n in steps[:7]],
        "WINO": [Wino(threshold, back) for threshold in (0.3, 0.6, 0.9) for back in (0.1, 0.5, 0.9)],
        "editing": [Editing(threshold, edit) for threshold in (0.0, 0.3, 0.7, 1.0) for edit in (0.5, 0.9)],
        "hierarchy": [Rule(Confidence(), Hierarchy(low, 0.9)) for low in (0.0, 0.2, 0.4, 0.6, 0.9)],
        "EB, then Gibbs": [
            Gibbs(Rule(Entropy(), EntropyBound(g)), s) for g in (0.0, 1.4, 2.8, math.inf) for s in (0.25, 0.5, 1)
        ],
        "EB, noise 1, then Gibbs": [
            Gibbs(Rule(Noisy(), EntropyBound(g)), s) for g in (0.0, 1.4, 2.8, math.inf) for s in (0.25, 0.5, 1)
        ],
    }
    for name in lines:
        rows = []
        for rule in some.get(name) or newer(name, oracle, 16):
            runs = sample(oracle, x.expand(samples, -1), rule, seed=0)
            valid = float(oracle.log_marginal(runs.tokens).isfinite().double().mean())
            rows.append({"nfe": float(runs.nfe.double().mean()), "invalid": 1 - valid})
        found[name] = rows
    return found


def _short(row: dict[str, float | None]) -> dict[str, float | None]:
    """What the tables need of a point."""
    some = {key: row[key] for key in ("nfe", "kl", "states") if key in row}
    return {key: value if value is None else float(f"{value:.7g}") for key, value in some.items()}


def measure_newer(on_part: Callable[[str], None], lines: Sequence[str] = tuple(NEWER)) -> dict[str, Any]:
    """Lines of `NEWER` on every oracle."""
    started, found = time.perf_counter(), {"command": "python -m benchmarks.frontier newer", "groups": {}}
    for group, oracles in ORACLES.items():
        found["groups"][group] = {}
        for name, oracle in oracles.items():
            on_part(name)
            found["groups"][group][name] = {
                line: [_short(row) for row in laws(oracle, newer(line, oracle, LENGTH))] for line in lines
            }
    found["wrong"] = {}
    for name, denoiser in WRONG.items():
        on_part(name)
        found["wrong"][name] = {
            line: [_short(row) for row in laws(denoiser, newer(line, denoiser.oracle, LENGTH))] for line in lines
        }
    on_part("sudoku4")
    found["grids"] = grids(lines)
    found["seconds"] = round(time.perf_counter() - started)
    return found


def add_newer(saved: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Lines of `NEWER` that were measured later, among those that were saved, in the order of `NEWER`."""

    def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
        both = old | new
        return {line: both[line] for line in NEWER if line in both}

    groups = {
        group: {name: joined(old, found["groups"][group][name]) for name, old in oracles.items()}
        for group, oracles in saved["groups"].items()
    }
    wrong = {name: joined(old, found["wrong"][name]) for name, old in saved["wrong"].items()}
    seconds = saved["seconds"] + found["seconds"]
    return {
        **saved,
        "groups": groups,
        "wrong": wrong,
        "grids": joined(saved["grids"], found["grids"]),
        "seconds": seconds,
    }


def long(oracle: HMMDenoiser, rules: list[Rule], length: int = 64, sequences: int = 64) -> list[dict[str, float]]:
    """Dependence error along the data's own paths on long sequences, where no law can be enumerated.

    The loop runs as always, and after every step the tokens it drew are replaced by those of the data.
    """
    masks = torch.full((sequences, length), oracle.mask_id)
    data = sample(oracle, masks, Rule(LeftToRight(), TopK(1)), seed=1).tokens
    rows = []
    for rule in rules:
        sampler, nats = Sampler(oracle, rule), torch.zeros(sequences, dtype=torch.float64)
        state = sampler.start(masks, seed=0)
        while not bool(state.finished.all()):
            before = state.x
            state, info = sampler.step(state)
            chosen = torch.zeros_like(state.pending)
            chosen[info.sequence] = info.chosen
            state = replace(state, x=torch.where(chosen, data, state.x))
            joint = oracle.log_marginal(state.x) - oracle.log_marginal(before)
            query = Query(before, chosen, torch.ones_like(chosen), torch.arange(sequences))
            single = torch.zeros(chosen.shape, dtype=torch.float64)
            log_p = oracle(query).log_softmax(-1)
            single[chosen] = log_p.gather(-1, data[chosen].unsqueeze(-1)).squeeze(-1)
            nats += joint - single.sum(-1)
        error = float(nats.std()) / sequences**0.5
        rows.append({"nfe": float(state.nfe.double().mean()), "dependence": float(nats.mean()), "error": error})
    return rows


def measure(on_part: Callable[[str], None]) -> dict[str, Any]:
    """Everything the page quotes."""
    started = time.perf_counter()
    report: dict[str, Any] = {
        "command": "python -m benchmarks.frontier",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "length": LENGTH,
        "levels": LEVELS,
        "groups": {},
    }
    for group, oracles in ORACLES.items():
        report["groups"][group] = {}
        for name, oracle in oracles.items():
            on_part(name)
            report["groups"][group][name] = {family: laws(oracle, rules) for family, rules in FAMILIES.items()}
    on_part("sudoku4")
    report["groups"]["4×4 Sudoku"] = {"4×4 Sudoku": sudoku4()}
    report["wrong"] = {}
    for name, denoiser in WRONG.items():
        on_part(name)
        report["wrong"][name] = {family: laws(denoiser, FAMILIES[family]) for family in (*SHOWN, "EB, ties at random")}
    report["long"] = {}
    for name, oracle in LONG.items():
        on_part(f"{name}, 64 tokens")
        report["long"][name] = {
            BASE: long(oracle, [Rule(Entropy(), EntropyBound(g)) for g in (0.03, 0.3, 1.0, 2.0, 4.0, 8.0)]),
            "steps, uniform order": long(oracle, [Rule(Uniform(), Steps(n)) for n in (48, 32, 24, 16, 8, 4)]),
            "EB, noise 1": long(oracle, [Rule(Noisy(), EntropyBound(g)) for g in (0.03, 0.3, 1.0, 2.0, 4.0, 8.0)]),
        }
    report["seconds"] = round(time.perf_counter() - started)
    report["newer"] = measure_newer(on_part)
    return report


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["measure", "newer", "render"], default="measure")
    parser.add_argument("--line", action="append", choices=list(NEWER), help="with newer: only this line; repeatable")
    parser.add_argument("--json", action="store_true", help="print the evaluations relative to EB, per oracle")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "measure":
        report = measure(lambda part: None if chosen.json else print(part, flush=True))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    report = json.loads(RESULTS.read_text())
    if chosen.command == "newer":
        found = measure_newer(
            lambda part: None if chosen.json else print(part, flush=True), chosen.line or tuple(NEWER)
        )
        report["newer"] = add_newer(report["newer"], found) if chosen.line else found
        RESULTS.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        write_page(report)
        return
    plot(report)
    write_page(report)
    if chosen.json:
        every = {name: ratios(families) for oracles in report["groups"].values() for name, families in oracles.items()}
        finite = {
            name: {family: value if math.isfinite(value) else None for family, value in found.items()}
            for name, found in every.items()
        }
        print(json.dumps(finite, indent=1, ensure_ascii=False, allow_nan=False))


if __name__ == "__main__":
    main()
