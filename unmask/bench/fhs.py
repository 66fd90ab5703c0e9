"""The first-hitting sampler against ancestral sampling on a time grid: wall-clock, evaluations, random numbers.

The denoiser is as cheap as one can be (rows of a table), so that what is compared is the sampler. The baseline is the
published step, one categorical over `V + 1` classes per masked position and time step, in its kindest form: float32,
masked rows only, evaluations reused while nothing changed, one uniform and one logarithm per class (`p / -log u`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import Query
from ..draws.streams import Purpose, as_streams, derive, uniforms
from ..rules import ancestral, first_hitting
from ..rules.ranked import Rule
from ..sampling.sample import sample
from ..schedule import Linear


class TableRows:
    """A denoiser whose positions are independent: logits are rows of a fixed table."""

    def __init__(self, length: int, vocab: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.vocab_size, self.mask_id = vocab + 1, vocab
        self.table = torch.randn(length, vocab + 1, generator=generator)

    def __call__(self, query: Query) -> Tensor:
        return self.table[query.where.nonzero()[:, 1]]


@dataclass(frozen=True)
class Timing:
    """One sampler's cost for one sequence.

    Attributes:
        name: Which sampler.
        seconds: Median wall-clock, or an estimate from an even sample of its steps.
        nfe: Model evaluations.
        draws: Random numbers drawn.
        timed_steps: Steps that were timed, of how many.
    """

    name: str
    seconds: float
    nfe: int
    draws: int
    timed_steps: tuple[int, int]


def loop_timing(name: str, rule: Rule, denoiser: TableRows, length: int, repeats: int) -> Timing:
    """Times our loop; a sequence takes one uniform per position for its time and one for its token."""
    x = torch.full((1, length), denoiser.mask_id)
    result, seconds = None, []
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        result = sample(denoiser, x, rule, seed=repeat)
        seconds.append(time.perf_counter() - began)
    assert result is not None
    nfe = int(result.nfe[0])
    return Timing(name, statistics.median(seconds[1:]), nfe, 2 * length, (nfe, nfe))


def categorical_timing(denoiser: TableRows, length: int, steps: int, sampled: int) -> Timing:
    """Times the published step on an even sample of the grid, and every evaluation it needs.

    Which positions are still masked at each step follows the hitting times of one sequence, as in a real run.
    """
    noise = uniforms(as_streams([derive(0, "fhs")]), torch.arange(length), Purpose.ORDER)
    alpha = Linear().alpha(torch.arange(steps, -1, -1, dtype=torch.float64) / steps)
    masked = [noise >= float(a) for a in alpha[:-1]]  # position i is hit when alpha passes its noise
    left = torch.stack([rows.sum() for rows in masked])
    changed = torch.cat([torch.tensor([True]), left[1:] != left[:-1]]) & (left > 0)
    total = int((left > 0).sum())
    picked = torch.linspace(0, total - 1, min(sampled, total)).round().long().tolist()
    generator = torch.Generator().manual_seed(0)
    lasted = []
    for step in [picked[0], *picked]:
        rows = masked[step].nonzero().squeeze(-1)
        p = denoiser.table[rows].softmax(-1)
        p[:, -1] = 0
        began = time.perf_counter()
        ancestral_step(p, float(alpha[step]), float(alpha[step + 1]), generator)
        lasted.append(time.perf_counter() - began)
    evaluations = changed.nonzero().squeeze(-1).tolist()
    few = evaluations[:: max(1, len(evaluations) // 16)]
    began = time.perf_counter()
    for step in few:
        denoiser.table[masked[step].nonzero().squeeze(-1)].softmax(-1)
    evaluating = (time.perf_counter() - began) / len(few) * len(evaluations)
    seconds = statistics.fmean(lasted[1:]) * total + evaluating  # the first was a warm-up
    draws = int(left.sum()) * denoiser.vocab_size
    return Timing("categorical-ancestral", seconds, len(evaluations), draws, (len(picked), total))


def ancestral_step(p: Tensor, alpha_t: float, alpha_s: float, generator: torch.Generator) -> Tensor:
    """The published update: one race over the symbols and "stay masked" (the last column), in float32."""
    weights = p * ((alpha_s - alpha_t) / (1 - alpha_t))
    weights[:, -1] = (1 - alpha_s) / (1 - alpha_t)
    noise = torch.rand(weights.shape, generator=generator).log_().neg_()
    return weights.div_(noise).argmax(-1)


def compare(length: int, vocab: int, steps: int, sampled: int, repeats: int) -> dict[str, Any]:
    """Times the three samplers on one problem; ratios are their seconds over those of the first-hitting sampler."""
    denoiser = TableRows(length, vocab)
    hitting = loop_timing("first-hitting", first_hitting(), denoiser, length, repeats)
    two_draw = loop_timing("two-draw-ancestral", ancestral(steps), denoiser, length, repeats)
    categorical = categorical_timing(denoiser, length, steps, sampled)
    return {
        "length": length,
        "vocab": vocab,
        "steps": steps,
        "ratio_categorical_ancestral": categorical.seconds / hitting.seconds,
        "ratio_two_draw_ancestral": two_draw.seconds / hitting.seconds,
        "ratio_categorical_two_draw": categorical.seconds / two_draw.seconds,
        "samplers": [vars(timing) for timing in (hitting, two_draw, categorical)],
    }


def bench(
    length: int = 128, vocab: int = 32_768, ratio: int = 8, on_case: Callable[[], None] | None = None
) -> dict[str, Any]:
    """The main comparison at `T = ratio · length`, and how its ratio grows with `T / L` and `V`.

    Args:
        length: Tokens.
        vocab: Symbols.
        ratio: Time steps per token.
        on_case: Called after each of the eight comparisons.
    """
    cases = [(vocab, ratio)]
    cases += [(vocab, each) for each in (1, 2, 4, 16)]
    cases += [(vocab // by, ratio) for by in (32, 8, 2) if vocab // by >= 2]
    rows = []
    for index, (symbols, each) in enumerate(cases):
        rows.append(compare(length, symbols, each * length, 64 if index == 0 else 16, 3 if index == 0 else 1))
        if on_case is not None:
            on_case()
    keys = ("vocab", "steps", "ratio_categorical_ancestral", "ratio_two_draw_ancestral", "ratio_categorical_two_draw")
    return {**rows[0], "scaling": [{key: row[key] for key in keys} for row in rows]}
