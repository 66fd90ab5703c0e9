"""Generative perplexity and entropy together: 32-bit ancestral draws, and a causal model; for docs/results.md.

    python -m benchmarks.text_plane ancestral NAME MODEL --judge FOLDER
    python -m benchmarks.text_plane causal MODEL CAUSAL --judge FOLDER
    python -m benchmarks.text_plane render

*Ancestral*: of `T` equal time steps from 1 to 0 each unmasks a masked token with probability `1/(steps left)`. The
published draw takes the largest of `log q + Gumbel` over all tokens and the mask at once, with uniforms and Gumbels of
32 bits; the exact draw decides in float64 whether, then what, by inverting the CDF. If 32 bits lower the temperature
(arXiv:2409.02908, section 4), the judge is the more content and the entropy the lower, the more steps there are.

*Causal*: a causal model of equal size and data, and the masked model one token at a time in uniform order and under the
dependence bound, over temperatures, judged by another causal model (trained from another seed).
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from unmask import DependenceBound, One, Rule, Uniform
from unmask.denoiser import NetworkDenoiser, Query
from unmask.evaluation.judge import Judge, load_judge
from unmask.evaluation.runner import answer, mean_ci95
from unmask.evaluation.study import fingerprint
from unmask.models.registry import load
from unmask.numerics.draws import FORMS
from unmask.rules.order import LeftToRight
from unmask.sampling.loop import Sampler
from unmask.tasks.of_model import task_of
from unmask.tasks.text import unigram_entropy

from .free_text import calibrated
from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
DRAWS = ("gumbel-float32", "exact")
TEMPERATURES = (0.6, 0.8, 1.0)


@torch.no_grad()
def ancestral(
    denoiser: NetworkDenoiser, length: int, count: int, steps: int, draw: str, seed: int
) -> Int[Tensor, "count length"]:
    """Samples by ancestral sampling in `steps` equal steps of the linear schedule.

    The model is evaluated for a sequence only when it has changed, which gives the same samples in fewer evaluations.
    """
    device = denoiser.device
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.full((count, length), denoiser.mask_id, device=device)
    log_p = torch.zeros(count, length, denoiser.vocab_size, dtype=torch.float64, device=device)
    changed = torch.ones(count, dtype=torch.bool, device=device)
    dtype = torch.float32 if draw == "gumbel-float32" else torch.float64
    for step in range(steps):
        masked = x == denoiser.mask_id
        if bool(changed.any()):
            part = x[changed]
            logits = denoiser(Query.of(part, denoiser.mask_id)).double()
            logits[:, denoiser.mask_id] = -torch.inf
            log_p[masked & changed.unsqueeze(-1)] = logits.log_softmax(-1)
        sequence, position = masked.nonzero().unbind(-1)
        delta = torch.tensor(1 / (steps - step), dtype=torch.float64, device=device)
        if draw == "exact":
            whether = torch.rand(len(sequence), dtype=torch.float64, device=device, generator=generator) < delta
            sequence, position = sequence[whether], position[whether]
            cdf = log_p[sequence, position].exp().cumsum(-1)
            u = torch.rand(len(sequence), 1, dtype=torch.float64, device=device, generator=generator) * cdf[:, -1:]
            tokens = torch.searchsorted(cdf, u, right=True).squeeze(-1)
        else:
            # The mask id stands for staying masked.
            log_q = log_p[sequence, position] + delta.log()
            log_q[:, denoiser.mask_id] = (1 - delta).log()
            u = torch.rand(log_q.shape, dtype=dtype, device=device, generator=generator)
            tokens = (log_q.to(dtype) + FORMS["gumbel"](u)).argmax(-1)
        x[sequence, position] = tokens
        changed = torch.zeros_like(changed)
        changed[sequence[tokens != denoiser.mask_id]] = True
    return x.cpu()


def figures(tokens: Int[Tensor, "samples length"], judge: Judge) -> dict[str, float]:
    """What the judge says, in nats per token, and the entropy within a sample; ± of both."""
    judged, judged_ci95 = mean_ci95(torch.cat([judge(part) for part in tokens.split(64)]))
    entropy, entropy_ci95 = mean_ci95(unigram_entropy(tokens))
    return {"judge": judged, "judge_ci95": judged_ci95, "entropy": entropy, "entropy_ci95": entropy_ci95}


def measure_ancestral(model: str, judge_folder: str, samples: int, device: str) -> dict[str, Any]:
    """Every draw at every number of steps from a quarter of the length to sixteen times the length."""
    denoiser, task = load(model, device=device), task_of(model, gaps="free")
    judge = load_judge(judge_folder, task, device)
    rows = []
    for power in (-2, 0, 2, 4):
        steps = round(task.length * 2.0**power)
        for number, draw in enumerate(DRAWS):
            tokens = ancestral(denoiser, task.length, samples, steps, draw, seed=steps + number)
            rows.append({"steps": steps, "draw": draw, **figures(tokens, judge)})
            print(rows[-1], flush=True)
    return {
        "model": fingerprint(model),
        "judge": fingerprint(judge_folder),
        "samples": samples,
        "length": task.length,
        "vocabulary": task.vocab_size,
        "rows": rows,
    }


def measure_causal(model: str, causal: str, judge_folder: str, samples: int, device: str) -> dict[str, Any]:
    """The causal model and the masked one, one at a time and under the dependence bound, at every temperature."""
    denoiser, task = load(model, device=device), task_of(model, gaps="free")
    judge = load_judge(judge_folder, task, device)
    profile = calibrated(denoiser, task)
    samplers = {
        "causal, left to right": Sampler(load(causal, device=device), Rule(LeftToRight(), One())),
        "masked, one at a time": Sampler(denoiser, Rule(Uniform(), One())),
        "masked, dependence-bound:gamma=0.05": Sampler(denoiser, Rule(Uniform(), DependenceBound(0.05, profile))),
    }
    blank = torch.full((samples, task.length), task.mask_id, device=device)
    rows = []
    for name, sampler in samplers.items():
        for temperature in TEMPERATURES:
            run = answer(sampler, blank, seed=0, temperature=temperature, batch_size=min(samples, 256))
            found = {"sampler": name, "temperature": temperature, "nfe": float(run.nfe.double().mean())}
            rows.append(found | figures(run.tokens.cpu(), judge))
            print(rows[-1], flush=True)
    ids = {"model": model, "causal": causal, "judge": judge_folder}
    return {"samples": samples, "length": task.length, "rows": rows} | {k: fingerprint(v) for k, v in ids.items()}


def at_entropy(rows: list[dict[str, Any]], entropy: float) -> float | None:
    """The judge's figure where a sampler has an entropy, between the two temperatures around it."""
    points = sorted((row["entropy"], row["judge"]) for row in rows)
    for (low, left), (high, right) in itertools.pairwise(points):
        if low <= entropy <= high:
            return left + (right - left) * (entropy - low) / (high - low)
    return None


def ancestral_table(reports: dict[str, Any]) -> str:
    """Steps down, draws across."""
    parts = []
    for name, report in reports.items():
        lines = [
            f"By {name} ({report['vocabulary']} tokens, {report['samples']} samples of {report['length']}):\n",
            "| steps | " + " | ".join(f"{draw}: judge | entropy" for draw in DRAWS) + " |",
            "|---" * (1 + 2 * len(DRAWS)) + "|",
        ]
        for steps in sorted({row["steps"] for row in report["rows"]}):
            cells = []
            for draw in DRAWS:
                (row,) = (row for row in report["rows"] if (row["steps"], row["draw"]) == (steps, draw))
                cells += [f"{row[key]:.3f} ± {row[f'{key}_ci95']:.3f}" for key in ("judge", "entropy")]
            lines.append(f"| {steps} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def causal_table(report: dict[str, Any]) -> str:
    """One row per sampler and temperature, with the causal model's figure at equal entropy."""
    base = [row for row in report["rows"] if row["sampler"].startswith("causal")]
    lines = [
        "| sampler | T | NFE | judge | entropy | causal at this entropy |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        same = None if row in base else at_entropy(base, row["entropy"])
        lines.append(
            f"| {row['sampler']} | {row['temperature']:g} | {row['nfe']:.1f} | {row['judge']:.3f} ±"
            f" {row['judge_ci95']:.3f} | {row['entropy']:.3f} ± {row['entropy_ci95']:.3f} |"
            f" {'' if same is None else f'{same:.3f}'} |"
        )
    lines.append(f"\n{report['samples']} samples of {report['length']} tokens a row; nats per token and nats.")
    return "\n".join(lines)


def plot(report: dict[str, Any], path: Path) -> None:
    """The plane: better is down, more diverse is right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), dpi=110)
    for name in dict.fromkeys(row["sampler"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["sampler"] == name]
        x, y = [[row[key] for row in rows] for key in ("entropy", "judge")]
        axes.errorbar(x, y, [row["judge_ci95"] for row in rows], [row["entropy_ci95"] for row in rows], label=name)
    axes.set_xlabel("entropy within a sample, nats")
    axes.set_ylabel("judge, nats per character")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def render() -> None:
    """Puts the tables of saved figures into the page, and draws the plane."""
    reports = {name: RESULTS / f"text-{name}.json" for name in ("ancestral", "causal")}
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in reports.items() if path.exists()}
    tables = {}
    if "ancestral" in found:
        tables["ancestral"] = ancestral_table(found["ancestral"])
    if "causal" in found:
        tables["causal"] = causal_table(found["causal"])
        plot(found["causal"], ROOT / "docs" / "img" / "text-causal.png")
    fill(PAGE, tables)


def main() -> None:
    """Parses the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    one, other = commands.add_parser("ancestral"), commands.add_parser("causal")
    one.add_argument("name", help="of the table, such as characters")
    one.add_argument("model")
    other.add_argument("model")
    other.add_argument("causal")
    for command in (one, other):
        command.add_argument("--judge", required=True)
        command.add_argument("--samples", type=int, default=64)
        command.add_argument("--device", default="cpu")
        command.add_argument("--out", type=Path, help="file of the figures, instead of the one the page is made of")
    commands.add_parser("render")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "render":
        render()
        return
    out = given.out or RESULTS / f"text-{given.what}.json"
    if given.what == "ancestral":
        saved = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
        report = {**saved, given.name: measure_ancestral(given.model, given.judge, given.samples, given.device)}
    else:
        report = measure_causal(given.model, given.causal, given.judge, given.samples, given.device)
    out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
