"""What the sampler costs beside a model, for docs/performance.md.

    python -m benchmarks.performance step loop      # measure some parts, or without names all of them
    python -m benchmarks.performance render         # the page's tables and plots again, from the saved figures

Figures go to docs/results/performance-PART.json. `gpu` is measured by `python -m benchmarks.gpu --out
docs/results/performance-gpu.json`, where there is one.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch

from unmask.bench import batch, loop, step
from unmask.bench.measuring import Ready, random_logits
from unmask.bench.textbook import llada_step
from unmask.language import LanguageModel
from unmask.models.registry import load
from unmask.rules.named import FAMILIES
from unmask.rules.usual import usual_rule
from unmask.sampling.loop import Sampler
from unmask.sampling.state import State

from .pages import fill

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "performance.md"


def batch_part() -> dict[str, Any]:
    """`unmask bench batch`, on one thread as there."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return batch.bench()
    finally:
        torch.set_num_threads(threads)


def chat_part(masks: int = 16, repeats: int = 30) -> dict[str, Any]:
    """Whole answers of `chat`, alone, beside its bare network and LLaDA's loop on it: milliseconds an evaluation.

    End tokens are forbidden, so that everything writes all masks. Runs take turns; of each the least of the processor's
    time counts, which other work on the machine hardly touches.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load("chat")
    assert isinstance(model, LanguageModel)
    bare: Any = model.network.model
    (prompt,) = model.encode([[{"role": "user", "content": "What is 3 + 4?"}]])
    start = torch.tensor([[*prompt, *[model.mask_id] * masks]])

    def network() -> int:
        for _ in range(masks):
            bare(input_ids=start)
        return masks

    def textbook(temperature: float) -> int:
        x = start.clone()
        for _ in range(masks):
            where = (x[0] == model.mask_id).nonzero().squeeze(-1)
            token, best = llada_step(bare(input_ids=x).logits[0, where], 1, temperature)
            x[0, where[best]] = token[best]
        return masks

    def ours(rule: str, temperature: float) -> int:
        settings = {"max_new_tokens": masks, "temperature": temperature, "forbidden": model.end_ids}
        return model.generate([prompt], rule=rule, **settings)[0].nfe

    calls: dict[str, Callable[[], int]] = {"the bare network": network}
    for temperature in (0.0, 1.0):
        calls[f"LLaDA's loop at {temperature:.0f}"] = partial(textbook, temperature)
        for rule in ("top1-confidence", "entropy-bound:gamma=0.1"):
            calls[f"`{rule}` at {temperature:.0f}"] = partial(ours, rule, temperature)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        count = {name: call() for name, call in calls.items()}  # which warms up, too
        for _ in range(repeats):
            for name, call in calls.items():
                began = time.process_time()
                call()
                spent[name].append(time.process_time() - began)
    torch.set_num_threads(threads)
    rows = [{"name": n, "nfe": count[n], "evaluation_ms": 1e3 * min(spent[n]) / count[n]} for n in calls]
    return {"masks": masks, "parameters": sum(p.numel() for p in bare.parameters()), "rows": rows}


PLANNED: dict[str, str] = {
    **dict.fromkeys(("topk", "random-k"), "k=16"),
    **dict.fromkeys(("steps", "first-hitting-parallel", "first-hitting-extrapolated", "ancestral"), "steps=64"),
    **dict.fromkeys(("llada-quota", "maskgit", "moment", "remdm", "p2"), "steps=64"),
    "threshold": "threshold=0.9",
    "factor": "factor=1",
    "klass": "threshold=0.9",
    "carried-bound": "epsilon=1",
    "noisy-bound": "gamma=0.05",
    "dependence-bound": "profile=text",
    "tempered-bound": "gamma=0.05",
    "independence-test": "epsilon=0.3",
    "groups": "sizes=16",
    "frechet": "delta=0.25",
    "credit": "threshold=0.9",
}
"""Settings of those rules that need one, for a sequence of a thousand masks; the others have their defaults."""

BOUND = "entropy-bound"
"""The rule whose step is the measure of all others."""


def plan_part(length: int = 1024, vocab: int = 50_368, repeats: int = 3) -> dict[str, Any]:
    """A step of every named rule with the network's answers ready, beside one of the EB-Sampler, on one thread.

    It is the second step where there is one, as some rules compare it with the first. Each rule takes turns with the
    EB-Sampler, three of each; the least of the processor's time counts.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logits = random_logits(length, vocab, torch.float32)
    model = Ready(logits, logits.roll(1, 0))
    bound, rows = _prepared(model, BOUND), []
    for name in FAMILIES:
        sampler, state = _prepared(model, name)
        spent = [(_planned(model, *bound), _planned(model, sampler, state)) for _ in range(repeats)]
        eb, own = (min(turn[side]["seconds"] for turn in spent) for side in (0, 1))
        rule = f"{name}:{PLANNED[name]}" if name in PLANNED else name
        rows.append({"name": rule, **spent[0][1], "seconds": own, "seconds_bound": eb})
    torch.set_num_threads(threads)
    return {"length": length, "vocab": vocab, "rows": rows}


def _prepared(model: Ready, name: str) -> tuple[Sampler, State]:
    """A rule's sampler, and the state before its second step, or before the only one."""
    sampler = Sampler(model, usual_rule(f"{name}:{PLANNED.get(name, '')}").rule)
    first = sampler.start(torch.full((1, model.length), model.mask_id), seed=0)
    second, _ = sampler.step(first)
    state = first if bool(second.finished.all()) else second
    sampler.step(state)  # which warms up, too
    return sampler, state


def _planned(model: Ready, sampler: Sampler, state: State) -> dict[str, Any]:
    """Seconds of a step without those of the model; how often it was asked, for how many rows, and how many drew."""
    spent, rows = -time.process_time(), 0
    turn = sampler.begin(state)
    while turn.query is not None:
        spent += time.process_time()
        answer = model(turn.query)
        rows += len(answer)
        spent -= time.process_time()
        turn.tell(answer)
    _, info = turn.end()
    spent += time.process_time()
    return {"seconds": spent, "evaluations": turn.passes, "rows": rows, "unmasked": len(info.tokens)}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "step": lambda: step.bench(repeats=7),
    "draw": step.draws,
    "memory": step.memory,
    "small": step.small,
    "chat": chat_part,
    "plan": plan_part,
    "loop": lambda: {**loop.bench(tuple(loop.SIZES)), "profile": profile()},
    "batch": batch_part,
}


def profile() -> str:
    """What PyTorch spends a step on besides the kernels, as a table."""
    call, _ = step.whole_step(step.random_logits(128, 126_464, torch.bfloat16))
    call()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        for _ in range(5):
            call()
    return trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40)


def path(part: str) -> Path:
    """Where the figures of a part are kept."""
    return ROOT / "docs" / "results" / f"performance-{part}.json"


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    head = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---", *["---:"] * (len(columns) - 1)]) + " |"]
    return "\n".join(head + ["| " + " | ".join(row) + " |" for row in rows])


def shown(value: float | None, digits: int = 2) -> str:
    """A number for a table, a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def step_table(report: dict[str, Any]) -> str:
    """The cases of `unmask bench step`."""
    columns = [
        "rows × symbols",
        "dtype",
        "step, ms",
        "÷ log_softmax",
        "busy",
        "× diffusers",
        "× LLaDA",
        "× MDLM",
        "3/4 unmasked",
    ]
    rows = []
    for case in report["cases"]:
        faster = [
            None if case.get(f"ratio_{name}") is None else 1 / case[f"ratio_{name}"]
            for name in ("diffusers", "llada", "mdlm")
        ]
        rows.append(
            [
                f"{case['rows']} × {case['vocab']:,}",
                case["dtype"],
                f"{case['seconds_step'] * 1e3:.1f} ± {case['spread_step'] * 1e3:.1f}",
                shown(case["ratio_log_softmax"]),
                shown(case["ratio_log_softmax_busy"]),
                shown(faster[0], 0),
                shown(faster[1], 0),
                shown(faster[2], 0),
                shown(case["ratio_quarter_masked"]),
            ]
        )
    first = (
        f"First use ever, in a fresh process: {report['first_use_ever']:.1f} s ({report['first_use_ever_cpu']:.1f} s of"
        f" the processor's time), later {report['first_use_later']:.1f} s ({report['first_use_later_cpu']:.1f} s)."
        f" {report['threads']} thread(s), {report['processor']}, PyTorch {report['torch']}."
    )
    return table(columns, rows) + "\n\n" + first


def scaling_table(report: dict[str, Any]) -> str:
    """The curves of `unmask bench step`."""
    rows = []
    for name, curve in report["scaling"].items():
        points = [f"{size:,}: {s * 1e3:.1f}" for size, s in zip(curve["sizes"], curve["seconds"], strict=True)]
        rows.append([name, ", ".join(points), f"{curve['exponent']:.2f} ± {curve.get('spread', float('nan')):.2f}"])
    return table(["over", "size: ms", "exponent"], rows)


def loop_table(report: dict[str, Any]) -> str:
    """The models of `unmask bench loop`."""
    rows = [
        [
            f"{row['model']} ({row['layers']} layers of {row['width']})",
            f"{row['parameters'] / 1e6:.1f}M",
            f"{row['batch']} × {row['length']} × {row['vocab']:,}",
            f"{row['denoiser_ms']:.1f}",
            f"{row['outside_ms']:.2f}",
            f"{row['share_outside']:.1%}",
        ]
        for row in report["models"]
    ]
    return table(["model", "parameters", "batch × length × symbols", "denoiser, ms", "outside, ms", "share"], rows)


def memory_table(report: dict[str, Any]) -> str:
    """The cases of `unmask bench memory`."""
    rows = [
        [
            f"{row['rows']} × {row['vocab']:,} {row['dtype']}",
            *(shown(row.get(f"extra_{name}")) for name in ("ours", "diffusers", "llada")),
        ]
        for row in report["cases"]
    ]
    return table(["logits", "ours", "diffusers", "LLaDA"], rows)


def draw_table(report: dict[str, Any]) -> str:
    """`unmask bench draw`."""
    names = {"ours": "ours, float64", "multinomial": "`softmax`, `multinomial`", "gumbel_float64": "Gumbel, float64"}
    rows = [[text, f"{report[f'seconds_{name}'] * 1e3:.1f}"] for name, text in names.items()]
    return table([f"draw of {report['rows']} × {report['vocab']:,}", "ms"], rows)


def small_table(report: dict[str, Any]) -> str:
    """A step of one sequence, with the model's answer ready."""
    names = ("entropy-bound", "top1-confidence", "llada")
    rows = []
    for vocab in sorted({row["vocab"] for row in report["steps"]}):
        found = {row["name"]: row for row in report["steps"] if row["vocab"] == vocab}
        rows.append([f"{vocab:,}", *(f"{found[n]['decile_ms']:.2f}" for n in names)])
    return table(["tokens", "EB, γ = 0.1", "one at a time", "LLaDA's loop"], rows)


def chat_table(report: dict[str, Any]) -> str:
    """Answers of a small model."""
    bare = report["rows"][0]["evaluation_ms"]
    rows = [
        [row["name"], f"{row['nfe']}", f"{row['evaluation_ms']:.2f}", f"{row['evaluation_ms'] / bare:.2f}"]
        for row in report["rows"]
    ]
    return table(["an answer of 16 tokens by", "evaluations", "ms each", "÷ the bare network"], rows)


def planned_ratio(row: dict[str, Any], length: int) -> float:
    """A step's seconds over those of the EB-Sampler for as many rows of logits, and for one sequence at least."""
    return row["seconds"] / row["seconds_bound"] / max(1.0, row["rows"] / length)


def plan_table(report: dict[str, Any]) -> str:
    """Steps of all rules."""
    ranked = sorted(report["rows"], key=lambda row: -planned_ratio(row, report["length"]))
    rows = [
        [
            f"`{row['name']}`",
            f"{row['evaluations']}",
            f"{row['rows']:,}",
            f"{row['unmasked']:,}",
            f"{1e3 * row['seconds']:.1f}",
            shown(planned_ratio(row, report["length"])),
        ]
        for row in ranked
    ]
    return table(["rule", "evaluations", "rows", "unmasked", "ms", "÷ EB for as many rows"], rows)


def batch_table(report: dict[str, Any]) -> str:
    """`unmask bench batch`."""
    rows = [
        ["one batch ÷ Σ t(live rows)", shown(report["ratio_one_batch"])],
        ["streamed ÷ (Σ NFE ÷ max b/t(b))", shown(report["ratio_streamed"])],
        ["seconds, EB", f"{report['seconds_streamed']:.1f}"],
        ["seconds, Top-1", f"{report['seconds_top1']:.1f}"],
        ["EB faster by", f"{report['speedup_eb']:.1f} ×"],
        ["NFE, EB and Top-1", f"{report['nfe_eb']:.2f}, {report['nfe_top1']:.1f}"],
        ["solved, EB and Top-1", f"{report['solved_eb']}, {report['solved_top1']} of {report['puzzles']}"],
    ]
    return table([f"{report['puzzles']} Sudokus, {report['slots']} slots", ""], rows)


def plot(report: dict[str, Any]) -> None:
    """Draws how a step scales."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(report["scaling"]), figsize=(8, 3.2), layout="constrained")
    for ax, (name, curve) in zip(axes, report["scaling"].items(), strict=True):
        ax.loglog(curve["sizes"], [value * 1e3 for value in curve["seconds"]], "o-")
        ax.set(xlabel=name, ylabel="milliseconds", title=f"exponent {curve['exponent']:.2f}")
    figure.savefig(ROOT / "docs" / "img" / "performance-scaling.png", dpi=120)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "step": ("step", step_table),
    "scaling": ("step", scaling_table),
    "draw": ("draw", draw_table),
    "memory": ("memory", memory_table),
    "small": ("small", small_table),
    "chat": ("chat", chat_table),
    "plan": ("plan", plan_table),
    "loop": ("loop", loop_table),
    "profile": ("loop", lambda report: f"```\n{report['profile'].strip()}\n```"),
    "batch": ("batch", batch_table),
}


def render() -> None:
    """Fills the page with what was measured so far."""
    reports = {part: json.loads(path(part).read_text()) for part in PARTS if path(part).exists()}
    fill(PAGE, {name: make(reports[part]) for name, (part, make) in TABLES.items() if part in reports})
    if "step" in reports:
        plot(reports["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the sampler costs, or render the page.")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "render", []], metavar="PART", help="all parts by default")
    parts = parser.parse_args().parts or list(PARTS)
    for part in parts:
        if part != "render":
            versions = {"torch": torch.__version__, "numpy": numpy.__version__, "processor": platform.machine()}
            path(part).write_text(json.dumps({**versions, **PARTS[part]()}, indent=1) + "\n")
    render()


if __name__ == "__main__":
    main()
