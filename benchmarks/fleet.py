"""What a job costs on 1 to 64 GPUs: a simulation from measured evaluations and a published time of the model.

    python -m benchmarks.fleet                      # the table of docs/many-machines.md, into the page
    python -m benchmarks.fleet --json --price 2.5 --rows 100000 --gpus 1 8 64

Nothing of it is measured on GPUs here. The evaluations per token are those of docs/results/working.json (an embedded
model); the time of an evaluation is the published throughput of LLaDA 8B without a cache, one token per evaluation
(Fast-dLLM, arXiv:2505.22618, GSM8K, answers of 256 tokens, one A100: 6.7 tokens per second). All else is assumed, and
an option.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .pages import fill

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "many-machines.md"
WORKING = ROOT / "docs" / "results" / "working.json"
GPUS = (1, 2, 4, 8, 16, 32, 64)
RULES = ("top1-entropy", "entropy-bound:gamma=0.01", "threshold:threshold=0.9")
MODE = "blocks of 8"


@dataclass(frozen=True)
class Plan:
    """What is assumed of a job.

    Attributes:
        rows: Prompts.
        tokens: New tokens of each.
        shard: Rows of a shard.
        tokens_per_second: Published throughput at one token per evaluation, one sequence at a time. Batches are taken
            to gain nothing: an 8B model is compute-bound at several hundred positions already.
        spread: Standard deviation of an answer's time, as a share of its mean.
        start: Seconds from the start of a machine until its worker has loaded the model.
        between: Seconds between two shards of a worker.
        hours_between_failures: Mean hours until a worker is lost; its shard is made again, by a worker that starts.
        price: Of a GPU hour, in dollars.
    """

    rows: int = 10_000
    tokens: int = 256
    shard: int = 16
    tokens_per_second: float = 6.7
    spread: float = 0.2
    start: float = 180.0
    between: float = 0.1
    hours_between_failures: float = 200.0
    price: float = 2.0


def simulate(plan: Plan, evaluations_per_token: float, gpus: int, seed: int = 0) -> dict[str, float]:
    """Runs a job: free workers take the next shard, a lost one starts again and repeats its shard.

    Returns:
        Hours until the last shard, GPU hours that are paid (all workers until then), those that were work for rows,
        their ratio, dollars per million tokens, and tokens per second.
    """
    draw = random.Random(seed)
    mean = plan.tokens * evaluations_per_token / plan.tokens_per_second
    times = [draw.gauss(mean, plan.spread * mean) for _ in range(plan.rows)]
    shards = [max(0.0, sum(times[at : at + plan.shard])) for at in range(0, plan.rows, plan.shard)]
    free = [plan.start] * gpus
    heapq.heapify(free)
    end = 0.0
    for work in shards:
        now = heapq.heappop(free)
        while (fault := draw.expovariate(1 / (3600 * plan.hours_between_failures))) < work:
            now += fault + plan.start
        now += work + plan.between
        end = max(end, now)
        heapq.heappush(free, now)
    paid = gpus * end
    made = plan.rows * plan.tokens
    return {
        "hours": end / 3600,
        "gpu_hours": paid / 3600,
        "useful": sum(shards) / paid,
        "dollars_per_million_tokens": paid / 3600 * plan.price / made * 1e6,
        "tokens_per_second": made / end,
    }


def measured(path: Path = WORKING) -> dict[str, float]:
    """Evaluations per new token of the rules, as measured on the embedded model `working`."""
    rows = json.loads(path.read_text(encoding="utf-8"))["endings"]["rows"]
    return {row["rule"]: row["nfe_per_token"] for row in rows if row["mode"] == MODE and row["rule"] in RULES}


def figures(plan: Plan, gpus: tuple[int, ...] = GPUS) -> dict[str, Any]:
    """Simulates every rule on every number of GPUs."""
    rows = [
        {"rule": rule, "evaluations_per_token": evaluations, "gpus": count, **simulate(plan, evaluations, count)}
        for rule, evaluations in measured().items()
        for count in gpus
    ]
    return {"assumed": asdict(plan), "rows": rows}


def table(found: dict[str, Any]) -> str:
    """The table of the page."""
    lines = [
        "| rule | evaluations per token | GPUs | hours | useful share | tokens per second | $ per million tokens |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in found["rows"]:
        lines.append(
            f"| `{row['rule']}` | {row['evaluations_per_token']:.2f} | {row['gpus']} | {row['hours']:.2f} |"
            f" {row['useful']:.0%} | {row['tokens_per_second']:.0f} | {row['dollars_per_million_tokens']:.1f} |"
        )
    return "\n".join(lines)


def render() -> None:
    """Writes the table into the page."""
    fill(PAGE, {"fleet": table(figures(Plan()))})


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the figures; the page stays as it is")
    parser.add_argument("--gpus", type=int, nargs="+", default=GPUS)
    for name, value in asdict(Plan()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    chosen = vars(parser.parse_args())
    shown, gpus = chosen.pop("json"), tuple(chosen.pop("gpus"))
    if shown:
        print(json.dumps(figures(Plan(**chosen), gpus), indent=2))
    else:
        render()
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
