"""What a step costs beside the model: statistics, rule and draws against `torch.log_softmax` and published steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoiser import FullDenoiser
from ..draws.categorical import draw_rows, marginals
from ..rules import Entropy, EntropyBound, Rule
from ..rules.named import named_rule
from ..sampling.conversation import AnyRule
from ..sampling.loop import Sampler
from .measuring import Given, competing, exponent, first_uses, medians, peak_memory, random_logits, turns
from .textbook import llada_step, mdlm_step

CASES = [(rows, vocab, dtype) for rows, vocab in ((128, 126_464), (1024, 50_368)) for dtype in ("float32", "bfloat16")]


def whole_step(logits: Tensor, share: float = 1 / 8, batch: int = 1) -> tuple[Callable[[], object], float]:
    """A step of the EB-Sampler with every row a candidate, and the γ with which it draws a share of them.

    With several sequences they share the rows evenly; γ, one for each, then is that of the first.
    """
    denoiser, length = Given(logits), len(logits) // batch
    taken = max(1, round(length * share))
    ranked = marginals(logits, [denoiser.mask_id]).entropy.double().view(batch, length).sort(-1).values
    gamma = ranked[:, : taken - 1].sum(-1) + (ranked[:, taken - 1] if taken < length else 0) * 1e-3
    sampler = Sampler(denoiser, Rule(Entropy(), EntropyBound(gamma)))
    state = sampler.start(torch.full((batch, length), denoiser.mask_id), seed=0)
    drawn = len(sampler.step(state)[1].tokens)
    assert drawn == batch * taken, (drawn, taken)
    return lambda: sampler.step(state), float(gamma[0])


def diffusers_step(logits: Tensor, gamma: float) -> Callable[[], object] | None:
    """The step of the `diffusers` package's EB scheduler at temperature 1; `None` if it is not installed."""
    try:
        from diffusers.schedulers.scheduling_entropy_bound import (  # pyright: ignore[reportMissingImports]
            EntropyBoundScheduler,
        )
    except ImportError:
        return None
    scheduler = EntropyBoundScheduler(entropy_bound=gamma, t_max=1.0, t_min=1.0)
    x = torch.zeros(1, len(logits), dtype=torch.int64)
    return lambda: scheduler.step(logits.unsqueeze(0), 0, x)  # pyright: ignore[reportArgumentType]


def case(rows: int, vocab: int, dtype: str, repeats: int = 9) -> dict[str, Any]:
    """Compares one shape in one run; ratios are our seconds over theirs."""
    logits = random_logits(rows, vocab, getattr(torch, dtype))
    ours, gamma = whole_step(logits)
    quarter, _ = whole_step(logits[: rows // 4].clone())
    calls: dict[str, Callable[[], object]] = {
        "step": ours,
        "quarter": quarter,
        "log_softmax": lambda: logits.log_softmax(-1),
        "llada": lambda: llada_step(logits, rows // 8, 1.0),
        "mdlm": lambda: mdlm_step(logits, 1 / 8),
    }
    theirs = diffusers_step(logits, gamma)
    if theirs is not None:
        calls["diffusers"] = theirs
    slow = max(2, repeats // 4)
    found = medians(calls, {name: slow if name in ("llada", "mdlm", "diffusers") else repeats for name in calls})
    with competing():
        few = {name: calls[name] for name in ("step", "log_softmax")}
        busy = medians(few, dict.fromkeys(few, repeats))
    extra = peak_memory(ours)
    report: dict[str, Any] = {"rows": rows, "vocab": vocab, "dtype": dtype, "gamma": gamma}
    for name, (median, spread) in found.items():
        report[f"seconds_{name}"], report[f"spread_{name}"] = median, spread
    step = found["step"][0]
    report |= {f"ratio_{name}": step / found[name][0] for name in ("log_softmax", "llada", "mdlm")}
    report["ratio_log_softmax_busy"] = busy["step"][0] / busy["log_softmax"][0]
    report["ratio_diffusers"] = step / found["diffusers"][0] if theirs is not None else None
    report["ratio_quarter_masked"] = found["quarter"][0] / step
    report["extra_memory_ratio"] = None if extra is None else extra / (logits.numel() * logits.element_size())
    return report


def scaling(repeats: int = 15) -> dict[str, Any]:
    """Seconds of a step over vocabulary, length and batch, and the exponents of the power laws that fit them.

    The sizes take turns. A curve goes through the lower quartiles, as other work only ever adds time; the spread is
    half the interquartile range of the exponents that single turns would give.
    """
    curves: dict[str, Any] = {}
    for name, shapes in {
        "vocab": [(1, 256, vocab) for vocab in (16_384, 32_768, 65_536, 131_072)],
        "length": [(1, length, 32_768) for length in (128, 256, 512, 1024)],
        "batch": [(batch, 64, 32_768) for batch in (2, 4, 8, 16)],
    }.items():
        calls: dict[str, Callable[[], object]] = {}
        for batch, length, vocab in shapes:
            logits = random_logits(batch * length, vocab, torch.float32)
            calls[f"{batch}x{length}x{vocab}"] = whole_step(logits, batch=batch)[0]
        found = turns(calls, repeats)
        sizes = [shape[("batch", "length", "vocab").index(name)] for shape in shapes]
        seconds = [float(np.quantile(found[call], 0.25)) for call in calls]
        each = [exponent(sizes, list(turn)) for turn in zip(*found.values(), strict=True)]
        spread = float(np.subtract(*np.percentile(each, [75, 25]))) / 2
        curves[name] = {"sizes": sizes, "seconds": seconds, "exponent": exponent(sizes, seconds), "spread": spread}
    return curves


def bench(repeats: int = 9, curves: bool = True, on_case: Callable[[], None] | None = None) -> dict[str, Any]:
    """All cases, the first use of the kernels, and how a step scales.

    Args:
        repeats: Timed calls of each.
        curves: Whether to measure how it scales.
        on_case: Called after each of the cases, and after measuring how it scales.
    """
    report: dict[str, Any] = {"threads": torch.get_num_threads(), **first_uses(), "cases": []}
    for rows, vocab, dtype in CASES:
        report["cases"].append(case(rows, vocab, dtype, repeats))
        if on_case is not None:
            on_case()
    if curves:
        report["scaling"] = scaling()
        if on_case is not None:
            on_case()
    return report


def draws(rows: int = 16, vocab: int = 126_464, repeats: int = 9) -> dict[str, Any]:
    """Draws of one token per row: ours, PyTorch's `multinomial` and Gumbel noise in float64."""
    logits = random_logits(rows, vocab, torch.float32)
    uniform = torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    every = torch.arange(rows)
    calls: dict[str, Callable[[], object]] = {
        "ours": lambda: draw_rows(logits, every, uniform),
        "multinomial": lambda: logits.softmax(-1).multinomial(1),
        "gumbel_float64": lambda: (
            logits.double() - (-torch.rand_like(logits, dtype=torch.float64).log()).log()
        ).argmax(-1),
        "log_softmax": lambda: logits.log_softmax(-1),
    }
    found = medians(calls, dict.fromkeys(calls, repeats))
    ratios = {f"ratio_{name}": found["ours"][0] / found[name][0] for name in calls if name != "ours"}
    return {"rows": rows, "vocab": vocab, **{f"seconds_{name}": found[name][0] for name in calls}, **ratios}


def small(length: int = 32, runs: int = 10, sizes: Sequence[int] = (102, 32_768)) -> dict[str, Any]:
    """Milliseconds of a step with the model's answer ready, one sequence alone: ours by rule, and LLaDA's loop.

    Whole runs take turns, from all masks to none; of all steps, the lowest decile, which other work on
    the machine hardly touches, and the median.
    """
    rules = [named_rule("entropy-bound", gamma=0.1), named_rule("top1-confidence")]
    rows = []
    for vocab in sizes:
        logits = random_logits(length, vocab, torch.float32)
        calls = {named.name: _own_loop(logits, named.rule) for named in rules}
        calls["llada"] = _llada_loop(logits)
        spent: dict[str, list[float]] = {name: [] for name in calls}
        for run in range(runs + 1):
            for name, call in calls.items():
                spent[name] += call() if run else call()[:0]  # the first run warms up
        for name, seconds in spent.items():
            decile, median = 1e3 * np.quantile(seconds, [0.1, 0.5])
            rows.append({"vocab": vocab, "name": name, "decile_ms": float(decile), "median_ms": float(median)})
    return {"length": length, "threads": torch.get_num_threads(), "steps": rows}


def _own_loop(logits: Tensor, rule: AnyRule) -> Callable[[], list[float]]:
    """Runs our sampler, and returns the seconds of every step."""
    mask = logits.shape[1] - 1
    sampler = Sampler(FullDenoiser(lambda x: logits.unsqueeze(0), mask + 1, mask), rule)

    def run() -> list[float]:
        state, spent = sampler.start(torch.full((1, len(logits)), mask), seed=0), []
        while bool(state.pending.any()):
            began = time.perf_counter()
            state, _ = sampler.step(state)
            spent.append(time.perf_counter() - began)
        return spent

    return run


def _llada_loop(logits: Tensor) -> Callable[[], list[float]]:
    """Runs LLaDA's loop at temperature 1, one position a step, and returns the seconds of every step."""

    def run() -> list[float]:
        masked, x, spent = torch.ones(len(logits), dtype=torch.bool), torch.zeros(len(logits), dtype=torch.int64), []
        while bool(masked.any()):
            began = time.perf_counter()
            where = masked.nonzero().squeeze(-1)
            token, rows = llada_step(logits[where], 1, 1.0)
            x[where[rows]], masked[where[rows]] = token[rows], False
            spent.append(time.perf_counter() - began)
        return spent

    return run


def memory() -> dict[str, Any]:
    """Peak memory that a step and the published ones add to the logits, as a share of them."""
    rows = []
    for count, vocab, dtype in CASES:
        logits = random_logits(count, vocab, getattr(torch, dtype))
        ours, gamma = whole_step(logits)
        calls = {"ours": ours, "llada": lambda z=logits, n=count: llada_step(z, n // 8, 1.0)}
        theirs = diffusers_step(logits, gamma)
        if theirs is not None:
            calls["diffusers"] = theirs
        size = logits.numel() * logits.element_size()
        extra = {name: peak_memory(call) for name, call in calls.items()}
        shares = {f"extra_{name}": None if value is None else value / size for name, value in extra.items()}
        rows.append({"rows": count, "vocab": vocab, "dtype": dtype, **shares})
    return {"cases": rows}
