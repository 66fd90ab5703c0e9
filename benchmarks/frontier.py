"""The sweep of docs/frontier.md: exact error against evaluations, of every rule on every oracle.

    python -m benchmarks.frontier [--json]   # measure, plot, write the tables into the page (four minutes of one core)
    python -m benchmarks.frontier newer      # only the rules of `NEWER`, beside the rest of the saved figures
    python -m benchmarks.frontier render     # plots and tables again, from the saved figures

Figures go to docs/results/frontier.json, plots to docs/img/ (they need matplotlib, the extra `plot`).
"""

from __future__ import annotations

import argparse
import itertools
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
    Factor,
    LeftToRight,
    Margin,
    Noisy,
    Rule,
    Sampler,
    Steps,
    Threshold,
    TopK,
    Uniform,
    sample,
)
from unmask.denoiser import Query
from unmask.dependence.calibrate import oracle_profile
from unmask.oracles import (
    HMMDenoiser,
    MarkovDenoiser,
    Oracle,
    PerturbedDenoiser,
    Sudoku4Denoiser,
    TableDenoiser,
    exact_law,
    random_hmm,
    random_markov,
    random_table,
)
from unmask.rules import (
    Credit,
    DependenceBound,
    DrawnConfidence,
    Editing,
    Frechet,
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

from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "frontier.json"
IMAGES = ROOT / "docs" / "img"
PAGE = ROOT / "docs" / "frontier.md"

LENGTH = 5
LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02)
"""Divergences looked at, as shares of what drawing everything at once costs: the total correlation."""
GAMMAS = (0.0, *(10 ** (e / 4) for e in range(-10, 4)), math.inf)
EPSILONS = (0.0, *(10 ** (e / 4) for e in range(-8, 6)), math.inf)
BASE = "EB, entropy"

FAMILIES: dict[str, list[Rule]] = {
    BASE: [Rule(Entropy(), EntropyBound(g)) for g in GAMMAS],
    "EB, confidence": [Rule(Confidence(), EntropyBound(g)) for g in GAMMAS],
    "EB, margin": [Rule(Margin(), EntropyBound(g)) for g in GAMMAS],
    "EB, left to right": [Rule(LeftToRight(), EntropyBound(g)) for g in GAMMAS],
    "total, paced by masks": [Rule(Entropy(), CarriedBound(e)) for e in EPSILONS],
    "total, cap 1/2": [Rule(Entropy(), CarriedBound(e, 0.5)) for e in EPSILONS],
    "total, cap 1/4": [Rule(Entropy(), CarriedBound(e, 0.25)) for e in EPSILONS],
    "top-k": [Rule(Confidence(), TopK(k)) for k in range(1, LENGTH + 1)],
    "threshold": [Rule(Confidence(), Threshold(t)) for t in (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)],
    "factor": [Rule(Confidence(), Factor(f)) for f in (1e-3, 0.03, 0.1, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5)],
    "steps, uniform order": [Rule(Uniform(), Steps(n)) for n in range(1, LENGTH + 1)],
    "MaskGIT, noise 4.5": [Rule(DrawnConfidence(4.5), Steps(n)) for n in range(1, LENGTH + 1)],
    "LLaDA's quota": [Rule(DrawnConfidence(), Steps(n)) for n in range(1, LENGTH + 1)],
    "moment, alpha 4.5": [Rule(Moment(4.5), Steps(n)) for n in range(1, LENGTH + 1)],
    "EB, ties at random": [Rule(Noisy(noise=1e-4), EntropyBound(g)) for g in GAMMAS],
    "EB, noise 1/4": [Rule(Noisy(noise=0.25), EntropyBound(g)) for g in GAMMAS],
    "EB, noise 1": [Rule(Noisy(), EntropyBound(g)) for g in GAMMAS],
    "EB, noise 4": [Rule(Noisy(noise=4.0), EntropyBound(g)) for g in GAMMAS],
    "EB, margin, noise 1": [Rule(Noisy(Margin()), EntropyBound(g)) for g in GAMMAS],
    "total, noise 1": [Rule(Noisy(), CarriedBound(e)) for e in EPSILONS],
    "steps, noise 1": [Rule(Noisy(), Steps(n)) for n in range(1, LENGTH + 1)],
}

WIDE = tuple(g for g in GAMMAS if g >= 0.1)
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)


def _dependence(oracle: Oracle, length: int) -> list[AnyRule]:
    """The dependence bound with the profile of the oracle at hand."""
    profile = oracle_profile(oracle, length)
    return [Rule(Entropy(), DependenceBound(gamma, profile)) for gamma in GAMMAS]


NEWER: dict[str, list[AnyRule] | Callable[[Oracle, int], list[AnyRule]]] = {
    BASE: [Rule(Entropy(), EntropyBound(g)) for g in GAMMAS],
    "EB, noise 1": [Rule(Noisy(), EntropyBound(g)) for g in GAMMAS],
    "dependence bound": _dependence,
    "threshold": [Rule(Confidence(), Threshold(t)) for t in (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)],
    "Fréchet": [Rule(Confidence(), Frechet(d)) for d in (0, 0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 1)],
    "hierarchy": [
        Rule(Confidence(), Hierarchy(low, high))
        for low, high in itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), (0.5, 0.7, 0.9, 1.0))
        if low <= high
    ],
    "upstream gate": [
        Rule(Entropy(), UpstreamGate(EntropyBound(g), beta))
        for beta, g in itertools.product((0.0, 0.5, 1.0, 2.0, 4.0), (*WIDE, 0.0))
    ],
    "spaced": [
        Rule(Entropy(), Spaced(EntropyBound(g), spacing, None))
        for spacing, g in itertools.product((2, 3), (*WIDE, 0.0))
    ],
    "spaced, noise 1": [
        Rule(Noisy(), Spaced(EntropyBound(g), spacing, None)) for spacing, g in itertools.product((2, 3), (*WIDE, 0.0))
    ],
    "credit": [Rule(Confidence(), Credit(t)) for t in (0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)],
    "ancestral (ReMDM, rate 0)": [Remasking(n, 0.0) for n in (*LENGTHS, 64)],
    "ReMDM, cap": [Remasking(n, rate) for n, rate in itertools.product(LENGTHS, (0.02, 0.05, 0.1, 0.2, 0.5))],
    "ReMDM, rescale": [
        Remasking(n, rate, "rescale") for n, rate in itertools.product(LENGTHS, (0.02, 0.05, 0.1, 0.2, 0.5))
    ],
    "ReMDM, loop": [Remasking(n, rate, "loop") for n, rate in itertools.product(LENGTHS, (0.02, 0.05, 0.1))],
    "P2": [PathPlanning(n, eta) for n, eta in itertools.product(LENGTHS[:8], (0.5, 1.0, 2.0))],
    "WINO": [
        Wino(threshold, back)
        for threshold, back in itertools.product((0.0, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0), (0.01, 0.1, 0.3, 0.6, 0.9))
    ],
    "editing": [
        Editing(threshold, edit, rounds)
        for threshold, edit, rounds in itertools.product((0.0, 0.3, 0.5, 0.7, 1.0), (0.5, 0.8, 0.95), (1, 16))
    ],
    "EB, then Gibbs": [
        Gibbs(Rule(Entropy(), EntropyBound(g)), sweeps)
        for sweeps, g in itertools.product((0.2, 0.4, 0.6, 1.0, 2.0), (0.3, 1.0, math.inf))
    ],
    "EB, noise 1, then Gibbs": [
        Gibbs(Rule(Noisy(), EntropyBound(g)), sweeps)
        for sweeps, g in itertools.product((0.2, 0.4, 0.6, 1.0, 2.0), (0.3, 1.0, math.inf))
    ],
}
"""The rules of 2025 and 2026 beside EB, its noisy order and the dependence bound."""
BIASED = ("credit", "P2", "WINO", "editing")
"""Those whose draws are biased even one position at a time."""
SHOWN = (BASE, "EB, margin", "total, paced by masks", "threshold", "steps, uniform order", "EB, noise 1")
"""What the plots show."""


def _sharp(seed: int) -> TableDenoiser:
    """A random table with its probabilities cubed."""
    weights = random_table(3, LENGTH, seed).weights ** 3
    return TableDenoiser((weights / weights.sum()).reshape((3,) * LENGTH))


ORACLES: dict[str, dict[str, Oracle]] = {
    "lazy chains": {f"stay {stay}": MarkovDenoiser.lazy(3, stay) for stay in (0.55, 0.65, 0.75, 0.85, 0.95)},
    "chains": {f"chain {seed}": random_markov(3, seed, 0.5) for seed in range(3)},
    "HMMs": {f"HMM {seed}": random_hmm(3, 3, seed, 0.4) for seed in range(3)},
    "tables": {f"table {seed}": random_table(3, LENGTH, seed) for seed in range(3)},
    "sharp tables": {f"sharp table {seed}": _sharp(seed) for seed in range(3)},
}
WRONG = {
    "HMM 0, logits off by up to 0.5": PerturbedDenoiser(random_hmm(3, 3, 0, 0.4), 0.5),
    "table 0, logits off by up to 0.5": PerturbedDenoiser(random_table(3, LENGTH, 0), 0.5),
}
LONG = {"lazy chain, stay 0.75": MarkovDenoiser.lazy(3, 0.75), "HMM 0": random_hmm(3, 3, 0, 0.4)}


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


def grids(samples: int = 1000) -> dict[str, list[dict[str, float]]]:
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
    for name in NEWER:
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


def measure_newer(on_part: Callable[[str], None]) -> dict[str, Any]:
    """The rules of `NEWER` on every oracle."""
    started, found = time.perf_counter(), {"command": "python -m benchmarks.frontier newer", "groups": {}}
    for group, oracles in ORACLES.items():
        found["groups"][group] = {}
        for name, oracle in oracles.items():
            on_part(name)
            found["groups"][group][name] = {
                line: [_short(row) for row in laws(oracle, newer(line, oracle, LENGTH))] for line in NEWER
            }
    found["wrong"] = {}
    for name, denoiser in WRONG.items():
        on_part(name)
        found["wrong"][name] = {
            line: [_short(row) for row in laws(denoiser, newer(line, denoiser.oracle, LENGTH))] for line in NEWER
        }
    on_part("sudoku4")
    found["grids"] = grids()
    found["seconds"] = round(time.perf_counter() - started)
    return found


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


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["measure", "newer", "render"], default="measure")
    parser.add_argument("--json", action="store_true", help="print the evaluations relative to EB, per oracle")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.command == "measure":
        report = measure(lambda part: None if chosen.json else print(part, flush=True))
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
    report = json.loads(RESULTS.read_text())
    if chosen.command == "newer":
        report["newer"] = measure_newer(lambda part: None if chosen.json else print(part, flush=True))
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
