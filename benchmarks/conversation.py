"""What it costs to have different rules in one batch, and whether they change each other.

python -m benchmarks.conversation cost         # four rules in a batch of 32 beside one, 100M parameters
python -m benchmarks.conversation invariance   # 200 sequences alone, among their own, among other rules
python -m benchmarks.conversation render       # the tables of docs/performance.md from the saved figures
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unmask
from benchmarks.pages import fill
from unmask import Confidence, Entropy, LeftToRight, Margin, Rule, TopK, sample
from unmask.bench.loop import SIZES, RandomTransformer
from unmask.rules.named import named_rule

FILE = Path(__file__).parent.parent / "docs" / "results" / "conversation.json"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"


def cost(size: str = "100M", batch: int = 32, length: int = 32, steps: int = 3, repeats: int = 3) -> dict[str, Any]:
    """Times batches of one rule and of four, whose candidates are as many in every step; the fastest of each counts."""
    torch.manual_seed(0)
    model = RandomTransformer(*SIZES[size], 8192).eval()
    x = torch.randint(model.mask_id, (batch, length))
    x[:, length // 2 :] = model.mask_id
    orders = (Entropy(), Confidence(), Margin(), LeftToRight())
    four: list[Any] = [Rule(orders[row % 4], TopK(4)) for row in range(batch)]
    one: list[Any] = [Rule(Entropy(), TopK(4))] * batch
    found: dict[str, list[tuple[float, float]]] = {"one": [], "four": []}
    sample(model, x, one, seed=0, max_steps=1)
    for _ in range(repeats):
        for name, rules in (("one", one), ("four", four)):
            model.seconds, began = 0.0, time.perf_counter()
            sample(model, x, rules, seed=0, max_steps=steps)
            found[name].append((time.perf_counter() - began, model.seconds))
    wall = {name: min(seconds for seconds, _ in runs) for name, runs in found.items()}
    outside = {name: min(all_ - inside for all_, inside in runs) for name, runs in found.items()}
    return {
        "parameters": model.parameters_inside,
        "batch": batch,
        "length": length,
        "vocab": model.vocab_size,
        "steps": steps,
        "seconds": wall,
        "outside": outside,
        "ratio": wall["four"] / wall["one"],
    }


def prompts_of(name: str, count: int, mask: int) -> Tensor:
    """Sequences with gaps: puzzles as they are, text with 24 characters missing."""
    from unmask.tasks.of_model import task_of

    prompts = task_of(name).prompts("test" if name == "sudoku" else "validation", count).tokens
    if name == "text":
        prompts = prompts.clone()
        first = torch.arange(count) % 100
        where = (torch.arange(prompts.shape[1]) - first.unsqueeze(1)).remainder(prompts.shape[1]) < 24
        clean = torch.where(prompts == mask, 1, prompts)
        prompts = clean.masked_fill(where, mask)
    return prompts


def invariance(count: int = 200, batch: int = 25) -> list[dict[str, Any]]:
    """How many sequences have other tokens or NFE alone, among sequences of their rule, and among other rules."""
    rows = []
    for name, texts in (
        ("sudoku", ("entropy-bound:gamma=0.05", "topk:k=6", "klass:threshold=0.9", "noisy-bound:gamma=0.1")),
        ("text", ("entropy-bound:gamma=0.5", "random-k:k=4", "independence-test:epsilon=0.02", "maskgit:steps=6")),
    ):
        model = unmask.load(name)
        x = prompts_of(name, count, model.mask_id)
        rules = [named_rule(text).rule for text in texts]
        mine = [rules[row % len(rules)] for row in range(count)]
        # Temperatures and forbidden tokens of the mates are others too.
        temperature = [(1.0, 0.7, 0.0)[row % 3] for row in range(count)]
        forbidden: list[Any] = [((), (0,))[row % 5 == 4] for row in range(count)]
        settings: Any = {"temperature": temperature, "forbidden": forbidden}

        def run(rows: list[int], kinds: Any, model: Any = model, x: Tensor = x, settings: Any = settings) -> Any:
            own: Any = {key: [values[row] for row in rows] for key, values in settings.items()}
            return sample(model, x[rows], kinds, streams=rows, **own)

        alone = [run([row], mine[row]) for row in range(count)]
        figures: dict[str, int] = {}
        mixed = [run(list(range(i, i + batch)), mine[i : i + batch]) for i in range(0, count, batch)]
        by_rule = {}
        for number, rule in enumerate(rules):
            members = list(range(number, count, len(rules)))
            for i in range(0, len(members), batch):
                result = run(members[i : i + batch], rule)
                for place, row in enumerate(members[i : i + batch]):
                    by_rule[row] = (result.sequences[place], int(result.nfe[place]))
        for row, one in enumerate(alone):
            own = (one.sequences[0], int(one.nfe[0]))
            other = (mixed[row // batch].sequences[row % batch], int(mixed[row // batch].nfe[row % batch]))
            figures["own_rule"] = figures.get("own_rule", 0) + (by_rule[row] != own)
            figures["other_rules"] = figures.get("other_rules", 0) + (other != own)
        rows.append({"model": name, "rules": list(texts), "sequences": count, "batch": batch, **figures})
        print(rows[-1], flush=True)
    return rows


def render(saved: dict[str, Any]) -> None:
    """Writes the tables of the page."""
    lines = []
    if "cost" in saved:
        found = saved["cost"]
        lines += [
            f"A batch of {found['batch']} sequences of {found['length']} tokens with four rules takes"
            f" {found['ratio']:.2f} × the time of the same batch with one, at as many candidates, on a network of"
            f" {found['parameters'] / 1e6:.0f} million parameters (outside the network"
            f" {found['outside']['four'] / found['steps'] * 1e3:.1f} ms a step instead of"
            f" {found['outside']['one'] / found['steps'] * 1e3:.1f}).",
            "",
        ]
    if "invariance" in saved:
        lines += [
            "| network | sequences | others than alone, among their own rule | among four rules |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{row['model']}` | {row['sequences']} | {row['own_rule']} | {row['other_rules']} |"
            for row in saved["invariance"]
        ]
    fill(PAGE, {"conversation": "\n".join(lines).strip()})


def main(names: list[str]) -> None:
    """Runs what is named, saves the figures, and writes the page."""
    saved = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for name in names:
        if name == "cost":
            saved["cost"] = cost()
            print(saved["cost"])
        elif name == "invariance":
            saved["invariance"] = invariance()
        elif name != "render":
            sys.exit("usage: python -m benchmarks.conversation cost|invariance|render ...")
        FILE.write_text(json.dumps(saved, indent=1) + "\n", encoding="utf-8")
    render(saved)


if __name__ == "__main__":
    main(sys.argv[1:])
