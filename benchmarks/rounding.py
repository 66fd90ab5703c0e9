"""What rounding does to tokens: draws by inversion and by a race, alone and in a batch; for docs/numerics.md.

    python -m benchmarks.rounding            # measure all parts, or those that are named
    python -m benchmarks.rounding render     # the page's tables again, from the saved figures

Random Transformers, alone against batches of 8 and of 32: the matrices of a batch have another shape, above all where
sequences of several lengths are padded, so that sums are made in another order. Figures go to
docs/results/rounding.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from unmask.bench.measuring import medians, random_logits
from unmask.draws.categorical import RACE_FROM, _invert, _race, draw_rows, marginals
from unmask.language import LanguageModel
from unmask.numerics.coupling import inversion_differs, race_differs, total_variation
from unmask.rules import All, Entropy, Rule
from unmask.sampling.loop import Sampler

from .pages import fill

ROOT = Path(__file__).parent.parent
PAGE, RESULTS = ROOT / "docs" / "numerics.md", ROOT / "docs" / "results" / "rounding.json"
WIDTH, LAYERS, MASKS, SEQUENCES = 256, 4, 4, 32
SPREAD = 3.0
"""The standard deviation that logits get, as those of trained models have."""
SIZES = (10, 102, 256, 512, 2048, 8192, 32_768, 126_464)
BATCHED = (102, 8192, 32_768, 126_464)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def network(vocab: int, dtype: torch.dtype) -> LanguageModel:
    """A Llama of random weights that looks both ways."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        num_key_value_heads=WIDTH // 64,
    )
    llama: Any = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        llama.lm_head.weight.normal_(0, SPREAD / WIDTH**0.5)  # the last norm leaves activations of size 1
    return LanguageModel.of(llama.to(dtype), mask_id=vocab - 1, end_ids=[0])


def sequences(mask: int, mixed: bool) -> list[Tensor]:
    """Tokens with masks behind them, of lengths from 20 to 49 or all of 32."""
    generator = torch.Generator().manual_seed(0)
    lengths = [20 + 7 * i % 30 if mixed else 32 for i in range(SEQUENCES)]
    clean = [torch.randint(mask, (n - MASKS,), generator=generator) for n in lengths]
    return [torch.cat([tokens, torch.full((MASKS,), mask)]) for tokens in clean]


def answers(model: LanguageModel, rows: list[Tensor], batch: int) -> Tensor:
    """The logits of all masks, so many sequences at a time."""
    sampler, parts = Sampler(model, Rule(Entropy(), All())), []
    for first in range(0, len(rows), batch):
        turn = sampler.begin(sampler.start([row.tolist() for row in rows[first : first + batch]], seed=0))
        assert turn.query is not None
        parts.append(model(turn.query))
    return torch.cat(parts)


def shares(one: Tensor, other: Tensor) -> dict[str, float]:
    """How often tokens differ between two versions of the same logits, by draw, and the least possible."""
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "least": total_variation,
        "inversion": inversion_differs,
        "race": race_differs,
    }
    found: dict[str, list[Tensor]] = {name: [] for name in kinds}
    for a, b in zip(one.split(8), other.split(8), strict=True):
        p, q = a.double().softmax(-1), b.double().softmax(-1)
        for name, differs in kinds.items():
            found[name].append(differs(p, q))
    report = {name: float(torch.cat(values).mean().clamp(min=0)) for name, values in found.items()}
    return {**report, "argmax": float((one.argmax(-1) != other.argmax(-1)).double().mean()), "draws": len(one)}


def coupling() -> list[dict[str, Any]]:
    """Alone against batches of 8 and of 32, by vocabulary and dtype."""
    rows = []
    for vocab in SIZES:
        for name, dtype in DTYPES.items():
            model = network(vocab, dtype)
            for mixed in (True, False):
                texts = sequences(model.mask_id, mixed)
                alone = answers(model, texts, 1)
                for batch in (8, 32):
                    together = answers(model, texts, batch)
                    same = {"other_bits": int((alone != together).any(-1).sum())}
                    found = {"vocab": vocab, "dtype": name, "batch": batch, "mixed": mixed, **same}
                    rows.append({**found, **shares(alone, together)})
                    print(rows[-1], flush=True)
    return rows


def invariant(vocab: int = 8192, repeats: int = 7) -> list[dict[str, Any]]:
    """Whether `batch_invariant` is exact, and what it costs."""
    rows = []
    for name, dtype in DTYPES.items():
        model = network(vocab, dtype)
        texts, same = sequences(model.mask_id, True), model.batch_invariant()
        alone = answers(same, texts, 1)
        for batch in (8, 32):
            calls: dict[str, Callable[[], object]] = {
                "together": lambda model=model, texts=texts, batch=batch: answers(model, texts[:batch], batch),
                "invariant": lambda model=same, texts=texts, batch=batch: answers(model, texts[:batch], batch),
            }
            found = medians(calls, dict.fromkeys(calls, repeats))
            other = int((alone != answers(same, texts, batch)).any(-1).sum())
            seconds = {kind: 1e3 * value for kind, (value, _) in found.items()}
            rows.append(
                {"vocab": vocab, "dtype": name, "batch": batch, "other_bits": other, "draws": len(alone)} | seconds
            )
            print(rows[-1], flush=True)
    return rows


def cost(repeats: int = 30) -> list[dict[str, Any]]:
    """Microseconds of a row drawn alone, and of one of 16: as it is drawn, and by either draw in plain PyTorch."""
    rows = []
    for vocab in SIZES:
        for count in (1, 16):
            z = random_logits(count, vocab, torch.float32)
            u = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
            stats, tau, every = marginals(z), torch.ones(count).double(), torch.arange(count)

            def ours(z: Tensor = z, u: Tensor = u, stats: Any = stats, every: Tensor = every) -> Tensor:
                return draw_rows(z, every, u, stats=stats)

            def inversion(z: Tensor = z, u: Tensor = u, tau: Tensor = tau) -> Tensor:
                return _invert(z.double(), u, tau, None, None)

            def race(z: Tensor = z, u: Tensor = u, tau: Tensor = tau) -> Tensor:
                return _race(z, u, tau, None, None)

            def statistics(z: Tensor = z) -> Any:
                return marginals(z, check=False)

            calls = {"ours": ours, "inversion": inversion, "race": race, "statistics": statistics}
            found = medians(calls, dict.fromkeys(calls, repeats))
            each = {name: 1e6 * seconds / count for name, (seconds, _) in found.items()}
            rows.append({"vocab": vocab, "rows": count, **each})
            print(rows[-1], flush=True)
    return rows


def ratio(row: dict[str, Any], name: str) -> str:
    """A share over the least possible; a dash where nothing differs."""
    return "–" if row["least"] == 0 else f"{row[name] / row['least']:,.1f}"


def draws_table(report: dict[str, Any]) -> str:
    """Shares of draws that differ, alone against a batch of 8, and what a row costs."""
    rows = [row for row in report["coupling"] if row["mixed"]]
    price = {(row["vocab"], row["rows"]): row for row in report["cost"]}
    lines = [
        "| tokens | least, float32 | inversion ÷ least | race ÷ least | least, bfloat16 | inversion ÷ least"
        " | race ÷ least | one row: inversion, µs | race, µs | as drawn, µs |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for vocab in SIZES:
        cells = [f"{vocab:,}"]
        for name in DTYPES:
            row = next(r for r in rows if (r["vocab"], r["dtype"], r["batch"]) == (vocab, name, 8))
            cells += [f"{row['least']:.1e}", ratio(row, "inversion"), ratio(row, "race")]
        one = price[vocab, 1]
        cells += [f"{one[name]:.0f}" for name in ("inversion", "race", "ours")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def batches_table(report: dict[str, Any]) -> str:
    """Shares of tokens that differ from those of a sequence alone."""
    lines = [
        "| tokens | dtype | batch | temperature 0 | temperature 1 | least possible at 1 | equal lengths: other bits |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    equal = {(r["vocab"], r["dtype"], r["batch"]): r for r in report["coupling"] if not r["mixed"]}
    for row in report["coupling"]:
        if row["vocab"] in BATCHED and row["mixed"]:
            drawn = row["race" if row["vocab"] >= RACE_FROM else "inversion"]
            argmax = f"{round(row['argmax'] * row['draws'])} of {row['draws']}"
            other = equal[row["vocab"], row["dtype"], row["batch"]]
            lines.append(
                f"| {row['vocab']:,} | {row['dtype']} | {row['batch']} | {argmax} | {drawn:.1e} | {row['least']:.1e}"
                f" | {other['other_bits']} of {other['draws']} |"
            )
    return "\n".join(lines)


def invariant_table(report: dict[str, Any]) -> str:
    """What `batch_invariant` changes."""
    lines = [
        "| dtype | batch | rows with other bits than alone | one evaluation, ms | the same without the option, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in report["invariant"]:
        lines.append(
            f"| {row['dtype']} | {row['batch']} | {row['other_bits']} of {row['draws']} | {row['invariant']:.0f}"
            f" | {row['together']:.0f} |"
        )
    return "\n".join(lines)


PARTS: dict[str, Callable[[], Any]] = {"coupling": coupling, "invariant": invariant, "cost": cost}


def write_page(report: dict[str, Any]) -> None:
    """Puts the tables between their markers."""
    tables = {"coupling": draws_table, "batches": batches_table, "invariant": invariant_table}
    fill(PAGE, {name: table(report) for name, table in tables.items()})


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}, render; all parts by default")
    torch.set_num_threads(1)
    report = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in parser.parse_args().parts or list(PARTS):
        if part != "render":
            report |= {"torch": torch.__version__, part: PARTS[part]()}
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    write_page(report)


if __name__ == "__main__":
    main()
