"""The exact part of docs/dependence.md: prices of dependence beside EB, on oracles, with profiles that were measured.

    python -m benchmarks.dependence measure   # on oracles of up to nine tokens (half an hour of one core)
    python -m benchmarks.dependence lengths   # chains up to 512 tokens (about ten minutes)
    python -m benchmarks.dependence small     # the counter-example, and the relatives on six tokens (two minutes)
    python -m benchmarks.dependence render    # the tables again, from the saved figures

Figures go to docs/results/dependence.json, dependence-lengths.json and dependence-small.json.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unmask import (
    Confidence,
    DependenceBound,
    Entropy,
    EntropyBound,
    LeftToRight,
    Noisy,
    One,
    Rule,
    Sampler,
    TopK,
    Uniform,
    sample,
)
from unmask.denoiser import Query
from unmask.dependence.audit import audited_sample
from unmask.dependence.calibrate import measure_profile, oracle_profile
from unmask.likelihood.curve import optimal_sizes, oracle_curve
from unmask.oracles import (
    HMMDenoiser,
    MarkovDenoiser,
    Oracle,
    PerturbedDenoiser,
    Sudoku4Denoiser,
    exact_law,
    parity_table,
    random_hmm,
    random_markov,
    random_table,
)
from unmask.rules import Dilated, Groups, HighEntropy, IndependenceTest
from unmask.rules.order import Order
from unmask.rules.profile import Line, Profile

from .frontier_page import evaluations_for, hull
from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "dependence.json"
LENGTHS = ROOT / "docs" / "results" / "dependence-lengths.json"
SMALL = ROOT / "docs" / "results" / "dependence-small.json"
PAGE = ROOT / "docs" / "dependence.md"

STAYS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)
TARGET = 0.01
"""Nats per sequence at which chains are compared."""
LEVELS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.005)
"""Divergences at which frontiers are compared, as shares of the total correlation."""
GAMMAS = (0.0, *(10 ** (e / 4) for e in range(-12, 4)), math.inf)
BASE = "EB"


def families(profile: Profile, line: bool) -> dict[str, list[Rule]]:
    """Every way to price, all in the entropy order but for the last two rows, which are in the reverse of it."""

    def priced(order: Order | None = None, of: Profile = profile, **settings: Any) -> list[Rule]:
        return [Rule(order or Entropy(), DependenceBound(gamma, of, **settings)) for gamma in GAMMAS]

    rows = {
        BASE: [Rule(Entropy(), EntropyBound(gamma)) for gamma in GAMMAS],
        "sum of all": priced(),
        "two largest": priced(aggregate="largest"),
        "nearest on each side": priced(aggregate="nearest") if line else [],
        "sum, in nats": priced(scaled=False),
        "sum, blind to tokens in between": priced(of=profile.pooled("screen")) if line else [],
        "sum, blind to entropies": priced(of=profile.pooled("level")),
        "sum, median": priced(quantile=0.5),
        "sum, 90 % quantile": priced(quantile=0.9),
        "EB, highest entropy first": [Rule(HighEntropy(), EntropyBound(gamma)) for gamma in GAMMAS],
        "sum of all, highest entropy first": priced(HighEntropy()),
    }
    return {name: rules for name, rules in rows.items() if rules}


ORACLES: dict[str, dict[str, tuple[Oracle | PerturbedDenoiser, int]]] = {
    "2-state chains": {f"stay {stay}": (MarkovDenoiser.lazy(2, stay), 9) for stay in STAYS},
    "3-state chains": {f"stay {stay}": (MarkovDenoiser.lazy(3, stay), 9) for stay in (0.5, 0.6, 0.75, 0.9)},
    "random chains": {f"chain {seed}": (random_markov(3, seed, 0.5), 6) for seed in range(3)},
    "HMMs": {f"HMM {seed}": (random_hmm(3, 3, seed, 0.4), 6) for seed in range(3)},
    "tables": {f"table {seed}": (random_table(3, 5, seed), 5) for seed in range(3)},
    "wrong models": {
        "HMM 0, logits off by up to 0.5": (PerturbedDenoiser(random_hmm(3, 3, 0, 0.4), 0.5), 6),
        "table 0, logits off by up to 0.5": (PerturbedDenoiser(random_table(3, 5, 0), 0.5), 5),
    },
    "4×4 Sudoku": {"4×4 Sudoku": (Sudoku4Denoiser(), 16)},
}


def calibrated(denoiser: Oracle | PerturbedDenoiser, length: int) -> Profile:
    """A profile measured on 400 samples of the data, by the denoiser that is sampled."""
    if isinstance(denoiser, Oracle):
        return oracle_profile(denoiser, length)
    blank = torch.full((400, length), denoiser.mask_id)
    data = sample(denoiser.oracle, blank, Rule(LeftToRight(), One()), seed=1).tokens
    return measure_profile(denoiser, data, Profile.empty(Line.of(length)), seed=0)


def laws(denoiser: Oracle | PerturbedDenoiser, length: int, rules: list[Rule]) -> list[dict[str, float]]:
    """Exact figures of each rule on sequences of masks only."""
    x = torch.full((length,), denoiser.mask_id)
    found = [exact_law(denoiser, rule, x) for rule in rules]
    return [{"nfe": law.nfe_mean, "kl": law.kl} for law in found]


def measure(on_part: Callable[[str], None]) -> dict[str, Any]:
    """Exact laws of every rule on every oracle."""
    started = time.perf_counter()
    report: dict[str, Any] = {
        "command": "python -m benchmarks.dependence measure",
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "groups": {},
    }
    for group, oracles in ORACLES.items():
        report["groups"][group] = {}
        for name, (denoiser, length) in oracles.items():
            on_part(f"{group}, {name}")
            profile = calibrated(denoiser, length)
            rows = families(profile, isinstance(profile.geometry, Line))
            report["groups"][group][name] = {
                "length": length,
                "calibration": profile.evaluations,
                "rules": {family: laws(denoiser, length, rules) for family, rules in rows.items()},
            }
    report["seconds"] = round(time.perf_counter() - started)
    return report


def fewest(rows: list[dict[str, float]], kl: float = TARGET) -> float:
    """The fewest evaluations of any one setting whose divergence is at most `kl`."""
    return min((row["nfe"] for row in rows if row["kl"] <= kl), default=math.inf)


def against(rows: list[dict[str, float]], base: list[dict[str, float]]) -> list[float]:
    """Evaluations relative to the base's, at each level of divergence and at none; no entries for an independent law.

    What is off the base by a constant, the error of a wrong model, is in both and taken out.
    """
    floor = min(row["kl"] for row in base)
    lines = [hull([(row["nfe"], row["kl"] - floor) for row in each]) for each in (rows, base)]
    top = lines[1][0][1]
    if top < 1e-9:
        return []
    levels = [*(share * top for share in LEVELS), 0.0]
    return [evaluations_for(lines[0], level) / evaluations_for(lines[1], level) for level in levels]


def chain_table(report: dict[str, Any]) -> str:
    """Evaluations on chains at a divergence of at most `TARGET`, as Markdown."""
    chosen = (BASE, "sum of all", "two largest", "nearest on each side", "EB, highest entropy first")
    chosen = (*chosen, "sum of all, highest entropy first")
    lines = ["| nine tokens | " + " | ".join(chosen) + " | calibration |", "|---|" + "---:|" * (len(chosen) + 1)]
    for group in ("2-state chains", "3-state chains"):
        for name, found in report["groups"][group].items():
            cells = [f"{fewest(found['rules'][family]):.3g}" for family in chosen]
            lines.append(f"| {group[:7]}, {name} | " + " | ".join(cells) + f" | {found['calibration']:,} |")
    return "\n".join(lines)


def frontier_table(report: dict[str, Any]) -> str:
    """Evaluations relative to EB in the entropy order, over groups of oracles, as Markdown."""
    groups = report["groups"]
    names = list(report["groups"]["2-state chains"]["stay 0.5"]["rules"])
    lines = ["| price | " + " | ".join(groups) + " | worst |", "|---|" + "---:|" * (len(groups) + 1)]
    for family in names[1:]:
        cells, seen = [], []
        for oracles in groups.values():
            values = [
                value
                for found in oracles.values()
                if family in found["rules"]
                for value in against(found["rules"][family], found["rules"][BASE])
            ]
            seen += values
            mean = math.exp(math.fsum(map(math.log, values)) / len(values)) if values else math.nan
            cells.append(f"{mean:.2f}" if math.isfinite(mean) else "–")
        worst = f"{max(seen):.2f}" if math.isfinite(max(seen)) else "–"
        lines.append(f"| {family} | " + " | ".join(cells) + f" | {worst} |")
    lines += ["", f"`{report['command']}`, torch {report['torch']}, {report['seconds']} s."]
    return "\n".join(lines)


SIZES = (8, 16, 32, 64, 128, 256, 512)
SEQUENCES = 128
ORDERS: dict[str, Order] = {
    "entropy": Entropy(),
    "highest entropy": HighEntropy(),
    "uniform": Uniform(),
    "noise 1": Noisy(),
}
ENTROPY_BOUND_UP_TO = 64
"""EB draws one at a time here, so longer sequences cost what they have tokens."""


def paths(oracle: HMMDenoiser, rule: Rule, data: torch.Tensor) -> dict[str, float]:
    """Evaluations and dependence error along the data's own paths, where no law can be enumerated.

    The loop runs as always, and after every step the tokens it drew are replaced by those of the data. With `r` the
    logarithm of joint over product, `r + e^{-r} - 1` has the step's divergence as its mean, is never negative, and
    varies far less than `r` where that is small.
    """
    sampler, nats = Sampler(oracle, rule), torch.zeros(len(data), dtype=torch.float64)
    state = sampler.start(torch.full_like(data, oracle.mask_id), seed=0)
    while not bool(state.finished.all()):
        live, before = (~state.finished).nonzero().squeeze(-1), state.x
        state, info = sampler.step(state)
        chosen = torch.zeros_like(state.pending)
        chosen[info.sequence] = info.chosen
        state = replace(state, x=torch.where(chosen, data, state.x))
        joint = oracle.log_marginal(state.x[live]) - oracle.log_marginal(before[live])
        query = Query(before[live], chosen[live], torch.ones_like(chosen[live]), live)
        log_p = oracle(query).log_softmax(-1).gather(-1, data[chosen].unsqueeze(-1)).squeeze(-1)
        single = torch.zeros(len(data), dtype=torch.float64).index_add_(0, chosen.nonzero()[:, 0], log_p)[live]
        r = joint - single
        nats[live] += r + torch.expm1(-r)
    nfe = state.nfe.double()
    error = float(nats.std()) / len(data) ** 0.5
    return {"nfe": float(nfe.mean()), "kl": float(nats.mean()), "error": error}


def lengths(on_part: Callable[[str], None]) -> dict[str, Any]:
    """Dependence error and evaluations on a chain of growing length, in four orders."""
    started = time.perf_counter()
    oracle = MarkovDenoiser.lazy(2, 0.75)
    report: dict[str, Any] = {
        "command": "python -m benchmarks.dependence lengths",
        "oracle": "two-state chain, stay 0.75",
        "sequences": SEQUENCES,
        "torch": torch.__version__,
        "orders": {name: {"dependence bound": {}, BASE: {}} for name in ORDERS},
    }
    gammas = tuple(10 ** (e / 2) for e in range(-8, 0))
    for size in SIZES:
        blank = torch.full((SEQUENCES, size), oracle.mask_id)
        data = sample(oracle, blank, Rule(LeftToRight(), One()), seed=1).tokens
        profile = oracle_profile(oracle, size)
        for name, order in ORDERS.items():
            on_part(f"{size} tokens, {name}")
            of = report["orders"][name]
            rules = [Rule(order, DependenceBound(gamma, profile)) for gamma in gammas]
            of["dependence bound"][size] = [paths(oracle, rule, data) for rule in rules]
            if size <= ENTROPY_BOUND_UP_TO:
                rules = [Rule(order, EntropyBound(gamma)) for gamma in (0.0, 0.7, 1.4)]
                of[BASE][size] = [paths(oracle, rule, data) for rule in rules]
    report["seconds"] = round(time.perf_counter() - started)
    return report


def exponent(sizes: list[float], evaluations: list[float]) -> float:
    """The least-squares slope of `log evaluations` over `log length`."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (sizes, evaluations))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


def length_table(report: dict[str, Any]) -> str:
    """Evaluations at equal error per sequence, and their growth, as Markdown."""
    per_sequence: list[tuple[str, Callable[[int], float]]] = [
        ("0.1 a sequence", lambda size: 0.1),
        ("0.002 a token", lambda size: 0.002 * size),
    ]
    lines = [
        "| order | rule | nats | " + " | ".join(map(str, SIZES)) + " | exponent |",
        "|---|---|---|" + "---:|" * (len(SIZES) + 1),
    ]
    for order, rules in report["orders"].items():
        for rule, found in rules.items():
            for label, level in per_sequence:
                sizes, counts = [], []
                for size in map(int, found):
                    line = hull([(row["nfe"], row["kl"]) for row in found[str(size)]])
                    sizes.append(size)
                    counts.append(evaluations_for(line, level(size)))
                cells = [f"{n:.1f}" for n in counts] + [""] * (len(SIZES) - len(counts))
                slope = exponent(sizes, counts) if all(map(math.isfinite, counts)) else math.nan
                lines.append(f"| {order} | {rule} | {label} | " + " | ".join(cells) + f" | {slope:.2f} |")
    lines += ["", f"`{report['command']}`, {report['sequences']} sequences, torch {report['torch']}."]
    return "\n".join(lines)


def small() -> dict[str, Any]:
    """The parity constraint with its audits, and the relatives."""
    report: dict[str, Any] = {
        "command": "python -m benchmarks.dependence small",
        "torch": torch.__version__,
        "parity": [],
        "relatives": {},
        "calibration": {},
    }
    for groups, size in ((2, 3), (1, 6)):
        oracle, x = parity_table(groups, size), torch.full((groups * size,), 2)
        for contexts, gamma in ((400, 0.01), (400, 0.1), (4000, 0.1)):
            rule = Rule(Entropy(), DependenceBound(gamma, oracle_profile(oracle, len(x), contexts=contexts)))
            law, bound = (exact_law(oracle, each, x) for each in (rule, Rule(Entropy(), EntropyBound(gamma))))
            _, found = audited_sample(oracle, x.expand(10_000, -1), rule, tests=0.5, seed=0)
            report["parity"].append(
                {
                    "bits": f"{groups} × {size}",
                    "contexts": contexts,
                    "gamma": gamma,
                    "nfe": law.nfe_mean,
                    "kl": law.kl,
                    "bound": {"nfe": bound.nfe_mean, "kl": bound.kl},
                    "predicted": float(found.predicted.mean()),
                    "realised": float(found.realised.mean()),
                    "charged": float(found.charged.mean()),
                    "lost": float(found.lost.mean()),
                    "lost_error": float(found.lost.std()) / 10_000**0.5,
                }
            )
    for stay in (0.6, 0.75, 0.9):
        oracle, length = MarkovDenoiser.lazy(2, stay), 6
        curve, profile = oracle_curve(oracle, length), oracle_profile(oracle, length)
        sizes = [optimal_sizes(curve, evaluations) for evaluations in range(1, length + 1)]
        rules = {
            "EB": [Rule(Entropy(), EntropyBound(gamma)) for gamma in GAMMAS],
            "dependence bound": [Rule(Entropy(), DependenceBound(gamma, profile)) for gamma in GAMMAS],
            "independence tests": [Rule(Confidence(), IndependenceTest(gamma)) for gamma in GAMMAS[:-1]],
            "dilated": [Rule(LeftToRight(), Dilated(spacing)) for spacing in (8, 4, 3, 2, 1)],
            "random-k": [Rule(Uniform(), TopK(k)) for k in range(1, length + 1)],
            "best sizes, uniform order": [Rule(Uniform(), Groups(each)) for each in sizes],
            "EB, noise 1": [Rule(Noisy(), EntropyBound(gamma)) for gamma in GAMMAS],
            "dependence bound, noise 1": [Rule(Noisy(), DependenceBound(gamma, profile)) for gamma in GAMMAS],
        }
        report["relatives"][f"stay {stay}"] = {name: laws(oracle, length, each) for name, each in rules.items()}
    for stay, other in ((0.6, 0.75), (0.75, 0.6), (0.75, 0.9), (0.9, 0.75)):
        oracle, blank = MarkovDenoiser.lazy(2, stay), torch.full((9,), 2)
        base = laws(oracle, 9, [Rule(Entropy(), EntropyBound(gamma)) for gamma in GAMMAS])
        for name, profile in {
            "400 contexts": oracle_profile(oracle, 9),
            "40 contexts": oracle_profile(oracle, 9, contexts=40),
            f"of a chain with stay {other}": oracle_profile(MarkovDenoiser.lazy(2, other), 9),
        }.items():
            rule = Rule(Entropy(), DependenceBound(0.05, profile))
            law = exact_law(oracle, rule, blank)
            _, found = audited_sample(oracle, blank.expand(4000, -1), rule, tests=0.5, seed=0)
            rows = laws(oracle, 9, [Rule(Entropy(), DependenceBound(gamma, profile)) for gamma in GAMMAS])
            ratio = found.movement()[0]
            (corrected,) = laws(oracle, 9, [Rule(Entropy(), DependenceBound(0.05 / ratio, profile))])
            report["calibration"].setdefault(f"stay {stay}", {})[name] = {
                "ratios": against(rows, base),
                "nfe": law.nfe_mean,
                "kl": law.kl,
                "movement": ratio,
                "corrected": corrected,
                "excess": found.excess(),
            }
    return report


def calibration_table(report: dict[str, Any]) -> str:
    """What profiles of fewer contexts or other data cost, and what their audits say, as Markdown."""
    lines = [
        "| two states, nine tokens | profile | evaluations relative to EB, worst | at γ = 0.05: evaluations, KL |"
        " realised over predicted movement | γ divided by that | lost beyond the charge |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for stay, profiles in report["calibration"].items():
        for name, row in profiles.items():
            mean = math.exp(math.fsum(map(math.log, row["ratios"])) / len(row["ratios"]))
            beyond, error = row["excess"]
            lines.append(
                f"| {stay} | {name} | {mean:.2f}, {max(row['ratios']):.2f} | {row['nfe']:.1f}, {row['kl']:.3f} |"
                f" {row['movement']:.2f} | {row['corrected']['nfe']:.1f}, {row['corrected']['kl']:.3f} |"
                f" {beyond:+.3f} ± {error:.3f} |"
            )
    return "\n".join(lines)


def parity_rows(report: dict[str, Any]) -> str:
    """The counter-example and its audits, as Markdown."""
    lines = [
        "| bits | contexts | γ | evaluations | KL | EB: evaluations, KL | left masked: predicted, realised movement |"
        " drawn together: charged, lost as audited |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["parity"]:
        moved = f"{row['predicted']:.3f}, {row['realised']:.3f}" if row["predicted"] else "nothing left"
        found = f"{row['charged']:.3f}, {row['lost']:.2f} ± {row['lost_error']:.2f}"
        lines.append(
            f"| {row['bits']} | {row['contexts']} | {row['gamma']:g} | {row['nfe']:.0f} | {row['kl']:.3f} |"
            f" {row['bound']['nfe']:.0f}, {row['bound']['kl']:.3f} | {moved} | {found} |"
        )
    lines += ["", f"`{report['command']}`, 10,000 sequences, torch {report['torch']}."]
    return "\n".join(lines)


def relatives_table(report: dict[str, Any]) -> str:
    """Evaluations of everything there is to compare with, as Markdown."""
    levels, names = (TARGET, 0.1), list(report["relatives"])
    heads = [f"{name}: {level:g} nats" for name in names for level in levels]
    lines = ["| six tokens, two states | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for rule in report["relatives"][names[0]]:
        found = [fewest(report["relatives"][name][rule], level) for name in names for level in levels]
        lines.append(f"| {rule} | " + " | ".join(f"{n:.1f}" if math.isfinite(n) else "–" for n in found) + " |")
    return "\n".join(lines)


def render() -> None:
    """Puts the tables of saved figures into the page."""
    tables = {}
    if RESULTS.exists():
        report = json.loads(RESULTS.read_text(encoding="utf-8"))
        tables |= {"chains": chain_table(report), "prices": frontier_table(report)}
    if LENGTHS.exists():
        tables["growth"] = length_table(json.loads(LENGTHS.read_text(encoding="utf-8")))
    if SMALL.exists():
        report = json.loads(SMALL.read_text(encoding="utf-8"))
        tables |= {
            "parity": parity_rows(report),
            "relatives": relatives_table(report),
            "calibration": calibration_table(report),
        }
    fill(PAGE, tables)


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "lengths", "small", "render"))
    what = parser.parse_args().what
    torch.set_num_threads(1)
    if what != "render":
        path = {"measure": RESULTS, "lengths": LENGTHS, "small": SMALL}[what]
        work = {"measure": measure, "lengths": lengths}.get(what)
        report = small() if work is None else work(lambda part: print(part, flush=True))
        path.write_text(json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")
    render()


if __name__ == "__main__":
    main()
