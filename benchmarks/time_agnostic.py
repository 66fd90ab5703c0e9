"""Does a masked model need the time? Equal networks with and without it, on the same text with the same masks.

    python -m benchmarks.time_agnostic          # train and judge both for three seeds, save, print the table
    python -m benchmarks.time_agnostic table    # the table again, from the saved figures

The networks are those of configs/text-time.yaml and configs/text-agnostic.yaml; they differ in `time` and in nothing
else, and for a seed see the same examples and masks in the same order. Each is judged by its NELBO on the same windows
of the test split, under the same masks, so differences are paired. An interrupted run continues: runs are kept under
runs/time-agnostic. The claim is that of arXiv:2409.02908, section 3: the optimal denoiser does not depend on the time.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.evaluation.runner import mean_ci95
from unmask.likelihood.nelbo import nelbo
from unmask.models.registry import load
from unmask.schedule import SCHEDULES
from unmask.tasks._common import stack
from unmask.tasks.named import named_task
from unmask.training.config import TrainConfig, read_config
from unmask.training.run import train

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "time-agnostic.json"
NAMES = ("time", "agnostic")
STRATA, REPLICATES = 16, 2


def trained(name: str, seed: int, steps: int | None, out: Path) -> tuple[Path, TrainConfig]:
    """Trains one network, unless that is done."""
    config = read_config(
        ROOT / "configs" / f"text-{name}.yaml", seed=seed, steps=steps, out=str(out / f"{name}-{seed}")
    )
    return train(config), config


def judged(folder: Path, config: TrainConfig, windows: int) -> Float[Tensor, " windows"]:
    """NELBO of each test window, in nats per character."""
    task = named_task(config.task.name, **config.task.settings)
    x, maskable = stack(task.examples("test"), windows)
    schedule = SCHEDULES[config.schedule]
    found = nelbo(load(folder), x, maskable=maskable, strata=STRATA, replicates=REPLICATES, seed=0, schedule=schedule)
    return found.per_token


def measure(seeds: list[int], steps: int | None, windows: int, out: Path) -> dict[str, Any]:
    """Figures of both networks for every seed, and their difference window by window; ± are 95 % intervals."""
    rows, counted = [], 0
    for seed in seeds:
        row: dict[str, Any] = {"seed": seed}
        values = {}
        for name in NAMES:
            folder, config = trained(name, seed, steps, out)
            values[name] = judged(folder, config, windows)
            mean, ci95 = mean_ci95(values[name])
            facts = json.loads((folder / "metrics.json").read_text())
            row[name] = {"nelbo": mean, "ci95": ci95, **{key: facts[key] for key in ("steps", "parameters")}}
            print(f"{name}, seed {seed}: {mean:.4f} ± {ci95:.4f} nats per character", flush=True)
        row["difference"], row["difference_ci95"] = mean_ci95(values["time"] - values["agnostic"])
        rows.append(row)
        counted = len(values["time"])
    return {"windows": counted, "strata": STRATA, "replicates": REPLICATES, "torch": torch.__version__, "rows": rows}


def table(report: dict[str, Any]) -> str:
    """The comparison as Markdown; the last row has means and standard deviations over seeds."""
    lines = [
        "| seed | NELBO with time | NELBO without | difference, paired |",
        "|---|---|---|---|",
    ]
    rows = report["rows"]
    for row in rows:
        both = " | ".join(f"{row[name]['nelbo']:.4f} ± {row[name]['ci95']:.4f}" for name in NAMES)
        lines.append(f"| {row['seed']} | {both} | {row['difference']:+.4f} ± {row['difference_ci95']:.4f} |")
    columns = [[row[name]["nelbo"] for row in rows] for name in NAMES] + [[row["difference"] for row in rows]]
    cells = []
    for values, sign in zip(columns, ("", "", "+"), strict=True):
        spread = float(torch.tensor(values).std()) if len(values) > 1 else float("nan")
        cells.append(f"{sum(values) / len(values):{sign}.4f} (sd {spread:.4f})")
    return "\n".join([*lines, f"| mean | {' | '.join(cells)} |"])


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("measure", "table"), default="measure")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the configurations'")
    parser.add_argument("--windows", type=int, default=512, help="windows of the test split")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "time-agnostic", help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of the figures")
    arguments = parser.parse_args()
    if arguments.what == "measure":
        report = measure(arguments.seeds, arguments.steps, arguments.windows, arguments.out)
        arguments.results.parent.mkdir(parents=True, exist_ok=True)
        arguments.results.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(table(json.loads(arguments.results.read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
