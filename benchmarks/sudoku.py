"""Top-1 against EB-Sampler on real Sudoku puzzles, per grade, at argmax.

    python -m benchmarks.sudoku validate   # chooses gamma, on validation puzzles
    python -m benchmarks.sudoku test       # docs/results.md's table, on test puzzles, at most 1,000 of a grade
    python -m benchmarks.sudoku table      # prints the table again from the saved figures

Figures go to docs/results/sudoku-{split}.json. What was measured is kept in runs/ for as long as weights and code stay
the same, so an interrupted run continues. `test` takes about twenty minutes of one core, nearly all of it for Top-1;
`make test-slow` takes all 2,045 puzzles with 17 clues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from unmask.evaluation.runner import answer, mean_ci95
from unmask.models.registry import load
from unmask.rules.named import NamedRule, named_rule
from unmask.sampling.loop import Sampler
from unmask.tasks.sudoku import as_tensor, solved
from unmask.tasks.sudoku_files import Puzzle, read_puzzles

from .pages import fill

ROOT = Path(__file__).parent.parent
PUZZLES = ROOT / "tests" / "data" / "sudoku.csv"
RESULTS = ROOT / "docs" / "results"
GAMMA = 0.05
GRADES = {
    "sudoku-exchange/easy": "easy",
    "sudoku-exchange/medium": "medium",
    "sudoku-exchange/hard": "hard",
    "sudoku-exchange/diabolical": "diabolical",
    "sudoku17": "17 clues",
}
OTHERS = {"sudoku-exchange": "rated", "top1465": "top1465"}


def puzzles(split: str, per_grade: int | None = None, names: dict[str, str] | None = None) -> dict[str, list[Puzzle]]:
    """Real puzzles by grade; `split` is "validation" (even SHA-256 of the puzzle) or "test" (odd)."""
    names = GRADES if names is None else names
    grouped: dict[str, list[Puzzle]] = {grade: [] for grade in names.values()}
    for puzzle in read_puzzles(PUZZLES).puzzles:
        odd = puzzle.digest % 2 == 1
        grade = names.get(puzzle.columns["source"])
        if grade is not None and odd == (split == "test"):
            grouped[grade].append(puzzle)
    return {grade: rows[:per_grade] for grade, rows in grouped.items()}


def measure(named: NamedRule, rows: list[Puzzle], batch_size: int = 64) -> Iterator[dict[str, Any]]:
    """Solves puzzles at argmax; yields, per batch, what each took and whether it was solved."""
    sampler = Sampler(load("sudoku"), named.rule)
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        run = answer(sampler, as_tensor(part), seed=0, temperature=0.0, batch_size=batch_size)
        yield {
            "rule": str(named),
            "first": start,
            "solved": [int(right) for right in solved(run.tokens).tolist()],
            "nfe": run.nfe.tolist(),
            "seconds": run.seconds,
        }


def checkpoint_sha() -> str:
    """Identifies the shipped weights."""
    return hashlib.sha256(resources.files("unmask").joinpath("data/sudoku/model.safetensors").read_bytes()).hexdigest()


def cache_folder(split: str) -> Path:
    """Where measurements of these weights and this code are kept."""
    code = hashlib.sha256()
    for path in sorted((ROOT / "unmask").rglob("*.py")):
        if "cli" not in path.parts:
            code.update(path.read_bytes())
    return ROOT / "runs" / f"sudoku-{split}-{checkpoint_sha()[:12]}-{code.hexdigest()[:12]}"


def compare(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of two samplers on the same puzzles, with the paired difference of their solve rates."""
    columns = {}
    for name, runs in (("one", one), ("other", other)):
        columns[name] = (
            torch.tensor([v for run in runs for v in run["solved"]], dtype=torch.float64),
            torch.tensor([v for run in runs for v in run["nfe"]], dtype=torch.float64),
        )
    (solved1, nfe1), (solved2, nfe2) = columns["one"], columns["other"]
    difference, ci95 = mean_ci95(solved2 - solved1)
    return {
        "puzzles": len(solved1),
        "top1_solved": float(solved1.mean()),
        "eb_solved": float(solved2.mean()),
        "difference": difference,
        "difference_ci95": ci95,
        "top1_nfe": float(nfe1.mean()),
        "eb_nfe": mean_ci95(nfe2)[0],
        "eb_nfe_ci95": mean_ci95(nfe2)[1],
        "speed_up": float(nfe1.mean() / nfe2.mean()),
        "top1_seconds": sum(run["seconds"] for run in one),
        "eb_seconds": sum(run["seconds"] for run in other),
    }


def collect(named: NamedRule, grade: str, rows: list[Puzzle], cache: Path | None) -> list[dict[str, Any]]:
    """`measure`, keeping finished batches in a file beside the run so that an interrupted one continues."""
    done: list[dict[str, Any]] = []
    path = None
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        path = cache / f"{grade}-{named}.jsonl".replace(" ", "-").replace(":", "-").replace(",", "-")
        if path.exists():
            for line in path.read_text().splitlines():
                run = json.loads(line) if line.endswith("}") else {"first": -1, "nfe": []}
                # A half-written line, or a batch cut otherwise by a run on more or fewer puzzles, does not continue.
                if run["first"] == count(done) and count(done) + len(run["nfe"]) <= len(rows):
                    done.append(run)
    start = count(done)
    for batch in measure(named, rows[start:]):
        batch["first"] += start
        done.append(batch)
        if path is not None:
            with path.open("a") as stream:
                stream.write(json.dumps(batch) + "\n")
        print(f"  {grade} {named}: {batch['first'] + len(batch['nfe'])}/{len(rows)}", flush=True)
    return done


def count(runs: list[dict[str, Any]]) -> int:
    """How many puzzles were measured."""
    return sum(len(run["nfe"]) for run in runs)


def table(report: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    lines = [
        f"| grade | puzzles | Top-1 solved | EB γ = {report['gamma']:g} solved | difference, paired"
        " | Top-1 NFE | EB NFE | fewer evaluations |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for grade, row in report["grades"].items():
        lines.append(
            f"| {grade} | {row['puzzles']} | {row['top1_solved']:.1%} | {row['eb_solved']:.1%}"
            f" | {100 * row['difference']:+.2f} ± {100 * row['difference_ci95']:.2f} points | {row['top1_nfe']:.1f}"
            f" | {row['eb_nfe']:.2f} ± {row['eb_nfe_ci95']:.2f} | {row['speed_up']:.1f} × |"
        )
    return "\n".join(lines)


def main() -> None:
    """Parses the command and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["validate", "test", "table"])
    parser.add_argument("--per-grade", type=int, default=None, help="only so many puzzles of each grade")
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.002, 0.005, 0.01, 0.02, 0.05, 0.1])
    parser.add_argument("--grades", nargs="+", default=list(GRADES.values()), help="only these (writes no figures)")
    parser.add_argument("--only", choices=["top1", "eb"], default=None, help="measure one sampler (then run the other)")
    parser.add_argument("--others", action="store_true", help="also the rated puzzles and top1465, without a target")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if arguments.command == "table":
        print(table(json.loads((RESULTS / "sudoku-test.json").read_text())))
        return
    split = "validation" if arguments.command == "validate" else "test"
    per_grade = arguments.per_grade or (150 if split == "validation" else 1000)
    sha = checkpoint_sha()
    groups = {grade: rows for grade, rows in puzzles(split, per_grade).items() if grade in arguments.grades}
    if arguments.others:
        groups |= puzzles(split, per_grade or 200, OTHERS)
    cache = cache_folder(split)
    gammas = arguments.gammas if split == "validation" else [GAMMA]
    reports = {}
    for gamma in gammas:
        rows = {}
        for grade, some in groups.items():
            one = [] if arguments.only == "eb" else collect(named_rule("top1-entropy"), grade, some, cache)
            bound = named_rule("entropy-bound", gamma=gamma)
            other = [] if arguments.only == "top1" else collect(bound, grade, some, cache)
            if one and other:
                rows[grade] = compare(one, other)
        reports[gamma] = {"split": split, "gamma": gamma, "checkpoint_sha256": sha, "grades": rows}
        if rows:
            print(f"\n{table(reports[gamma])}\n", flush=True)
    if arguments.only is None and len(groups) >= len(GRADES):
        content = reports[GAMMA] if split == "test" else {"split": split, "gammas": list(reports.values())}
        (RESULTS / f"sudoku-{split}.json").write_text(json.dumps(content, indent=1) + "\n")
        if split == "test" and arguments.per_grade is None:
            fill(ROOT / "docs" / "results.md", {"sudoku-test": table(content)})


if __name__ == "__main__":
    main()
