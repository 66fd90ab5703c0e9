r"""Attention as a price of dependence, beside the averaged profile: for docs/dependence.md.

    python -m benchmarks.attention [MODEL ...]            # measure what has no figures yet, then the page
    python -m benchmarks.attention --again MODEL ...      # measure them again
    python -m benchmarks.attention render                 # the page's tables, from the saved figures

**The question.** Drawing `x_i` and `x_j` together loses `I(x_i; x_j | context)` nats. A profile has its mean over
contexts, by class of pair. Attention `A^{lh}_ij` (layer `l`, head `h`: how much position `i` looks at `j`) is of the
context at hand, and comes with the evaluation. Is it a better price?

**Prices.** All are shares of the smaller entropy, which bounds the information (`H = min(H_i, H_j)`, in nats):

    price_ij = H · Σ_lh w_lh · (A^{lh}_ij + A^{lh}_ji) / 2,    w_lh >= 0.

With one weight for all heads of the last layer, of the last quarter of the layers, or of all, it is one regression
through the origin, `w = Σ movement / Σ H A`, as a profile's own means are ratios. With a weight per head, the weights
maximise the quasi-Poisson likelihood `Σ movement log price - price`, by the multiplicative (EM) updates of Lee and
Seung, which keep them non-negative and the totals right. The last price has a weight for the profile `P_ij` and for
every product `P_ij A^{lh}_ij`, too. Weights are fitted on validation contexts, and figures are of test contexts.

**What is measured**, as in `measure_profile`: mask `n ~ U{2..L}` tokens of a sequence at random, and for a masked `j`
draw `x_j ~ p_j` and evaluate again; `KL(p_i(· | x_j) ‖ p_i)` is an unbiased estimate of the information under the
model. On test contexts four values are averaged. Their noise limits the correlation that any price can have: to
`√(2r/(1+r))`, if `r` is that of the means of two and two.

**The frontier.** Sequences of the test split are sampled along their own tokens: a rule chooses what to draw together,
and the data's tokens are written. `-Σ log p_i(x_i)` is the log-loss of the sampler, whose mean is the data's entropy
plus `KL(data ‖ sampler)` along the rule's path; the same streams pair the rules.

Nothing is guaranteed of such a price: attention is no bound on influence. What `i` attends to may pass through other
positions, and what it looks at hardly may decide it.

References:
    Kim et al. (2026), arXiv:2603.12996, DAPD: attention between masked positions as a graph, of which an independent
    set is unmasked. Sahin et al. (2026), arXiv:2606.10829, ADAS: a candidate is discounted by its attention to those
    selected before it. Lee and Seung (2001), Algorithms for non-negative matrix factorization.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from unmask.models.registry import load
from unmask.rules.profile import Profile, load_profile
from unmask.tasks.of_model import task_of
from unmask.tasks.task import Task
from unmask.viewing.progress import progress

from .attention_frontier import GAMMAS, SAMPLED, frontier
from .attention_prices import (
    LEAST_NATS,
    LEAST_PAIRS,
    PRICES,
    PROFILE,
    Watched,
    Weights,
    compared,
    fitted,
    observe,
)
from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "attention.json"
PAGE = ROOT / "docs" / "dependence.md"

MODELS = ("text", "sapiens-vh", "rxnmapper", "maze-loops", "maze", "working", "arithmetic", "chat", "sapiens-vl")
"""The embedded models with attention: that of Sudoku passes messages along units, that of music is convolutional."""
CONTEXTS = {"validation": 300, "test": 200}
FEWEST = 2
"""Evaluations with fewer than which there is nothing to compare."""


def opened(name: str) -> tuple[Watched, Task, Profile]:
    """An embedded model, its task and its profile; texts are written from nothing."""
    task = task_of(name, **({"gaps": "free"} if name == "text" else {}))
    return Watched(load(name)), task, load_profile(name)


def correlations(name: str) -> dict[str, Any]:
    """Fits the weights of one model on validation contexts, and compares the prices on test contexts."""
    started = time.process_time()
    watched, task, profile = opened(name)
    with progress(note=True) as bar:
        job = bar.add_task(f"{name}, contexts", total=sum(CONTEXTS.values()), note="")
        seen = {
            split: observe(watched, task, profile, split, count, lambda: bar.advance(job))
            for split, count in CONTEXTS.items()
        }
    weights = fitted(seen["validation"], watched.layers)
    report: dict[str, Any] = {"layers": watched.layers, "heads": len(watched.seen[0]) // watched.layers}
    report |= compared(seen["test"], weights)
    report["weights"] = {price: each.as_dict() for price, each in weights.items()}
    return report | {"seconds": round(time.process_time() - started)}


def sampled(name: str, fitted: dict[str, Any]) -> dict[str, Any]:
    """The frontier of one model, with weights that were fitted before."""
    started = time.process_time()
    weights = {price: Weights.of(fitted[price]) for price in SAMPLED}
    with progress(note=True) as bar:
        job = bar.add_task(f"{name}, samplers", total=1 + len(SAMPLED) * len(GAMMAS), note="")
        found = frontier(name, *opened(name), weights, lambda: bar.advance(job))
    return found | {"seconds": round(time.process_time() - started)}


def correlation_table(models: dict[str, Any], kind: str) -> str:
    """Correlations within contexts, as Markdown."""
    title = "Pearson" if kind == "pearson" else "rank correlation"
    lines = [f"| {title} | contexts | most | " + " | ".join(PRICES) + " |", "|---|" + "---:|" * (len(PRICES) + 2)]
    for name, found in models.items():
        of = found[kind]
        cells = [f"{mean:.2f} ± {ci95:.2f}" for mean, ci95 in (of["prices"][price] for price in PRICES)]
        lines.append(f"| {name} | {found['contexts']} | {of['most']:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def difference_table(models: dict[str, Any]) -> str:
    """Paired differences of the correlations to the profile's, as Markdown."""
    others = [price for price in PRICES if price != PROFILE]
    lines = ["| less the profile's, Pearson; rank | " + " | ".join(others) + " |", "|---|" + "---:|" * len(others)]
    for name, found in models.items():
        cells = []
        for price in others:
            (a, da), (b, db) = (found[kind]["to_profile"][price] for kind in ("pearson", "rank"))
            cells.append(f"{a:+.2f} ± {da:.2f}; {b:+.2f} ± {db:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def frontier_table(models: dict[str, Any]) -> str:
    """Evaluations at equal loss, over the profile's, as Markdown."""
    lines = [
        "| model | sequences | γ of the profile | its NFE | its loss | " + " | ".join(SAMPLED) + " |",
        "|---|" + "---:|" * (len(SAMPLED) + 4),
    ]
    for name, found in models.items():
        for gamma, at in found["at_equal_loss"].items():
            if at["nfe"] < FEWEST:
                continue
            cells = [at["ratios"][price] for price in SAMPLED]
            shown = [f"{ratio:.2f} ({low:.2f} – {high:.2f})".replace("inf", "∞") for ratio, low, high in cells]
            start = f"| {name} | {found['sequences']} | {gamma} | {at['nfe']:.1f} | {at['loss']:+.3f} | "
            lines.append(start + " | ".join(shown) + " |")
    few = [name for name, found in models.items() if all(at["nfe"] < FEWEST for at in found["at_equal_loss"].values())]
    if few:
        lines.append(f"\nWith its profile each of {', '.join(few)} takes fewer than {FEWEST} evaluations anyway.")
    return "\n".join(lines)


def render() -> None:
    """Puts the tables of the saved figures into the page."""
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    parts = {
        part: {name: report[part][name] for name in MODELS if name in report[part]}
        for part in ("correlations", "frontier")
    }
    seconds = sum(found["seconds"] for part in parts.values() for found in part.values())
    foot = (
        f"`python -m benchmarks.attention`, torch {report['torch']}, {seconds:,} s of one core;"
        f" {CONTEXTS['validation']} validation and {CONTEXTS['test']} test contexts a model, of which those count that"
        f" have at least {LEAST_PAIRS} pairs with a mean influence of at least {LEAST_NATS:g} nats."
    )
    measured = parts["correlations"]
    shown = [correlation_table(measured, "pearson"), correlation_table(measured, "rank"), difference_table(measured)]
    tables = {
        "attention": "\n\n".join([*shown, foot]),
        "attention-frontier": frontier_table(parts["frontier"]),
    }
    fill(PAGE, tables)


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="of the embedded ones; default: all; or `render`")
    parser.add_argument("--again", action="store_true", help="measure what has figures, too")
    given = parser.parse_args()
    if given.models != ["render"] and (unknown := sorted({*given.models} - {*MODELS})):
        parser.error(f"there is no model {unknown[0]!r} with attention; there are {', '.join(MODELS)}")
    torch.set_num_threads(1)
    names = [] if given.models == ["render"] else given.models or list(MODELS)
    report: dict[str, Any] = {"torch": torch.__version__, "correlations": {}, "frontier": {}}
    if RESULTS.exists():
        report = json.loads(RESULTS.read_text(encoding="utf-8"))
    for part in ("correlations", "frontier"):
        for name in names:
            if given.again or name not in report[part]:
                measured = report["correlations"]
                found = correlations(name) if part == "correlations" else sampled(name, measured[name]["weights"])
                report[part][name] = found
                RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    render()


if __name__ == "__main__":
    main()
