"""Language models: EB beside one token at a time, batch invariance, memory and time of a step, for docs/language.md.

    python -m benchmarks.language [quality] [invariance] [step] [caches]    # measure all, or some; then the page
    python -m benchmarks.language render                                    # the page's tables, from the saved figures

`quality` and `invariance` are of the embedded model `chat` on held-out instructions (another with `--model FOLDER`).
`step` is of an untrained network with LLaDA's vocabulary, on one thread; `caches` is of an untrained network, and of
the model if it is given. Figures go to docs/results/language.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from unmask.denoiser import Denoiser, Query
from unmask.evaluation.runner import mean_ci95
from unmask.language import Completion, LanguageModel
from unmask.models.registry import load
from unmask.rules.named import named_rule
from unmask.sampling.loop import Sampler
from unmask.tasks.instructions import Instruction, InstructionTask
from unmask.tasks.of_model import task_of

from .caches import caches
from .caches import table as table_of_caches
from .pages import fill

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results" / "language.json"
PAGE = ROOT / "docs" / "language.md"
BLOCKS = 2
PROMPTS = 400
REFERENCE = "top1-entropy"
RULES = (REFERENCE, "topk:k=2", *(f"entropy-bound:gamma={gamma}" for gamma in (0.01, 0.05, 0.1, 0.3)))


def instructions_of(model: str) -> InstructionTask:
    """The task that a model was trained on."""
    task = task_of(model)
    assert isinstance(task, InstructionTask)
    return task


def quality(model: LanguageModel, task: InstructionTask, prompts: int) -> dict[str, Any]:
    """Every rule in every mode on the same held-out instructions; differences to one at a time are paired."""
    instructions, canvas = task.instructions("test", prompts), task.canvas
    texts = [one.prompt for one in instructions]
    modes: dict[str, dict[str, Any]] = {
        "full canvas": {},
        f"blocks of {canvas // BLOCKS}": {"block_length": canvas // BLOCKS},
        "full canvas, ends not kept for last": {"end_last": False},
    }
    endless = LanguageModel(model.network, model.vocab_size, model.mask_id, model.tokenizer, (), model.max_length)
    rows = []
    for mode, options in modes.items():
        reference: list[float] = []
        for rule in RULES:
            began = time.perf_counter()
            answers = model.generate(texts, rule=rule, max_new_tokens=canvas, batch_size=50, **options)
            seconds = time.perf_counter() - began
            options_of_tail = {key: value for key, value in options.items() if key != "end_last"}
            tail = endless.generate(texts, rule=rule, max_new_tokens=canvas, batch_size=50, **options_of_tail)
            right = [float(asked.right(one.text)) for asked, one in zip(instructions, answers, strict=True)]
            reference = reference or right
            lost = [mine - theirs for mine, theirs in zip(right, reference, strict=True)]
            rows.append(
                {
                    "mode": mode,
                    "rule": rule,
                    "right": mean_ci95(torch.tensor(right)),
                    "difference": mean_ci95(torch.tensor(lost)),
                    **_cost(answers),
                    "nfe_with_tail": _mean([one.nfe for one in tail]),
                    "seconds": seconds,
                    "right_by_kind": _by_kind(instructions, right),
                }
            )
            print(f"{mode}, {rule}: right {rows[-1]['right'][0]:.3f}, NFE {rows[-1]['nfe']:.2f}", flush=True)
    report = {"prompts": len(texts), "canvas": canvas, "rows": rows}
    products = [(f"{a}*{b}=", f"What is {a} times {b}?", str(a * b)) for a in range(1, 10) for b in range(1, 10)]
    asked = [text for *texts, _ in products for text in texts]
    answers = model.generate(asked, rule=RULES[0], max_new_tokens=canvas, batch_size=50, temperature=0.0)
    right = [one.text.strip() == products[number // 2][2] for number, one in enumerate(answers)]
    return {**report, "products": [_mean(right), len(right)]}


def caches_of(folder: str, prompts: int = 16) -> dict[str, Any]:
    """Every cache on prompts of the task that a model was trained on."""
    model, task = load(folder), instructions_of(folder)
    assert isinstance(model, LanguageModel)
    asked = model.encode([one.prompt for one in task.instructions("validation", prompts)])
    return caches(model, asked, task.canvas)


def _cost(answers: list[Completion]) -> dict[str, Any]:
    nfe, tokens = [one.nfe for one in answers], [one.new_tokens for one in answers]
    return {
        "nfe": _mean(nfe),
        "new_tokens": _mean(tokens),
        "nfe_per_token": sum(nfe) / sum(tokens),
        "ended": _mean([float(one.finish_reason == "end") for one in answers]),
    }


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values)


def _by_kind(instructions: list[Instruction], right: list[float]) -> dict[str, list[float]]:
    """Share right and number of each kind and form."""
    kinds: dict[str, list[float]] = {}
    for asked, score in zip(instructions, right, strict=True):
        form = "in words" if asked.prompt[0].isalpha() else "in signs"
        kinds.setdefault(f"{asked.kind}, {form}", []).append(score)
    return {kind: [_mean(scores), len(scores)] for kind, scores in sorted(kinds.items())}


def invariance(folder: str, prompts: int = 100) -> dict[str, Any]:
    """How many prompts get the same tokens alone as among others: batches of 8 and of 32, neighbours of any length."""
    task = instructions_of(folder)
    texts = [one.prompt for one in task.instructions("validation", prompts)]
    report: dict[str, Any] = {"prompts": len(texts)}
    for dtype in (torch.float32, torch.bfloat16):
        model = load(folder, dtype=dtype)
        assert isinstance(model, LanguageModel)
        for temperature in (0.0, 1.0):
            options: dict[str, Any] = {
                "rule": "entropy-bound:gamma=0.1",
                "max_new_tokens": task.canvas,
                "temperature": temperature,
            }
            alone = model.generate(texts, batch_size=1, **options)
            for size in (8, 32):
                together = model.generate(texts, batch_size=size, **options)
                same = [one.tokens == other.tokens for one, other in zip(alone, together, strict=True)]
                name = f"{str(dtype).removeprefix('torch.')}, temperature {temperature:g}, batches of {size}"
                report[name] = sum(same)
                print(name, sum(same), flush=True)
    return report


class _Timed:
    """A denoiser that counts the processor time spent in it."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.vocab_size, self.mask_id = denoiser, denoiser.vocab_size, denoiser.mask_id
        self.seconds = 0.0

    def __call__(self, query: Query) -> torch.Tensor:
        began = time.process_time()
        logits = self.denoiser(query)
        self.seconds += time.process_time() - began
        return logits


def step(vocabulary: int = 126_464, width: int = 768, layers: int = 12) -> dict[str, Any]:
    """Time outside the denoiser, and memory, at LLaDA's vocabulary, with a network of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=12,
    )
    model = LanguageModel.of(LlamaForCausalLM(config).eval(), mask_id=126_336, end_ids=[126_081])
    rule = named_rule("entropy-bound:gamma=0.1").rule
    prompt, new = 64, 64
    timed = _Timed(model)
    sampler = Sampler(timed, rule)
    state = sampler.start(torch.tensor([[5] * prompt + [model.mask_id] * new]), seed=0)
    state, _ = sampler.step(state)  # not counted: the first call warms up
    timed.seconds, began, steps = 0.0, time.process_time(), 8
    for _ in range(steps):
        state, _ = sampler.step(state)
    total = time.process_time() - began
    report: dict[str, Any] = {
        "vocabulary": vocabulary,
        "parameters": sum(weight.numel() for weight in model.network.parameters()),
        "prompt": prompt,
        "new_tokens": new,
        "steps": steps,
        "seconds_per_step": total / steps,
        "share_outside": 1 - timed.seconds / total,
        "memory": [],
    }
    sampler = Sampler(model, rule)
    for masks in (64, 256, 512):
        state = sampler.start(torch.tensor([[5] * prompt + [model.mask_id] * masks]), seed=0)
        bytes_of_logits = masks * vocabulary * 4
        body = _peak(lambda state=state: model.network.model.model(input_ids=state.x, use_cache=False))  # pyright: ignore
        peak = _peak(lambda state=state: sampler.step(state))
        everywhere = (prompt + masks) * vocabulary * 4
        row = {"masks": masks, "logits": bytes_of_logits, "peak": peak, "body": body, "logits_everywhere": everywhere}
        report["memory"].append(row)
        print(masks, f"peak {peak / bytes_of_logits:.3f} of the logits of the masked rows", flush=True)
    return report


@torch.no_grad()
def _peak(function: Any) -> int:
    """The most bytes that tensors made by a call take up at one time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    results: Any = recorded.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def tables(saved: dict[str, Any]) -> dict[str, str]:
    """The page's tables."""
    made = {}
    if "quality" in saved:
        lines = [
            "| | rule | right | difference to one at a time | NFE | per new token | ratio | NFE without early exit"
            " | seconds |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        first: dict[str, float] = {}
        for row in saved["quality"]["rows"]:
            base = first.setdefault(row["mode"], row["nfe_per_token"])
            (right, right_ci), (lost, lost_ci) = row["right"], row["difference"]
            lines.append(
                f"| {row['mode']} | `{row['rule']}` | {right:.1%} ± {right_ci:.1%} | {lost:+.1%} ± {lost_ci:.1%} |"
                f" {row['nfe']:.2f} | {row['nfe_per_token']:.3f} | {base / row['nfe_per_token']:.2f} |"
                f" {row['nfe_with_tail']:.2f} | {row['seconds']:.2f} |"
            )
        made["quality"] = "\n".join(lines)
        kinds = saved["quality"]["rows"][0]["right_by_kind"]
        kinds = {**kinds, "the multiplication table, trained on": saved["quality"]["products"]}
        shown = [f"| {kind} | {share:.1%} | {count} |" for kind, (share, count) in kinds.items()]
        made["kinds"] = "\n".join(["| kind | right | instructions |", "|---|---|---|", *shown])
    if "invariance" in saved:
        of = saved["invariance"]["prompts"]
        shown = [f"| {name} | {same} of {of} |" for name, same in saved["invariance"].items() if name != "prompts"]
        made["invariance"] = "\n".join(["| | same tokens as alone |", "|---|---|", *shown])
    if "step" in saved:
        lines = [
            "| masks | logits of masked rows | peak of a step | ratio | body of the network alone | all logits |",
            "|---|---|---|---|---|---|",
        ]
        for row in saved["step"]["memory"]:
            sizes = [f"{row[name] / 2**20:.1f} MiB" for name in ("logits", "peak", "body", "logits_everywhere")]
            ratio = row["peak"] / row["logits"]
            lines.append(f"| {row['masks']} | {sizes[0]} | {sizes[1]} | {ratio:.3f} | {sizes[2]} | {sizes[3]} |")
        share, seconds = saved["step"]["share_outside"], saved["step"]["seconds_per_step"]
        made["step"] = "\n".join(lines) + (
            f"\n\nOf {seconds:.2f} s of processor time per step (64 masks after 64 tokens), {share:.2%} were spent"
            " outside the denoiser."
        )
    if "caches" in saved:
        made["caches"] = table_of_caches(saved["caches"])
    return made


def main() -> None:
    """Measures what is asked for, saves it and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["quality", "invariance", "step", "caches", "render", []])
    parser.add_argument("--model", default="chat", help="name or folder of a language model")
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    given = parser.parse_args()
    what = given.what or ["quality", "invariance", "step", "caches"]
    torch.set_num_threads(1)
    saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if "quality" in what:
        model = load(given.model)
        assert isinstance(model, LanguageModel)
        saved["quality"] = quality(model, instructions_of(given.model), given.prompts)
    if "invariance" in what:
        saved["invariance"] = invariance(given.model)
    if "step" in what:
        saved["step"] = step()
    if "caches" in what:
        saved["caches"] = {"random": caches()}
        if given.model:
            saved["caches"][Path(given.model).name] = caches_of(given.model)
    if what != ["render"]:
        RESULTS.write_text(json.dumps(saved, indent=1) + "\n")
    fill(PAGE, tables(saved))


if __name__ == "__main__":
    main()
