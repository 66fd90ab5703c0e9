"""A batch costs what its masks cost: Sudokus in one batch, streamed through refilled slots, and one at a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Denoiser, Query
from ..evaluation.runner import answer
from ..models.registry import load
from ..rules.named import named_rule
from ..sampling.loop import Sampler
from ..tasks.sudoku import as_tensor, demo_puzzles, solved


class Bare:
    """Seconds of the bare network at some batch sizes, on puzzles as they are at the start.

    It is timed between the pieces of what it is compared with: what else the machine does falls on both.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, sizes: list[int]) -> None:
        self.denoiser = denoiser
        self.queries = {size: Query.of(x[torch.arange(size) % len(x)], denoiser.mask_id) for size in sorted(sizes)}
        self.spent: dict[int, list[float]] = {size: [] for size in self.queries}
        self.total = 0.0
        denoiser(self.queries[min(sizes)])

    def measure(self) -> None:
        """Times every size once more."""
        first = time.perf_counter()
        for size, query in self.queries.items():
            began = time.perf_counter()
            self.denoiser(query)
            self.spent[size].append(time.perf_counter() - began)
        self.total += time.perf_counter() - first

    def seconds(self) -> dict[int, float]:
        """The median of each size."""
        return {size: statistics.median(values) for size, values in self.spent.items()}

    def rate(self) -> float:
        """Sequences a second at the best batch size."""
        return max(size / seconds for size, seconds in self.seconds().items())


def between(bare: Bare, every: int) -> Callable[[int], None]:
    """Measures the bare network after every so many puzzles."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        if (done + more) // every > done // every:
            bare.measure()
        done += more

    return count


def bench(puzzles: int = 1000, slots: int = 64, gamma: float = 0.05) -> dict[str, Any]:
    """Times the embedded Sudoku network with and without refill, against what the bare network needs.

    Args:
        puzzles: How many, of those that ship with the package, from the beginning again if there are fewer.
        slots: Sequences worked on at once.
        gamma: The EB-Sampler's budget, in nats.
    """
    denoiser = load("sudoku")
    given = as_tensor(demo_puzzles())
    x = given[torch.arange(puzzles) % len(given)]
    eb, top1 = named_rule("entropy-bound", gamma=gamma).rule, named_rule("top1-confidence").rule
    sampler = Sampler(denoiser, eb)

    live: list[int] = []
    state = sampler.start(x[:slots], seed=0, temperature=0.0)
    sampler.run(state, on_step=lambda _, info: live.append(len(info.sequence)))
    bare = Bare(denoiser, x, sorted({1, 4, 16, slots, *live}))
    batches = []
    for _ in range(3):
        bare.measure()
        began = time.perf_counter()
        sampler.run(state)
        batches.append(time.perf_counter() - began)
    bare.measure()
    one_batch, alone = statistics.median(batches), bare.seconds()

    bare = Bare(denoiser, x, sorted({1, 4, 16, slots}))
    bare.measure()
    on_batch = between(bare, max(1, puzzles // 16))
    before = bare.total
    streamed = answer(sampler, x, seed=0, temperature=0.0, batch_size=slots, on_batch=on_batch)
    seconds = streamed.seconds - (bare.total - before)
    slow = answer(Sampler(denoiser, top1), x, seed=0, temperature=0.0, batch_size=slots)
    return {
        "puzzles": puzzles,
        "different_puzzles": min(puzzles, len(given)),
        "slots": slots,
        "gamma": gamma,
        "seconds_network": {str(size): value for size, value in bare.seconds().items()},
        "seconds_one_batch": one_batch,
        "ratio_one_batch": one_batch / sum(alone[size] for size in live),
        "seconds_streamed": seconds,
        "ratio_streamed": seconds / (int(streamed.nfe.sum()) / bare.rate()),
        "solved_eb": int(solved(streamed.tokens).sum()),
        "solved_top1": int(solved(slow.tokens).sum()),
        "nfe_eb": float(streamed.nfe.double().mean()),
        "nfe_top1": float(slow.nfe.double().mean()),
        "seconds_top1": slow.seconds,
        "speedup_eb": slow.seconds / seconds,
    }
