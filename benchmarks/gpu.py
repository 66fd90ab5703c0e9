"""The sampler beside a model on a GPU: one command, JSON on standard output or in a file, for docs/performance.md.

    python -m benchmarks.gpu --out gpu.json

Measured in one run: the bandwidth of a copy, the statistics of 1024 x 126,464 bfloat16 logits as a share of it, whole
steps against `torch.log_softmax` and against the formulas of LLaDA and of a textbook EB-Sampler, agreement with
float64, and generation with random models of LLaDA's shape. Seconds are medians of CUDA events after warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unmask.bench.measuring import Given
from unmask.bench.textbook import entropy_bound_step, llada_step
from unmask.denoiser import Query
from unmask.draws.categorical import draw, draw_rows, marginals
from unmask.draws.kernels import triton_rows
from unmask.errors import LogitsError
from unmask.rules import Entropy, EntropyBound, Rule
from unmask.sampling.loop import Sampler

ROWS, VOCAB = 1024, 126_464
SHAPES = {
    "LLaDA 8B": {"hidden_size": 4096, "intermediate_size": 12_288, "layers": 32, "heads": 32},
    "1.5B": {"hidden_size": 2048, "intermediate_size": 6144, "layers": 18, "heads": 16},
}


def seconds(call: Callable[[], object], repeats: int = 30) -> float:
    """Median time of a call on the GPU, from events around it."""
    for _ in range(3):
        call()
    marks = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in marks:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in marks) / 1e3


def extra_memory(call: Callable[[], object]) -> int:
    """Bytes that a call allocates at its peak, beyond what there is."""
    call()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    kept = call()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def step_case(rows: int, vocab: int, dtype: torch.dtype, copy: float) -> dict[str, Any]:
    """Times one shape; `copy` is bytes per second, read and written, of a copy."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(rows, vocab, generator=generator, device="cuda", dtype=torch.float32).mul_(3).to(dtype)
    some = torch.arange(0, rows, 8, device="cuda")
    uniform = torch.rand(len(some), dtype=torch.float64, device="cuda", generator=generator)
    tau = torch.ones_like(uniform)
    banned = (vocab - 1,)
    ours = seconds(lambda: marginals(logits, banned, check=False))
    drawing = seconds(lambda: draw_rows(logits, some, uniform, tau, forbidden=banned))
    denoiser = Given(logits)
    sampler = Sampler(denoiser, Rule(Entropy(), EntropyBound(rows / 8 * 5.0)))
    state = sampler.start(torch.full((1, rows), denoiser.mask_id, device="cuda"), seed=0)
    taken = len(sampler.step(state)[1].tokens)
    began, spent = 0.0, []
    for _ in range(30):
        torch.cuda.synchronize()
        began = time.perf_counter()
        sampler.step(state)
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - began)
    theirs = {
        "log_softmax": seconds(lambda: logits.log_softmax(-1)),
        "llada": seconds(lambda: llada_step(logits, rows // 8, 1.0), 5),
        "llada_greedy": seconds(lambda: llada_step(logits, rows // 8, 0.0), 5),
        "textbook_eb": seconds(lambda: entropy_bound_step(logits, rows / 8 * 5.0), 5),
    }
    size = logits.numel() * logits.element_size()
    return {
        "rows": rows,
        "vocab": vocab,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds_statistics": ours,
        "seconds_draw_eighth": drawing,
        "seconds_step_wall": statistics.median(spent),
        "step_drew": taken,
        "bytes_per_second": size / ours,
        "share_of_copy_bandwidth": size / ours / copy,
        "extra_memory_ratio": extra_memory(
            lambda: (marginals(logits, banned, check=False), draw_rows(logits, some, uniform, tau, forbidden=banned))
        )
        / size,
        **{f"seconds_{name}": value for name, value in theirs.items()},
        **{f"ratio_{name}": (ours + drawing) / value for name, value in theirs.items()},
    }


def sweep(copy: float) -> list[dict[str, float]]:
    """The statistics at other sizes of a piece."""
    logits = torch.randn(ROWS, VOCAB, device="cuda", dtype=torch.bfloat16)
    found = []
    for piece, warps in [(2048, 2), (2048, 4), (4096, 4), (4096, 8), (8192, 4), (8192, 8), (16_384, 8), (16_384, 16)]:
        spent = seconds(
            lambda p=piece, w=warps: triton_rows.statistics(logits, (VOCAB - 1,), None, piece=p, warps=w), 20
        )
        share = logits.numel() * 2 / spent / copy
        found.append({"piece": piece, "warps": warps, "seconds": spent, "share_of_copy_bandwidth": share})
    return found


def agreement(dtype: torch.dtype) -> dict[str, Any]:
    """The kernels against plain PyTorch in float64, on rows that are hard in one way or another."""
    generator = torch.Generator("cuda").manual_seed(1)
    z = torch.randn(64, VOCAB, generator=generator, device="cuda") * 4
    z[0, 77] = 40.0  # nearly determined
    z[1] = -torch.inf
    z[1, 5000] = z[1, 90_000] = 1.0  # a tie of two
    z[2] = 0.0  # uniform
    z[3, 3:] = -torch.inf
    z[4] += 1000.0
    z[5] = -17.0
    z[5, VOCAB - 2] = 0.0
    z = z.to(dtype)
    banned = (3, VOCAB - 1)
    power = torch.linspace(1, 4, 64, device="cuda", dtype=torch.float64)
    ours, exact = marginals(z, banned, power), marginals(z.double(), banned, power)
    found: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch.")}
    for name in ("entropy", "doubt", "closeness", "log_norm", "log_moment"):
        a, b = getattr(ours, name).double(), getattr(exact, name)
        found[f"relative_error_{name}"] = float(((a - b).abs() / b.abs().clamp(min=1e-300)).max())
    found["same_argmax"] = bool((ours.token == exact.token).all())
    alone = [marginals(z[row : row + 1], banned, power[row : row + 1]) for row in (0, 9, 63)]
    names = ("entropy", "doubt", "closeness", "log_norm", "log_moment", "token")
    pairs = [(getattr(a, n)[0], getattr(ours, n)[r]) for a, r in zip(alone, (0, 9, 63), strict=True) for n in names]
    found["same_bits_alone"] = all(bool(a == b) for a, b in pairs)
    tau = torch.tensor([1.0, 0.5, 0.0, 2.0], device="cuda", dtype=torch.float64).repeat(16)
    same = []
    for seed in range(16):
        u = torch.rand(64, dtype=torch.float64, device="cuda", generator=generator.manual_seed(seed))
        drawn = draw_rows(z, torch.arange(64, device="cuda"), u, tau, forbidden=banned)
        plain = draw(z.double().index_fill(1, torch.tensor(banned, device="cuda"), -torch.inf), u, temperature=tau)
        same.append(drawn == plain)
    found["same_draws"] = float(torch.stack(same).double().mean())
    messages = []
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = z.clone()
        bad[9] = value
        try:
            marginals(bad, banned)
        except LogitsError as error:
            messages.append(str(error))
    found["errors"] = messages
    return found


class RandomLlada:
    """A Transformer of LLaDA's shape with random weights and attention both ways; logits of the candidates only."""

    def __init__(self, hidden_size: int, intermediate_size: int, layers: int, heads: int) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=VOCAB,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )
        config._attn_implementation = "sdpa"
        config.is_causal = False
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            self.model = LlamaForCausalLM(config).eval()
        torch.set_default_dtype(default)
        for layer in self.model.model.layers:
            layer.self_attn.is_causal = False  # pyright: ignore
        self.vocab_size, self.mask_id = VOCAB, 126_336
        self.parameters = sum(p.numel() for p in self.model.parameters())

    @torch.inference_mode()
    def __call__(self, query: Query) -> Tensor:
        # A mask that hides nothing: attention goes both ways whatever the library makes of `is_causal`.
        batch, length = query.x.shape
        everything = torch.zeros(batch, 1, length, length, dtype=torch.bfloat16, device=query.x.device)
        hidden = self.model.model(input_ids=query.x, attention_mask=everything, use_cache=False).last_hidden_state
        return self.model.lm_head(hidden.flatten(0, 1)[query.rows])


class Timed:
    """A denoiser with events before and after every call, and waits there too if told to."""

    def __init__(self, denoiser: RandomLlada, wait: bool) -> None:
        self.denoiser, self.wait = denoiser, wait
        self.vocab_size, self.mask_id = denoiser.vocab_size, denoiser.mask_id
        self.marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self.waited = 0.0

    def __call__(self, query: Query) -> Tensor:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        if self.wait:
            torch.cuda.synchronize()
        began = time.perf_counter()
        begin.record()
        logits = self.denoiser(query)
        end.record()
        if self.wait:
            torch.cuda.synchronize()
        self.waited += time.perf_counter() - began
        self.marks.append((begin, end))
        return logits


def generation(denoiser: RandomLlada, batch: int, steps: int, blocks: int = 64, length: int = 512) -> dict[str, Any]:
    """Generates with the EB rule in blocks; counts the time in which the denoiser does not run.

    Twice: as it is, where the denoiser's time is what passes on the GPU between an event before and one after it; and
    with the device idle before and after each call of the denoiser, by the host's clock, which hides nothing.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 100_000, (batch, length), generator=generator)
    x[:, length // 2 :] = denoiser.mask_id
    x = x.cuda()
    rule = Rule(Entropy(), EntropyBound(48.0))  # nats: about five positions at the entropies of a random model
    found: dict[str, Any] = {"batch": batch, "length": length, "block": blocks, "steps": steps}
    for name, wait in (("overlapped", False), ("synchronised", True)):
        timed = Timed(denoiser, wait)
        sampler = Sampler(timed, rule)
        sampler.run(sampler.start(x, seed=0, blocks=blocks), max_steps=3)
        timed.marks.clear()
        timed.waited = 0.0
        state = sampler.start(x, seed=0, blocks=blocks)
        torch.cuda.synchronize()
        began = time.perf_counter()
        result = sampler.run(state, max_steps=steps)
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
        inside = timed.waited if wait else sum(begin.elapsed_time(end) for begin, end in timed.marks) / 1e3
        calls = len(timed.marks)
        found[name] = {
            "wall": wall,
            "evaluations": calls,
            "denoiser_ms": inside / calls * 1e3,
            "outside_ms": (wall - inside) / calls * 1e3,
            "share_outside": (wall - inside) / wall,
        }
        found["unmasked"] = int((x == denoiser.mask_id).sum() - result.masks_left.sum())
    found["tokens_per_second"] = found["unmasked"] / found["overlapped"]["wall"]
    return found


def profile(denoiser: RandomLlada) -> str:
    """What one sequence spends its time on, as a table."""
    x = torch.full((1, 512), denoiser.mask_id, device="cuda")
    sampler = Sampler(denoiser, Rule(Entropy(), EntropyBound(48.0)))
    state = sampler.start(x, seed=0, blocks=64)
    state, _ = sampler.step(state)
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as trace:
        for _ in range(4):
            state, _ = sampler.step(state)
        torch.cuda.synchronize()
    return trace.key_averages().table(sort_by="self_cuda_time_total", row_limit=25, max_name_column_width=60)


def measure(steps: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything, in one run; a part that fails says so in its place and stops no other."""
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton_rows.triton.__version__,
    }
    big = torch.empty(1 << 30, dtype=torch.bfloat16, device="cuda").normal_()
    target = torch.empty_like(big)
    copy = report["copy_bytes_per_second"] = 2 * big.numel() * 2 / seconds(lambda: target.copy_(big), 20)
    report["read_bytes_per_second"] = big.numel() * 2 / seconds(lambda: big.view(torch.int64).amax(), 20)
    del big, target

    def part(name: str, call: Callable[[], Any]) -> None:
        began = time.perf_counter()
        try:
            report[name] = call()
        except Exception as error:
            report[name] = f"{type(error).__name__}: {error}"
        torch.cuda.empty_cache()
        say(f"{name}: {time.perf_counter() - began:.0f} s\n{json.dumps(report[name])[:1500]}")

    part("agreement", lambda: [agreement(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)])
    part("sweep", lambda: sweep(copy))
    cases = [(ROWS, VOCAB), (128, VOCAB), (64, VOCAB), (1024, 50_368)]
    part("steps", lambda: [step_case(*c, dtype, copy) for c in cases for dtype in (torch.bfloat16, torch.float32)])
    for name, shape in SHAPES.items():

        def generate(shape: dict[str, int] = shape) -> dict[str, Any]:
            denoiser = RandomLlada(**shape)
            runs = [generation(denoiser, batch, steps) for batch in (1, 8)]
            return {"shape": shape, "parameters": denoiser.parameters, "runs": runs, "profile": profile(denoiser)}

        part(name, generate)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the sampler on a GPU.")
    parser.add_argument("--out", type=Path, help="where the JSON goes; standard output by default")
    parser.add_argument("--steps", type=int, default=32, help="evaluations of each generation")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.steps, lambda line: print(line, file=sys.stderr, flush=True)), indent=1)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
