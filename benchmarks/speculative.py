"""What verified drafts save and cost: evaluations one after the other, states evaluated, seconds.

    python -m benchmarks.speculative          # measure, write docs/results/speculative.json and the page's table
    python -m benchmarks.speculative --json   # measure and print, write nothing

Every row is checked: its tokens must equal those of one position at a time with the same seeds, or the command fails.
Seconds are processor time of one thread, which other work on the machine does not change much. On a processor a batch
of states costs what its states cost; where a batch costs hardly more than one state, time goes with the NFE.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask import Determined, Entropy, EntropyBound, LeftToRight, One, Result, Rule, Speculative, Uniform, sample
from unmask.denoiser import Denoiser
from unmask.models.registry import load
from unmask.oracles import MarkovDenoiser, Sudoku4Denoiser, random_hmm
from unmask.rules.budget import Budget
from unmask.rules.named import FLOOR
from unmask.rules.order import Order
from unmask.tasks.sudoku import as_tensor, demo_puzzles, solved

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "speculative.json"
PAGE = ROOT / "docs" / "speculative.md"
DRAFTS = (1, 2, 4, 8, 16)
ORDERS: dict[str, Order] = {
    "entropy": Entropy(),
    "determined": Determined(FLOOR),
    "uniform": Uniform(),
    "left-to-right": LeftToRight(),
}


def problems(puzzles: int, sequences: int) -> dict[str, tuple[Denoiser, Tensor]]:
    """Denoisers and what they complete."""
    markov, hmm, grid = MarkovDenoiser.lazy(3, 0.9), random_hmm(3, 3, 0), Sudoku4Denoiser()
    return {
        "sudoku network": (load("sudoku"), as_tensor(demo_puzzles()[:puzzles])),
        "markov, stay 0.9": (markov, torch.full((sequences, 32), markov.mask_id)),
        "hmm": (hmm, torch.full((sequences, 32), hmm.mask_id)),
        "sudoku4": (grid, torch.full((sequences, 16), grid.mask_id)),
    }


def timed(denoiser: Denoiser, x: Tensor, rule: Rule, temperature: float) -> tuple[Result, dict[str, Any]]:
    """Runs a rule; returns what it drew, and what that took per sequence."""
    began = time.process_time()
    result = sample(denoiser, x, rule, seed=0, temperature=temperature)
    seconds = time.process_time() - began
    cost: dict[str, Any] = {
        "nfe": float(result.nfe.double().mean()),
        "evaluations": float(result.evaluations.double().mean()),
        "seconds": seconds / len(x),
    }
    if x.shape[1] == 81:
        cost["solved"] = int(solved(result.tokens).sum())
    return result, cost


def measure(puzzles: int, sequences: int, only: list[str] | None = None) -> list[dict[str, Any]]:
    """One row per problem, temperature, order and draft; `draft` 0 is one at a time.

    `same` is the share of sequences equal to one at a time. Rows of EB at γ = 0, which is exact on oracles too, and of
    the control without the order check are named by `rule`.

    Raises:
        RuntimeError: If a verified draft changed a token.
    """
    rows = []
    for problem, (denoiser, x) in problems(puzzles, sequences).items():
        if only is not None and problem not in only:
            continue
        for temperature in (0.0, 1.0):
            for name, order in ORDERS.items():
                one, cost = timed(denoiser, x, Rule(order, One()), temperature)
                where = {"problem": problem, "temperature": temperature, "order": name}
                rows.append({**where, "rule": "one", "draft": 0, "same": 1.0, **cost})
                runs: list[tuple[str, int, Budget]] = [("speculative", draft, Speculative(draft)) for draft in DRAFTS]
                if not order.marginal_free:
                    runs.append(("unchecked", 8, Speculative(8, check_order=False)))
                    runs.append(("entropy-bound 0", 0, EntropyBound(0.0)))
                for rule, draft, budget in runs:
                    found, cost = timed(denoiser, x, Rule(order, budget), temperature)
                    same = float((found.tokens == one.tokens).all(-1).double().mean())
                    if rule == "speculative" and same < 1:
                        raise RuntimeError(f"a token changed: {where}, draft {draft}")
                    rows.append({**where, "rule": rule, "draft": draft, "same": same, **cost})
                print(f"  {problem}, temperature {temperature:g}, {name}", file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """NFE and states evaluated by draft, as Markdown."""
    heads = [f"K = {draft}" for draft in DRAFTS]
    lines = [
        f"| problem | T | order | one | {' | '.join(heads)} | EB γ = 0 | K = 8, unchecked |",
        "| --- | --- | --- | ---: | " + " | ".join(["---:"] * (len(DRAFTS) + 2)) + " |",
    ]
    groups: dict[tuple[Any, ...], dict[tuple[str, int], dict[str, Any]]] = {}
    for row in rows:
        key = row["problem"], row["temperature"], row["order"]
        groups.setdefault(key, {})[row["rule"], row["draft"]] = row
    columns = [("one", 0), *(("speculative", d) for d in DRAFTS), ("entropy-bound 0", 0), ("unchecked", 8)]
    for (problem, temperature, order), found in groups.items():
        cells = []
        for column in columns:
            row = found.get(column)
            if row is None:
                cells.append("")
            elif row["nfe"] == row["evaluations"]:
                cells.append(f"{row['nfe']:.1f}")
            else:
                cells.append(f"{row['nfe']:.1f} ({row['evaluations']:.0f})")
        lines.append(f"| {problem} | {temperature:g} | {order} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON and write no file")
    parser.add_argument("--puzzles", type=int, default=3, help="Sudoku puzzles")
    parser.add_argument("--sequences", type=int, default=200, help="sequences per oracle")
    parser.add_argument("--problems", nargs="+", default=None, help="only these (writes no file)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.puzzles, arguments.sequences, arguments.problems)
    if arguments.json:
        print(json.dumps(rows, indent=1))
        return
    print(table(rows))
    if arguments.problems is None:
        RESULTS.write_text(json.dumps({"puzzles": arguments.puzzles, "rows": rows}, indent=1) + "\n")
        before, rest = PAGE.read_text(encoding="utf-8").split("<!-- speculative:begin -->")
        shown = f"<!-- speculative:begin -->\n{table(rows)}\n<!-- speculative:end -->"
        PAGE.write_text(before + shown + rest.split("<!-- speculative:end -->")[1], encoding="utf-8")


if __name__ == "__main__":
    main()
