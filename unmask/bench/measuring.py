"""Measuring in one run: medians of interleaved calls, a competing process, peak memory, a first use."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..denoiser import Query


class Given:
    """A denoiser that has its answer ready: what is left of a step is the sampler."""

    def __init__(self, logits: Tensor) -> None:
        self.logits, self.vocab_size, self.mask_id = logits, logits.shape[1], logits.shape[1] - 1

    def __call__(self, query: Query) -> Tensor:
        return self.logits


class Ready:
    """A denoiser with answers for one sequence, which take turns: what is timed beside it is the sampler alone.

    It gives as many rows as it is asked for, of whatever positions, so that none is copied if they fit the sequence.
    """

    def __init__(self, *answers: Tensor) -> None:
        self.answers, self.asked = answers, 0
        self.length, self.vocab_size = answers[0].shape
        self.mask_id = self.vocab_size - 1

    def __call__(self, query: Query) -> Tensor:
        self.asked += 1
        answer, rows = self.answers[self.asked % len(self.answers)], query.rows
        return answer[: len(rows)] if len(rows) <= self.length else answer[rows % self.length]


def medians(calls: dict[str, Callable[[], object]], repeats: dict[str, int]) -> dict[str, tuple[float, float]]:
    """Seconds of each call, median and half the interquartile range (see `turns`)."""
    found = turns(calls, repeats)
    spread = {name: float(np.subtract(*np.percentile(values, [75, 25]))) / 2 for name, values in found.items()}
    return {name: (statistics.median(values), spread[name]) for name, values in found.items()}


def turns(calls: dict[str, Callable[[], object]], repeats: int | dict[str, int]) -> dict[str, list[float]]:
    """Seconds of each call, after one call to warm up.

    The calls take turns, so that what else the machine does falls on all of them.
    """
    many = dict.fromkeys(calls, repeats) if isinstance(repeats, int) else repeats
    for call in calls.values():
        call()
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(max(many.values())):
        for name, call in calls.items():
            if turn < many[name]:
                began = time.perf_counter()
                call()
                found[name].append(time.perf_counter() - began)
    return found


@contextmanager
def competing(processes: int = 1) -> Iterator[None]:
    """Keeps some processes busy with sums of numbers meanwhile, as many cores as there are processes."""
    code = "while True: sum(range(10**5))"
    rivals = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(processes)]
    try:
        yield
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes that a call adds to the resident memory of this process at its peak; `None` where Linux is not there."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    call()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _status("VmRSS")
    kept = call()
    after = _status("VmHWM")
    del kept
    return max(0, after - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def first_uses() -> dict[str, float]:
    """Seconds until the kernels have answered once, in a fresh process: without and with compiled code in the cache.

    `cpu` is the processor's time of the same, which a busy machine does not stretch as much.
    """
    code = (
        "import time, torch\n"
        "from unmask.draws.categorical import draw, marginals\n"
        "z, u = torch.randn(4, 5000), torch.rand(4, dtype=torch.float64)\n"
        "wall, cpu = time.perf_counter(), time.process_time()\n"
        "marginals(z, (1,)); draw(z, u)\n"
        "print(time.perf_counter() - wall, time.process_time() - cpu)\n"
    )
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ever", "later"):
            environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
            answer = subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
            )
            found[f"first_use_{name}"], found[f"first_use_{name}_cpu"] = map(float, answer.stdout.split())
    return found


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """The slope of `log seconds` over `log size`: 1 is linear."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def random_logits(rows: int, vocab: int, dtype: torch.dtype) -> Tensor:
    """Normal logits of standard deviation 3, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.empty(rows, vocab, dtype=dtype)
    for row in range(rows):
        logits[row] = (torch.randn(vocab, generator=generator) * 3).to(dtype)
    return logits
