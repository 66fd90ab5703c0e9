"""How far the law of a peer's loop is from the one it claims, and what the loop costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmask import sample
from unmask.denoiser import FullDenoiser
from unmask.oracles import Oracle, exact_law
from unmask.rules.named import named_rule

from .case import Case
from .enumerated import law_of
from .oracle import LENGTH, SEED, SYMBOLS, Answers, the_table

SAMPLES, BATCH = 4000, 50
COSTS = (1, 64, 20_000)


def claimed(oracle: Oracle, rule: str) -> Tensor:
    """The law of a rule over all sequences in lexicographic order, and the rest."""
    law = exact_law(oracle, named_rule(rule).rule, torch.full((LENGTH,), oracle.mask_id))
    q = torch.zeros(oracle.symbols**LENGTH + 1, dtype=torch.float64)
    q[_codes(law.points, oracle.symbols)] = law.log_q.exp()
    q[-1] = law.off_support
    return q


def _codes(x: Tensor, symbols: int) -> Tensor:
    """The number of each sequence in lexicographic order; the number of sequences if it still has a mask."""
    code = (x * symbols ** torch.arange(LENGTH - 1, -1, -1)).sum(-1)
    return code.masked_fill((x >= symbols).any(-1), symbols**LENGTH)


def distance(x: Tensor, law: Tensor, symbols: int) -> float:
    """The total variation between samples and a law."""
    share = torch.bincount(_codes(x, symbols), minlength=len(law)).double() / len(x)
    return 0.5 * float((share - law).abs().sum())


def chance(law: Tensor, samples: int) -> tuple[float, float]:
    """The total variation that so many samples of the law itself show: the mean, and what one in a thousand exceeds."""
    drawn = np.random.default_rng(0).multinomial(samples, law.numpy() / float(law.sum()), size=4000) / samples
    found = 0.5 * np.abs(drawn - law.numpy()).sum(-1)
    return float(found.mean()), float(np.quantile(found, 0.999))


def measured(
    case: Case, samples: int = SAMPLES, tick: Callable[[int], None] = lambda done: None, alone: bool = True
) -> dict[str, Any]:
    """How far the law of a loop is from the one it claims, and its evaluations per sequence.

    Args:
        case: The loop.
        samples: Sequences per law.
        tick: Called with the number of sequences done.
        alone: Whether to draw sequences alone, too, and not only in batches.
    """
    oracle = the_table()
    law = claimed(oracle, case.rule)
    torch.manual_seed(SEED)
    found: dict[str, Any] = {"label": case.label, "rule": case.rule, "samples": samples}
    drawn = {}
    for name in [way for way in ways(case) if alone or way != "alone"]:
        model, parts = Answers(oracle, LENGTH, case.shift, name == "mixed"), []
        batch, mates = 1 if name == "alone" else BATCH, BATCH // 2 if name == "mixed" else 0
        for _ in range(samples // (batch - mates)):
            parts.append(case.run(model, batch)[mates:])
            tick(batch - mates)
        drawn[name] = torch.cat(parts)
        found[name] = distance(drawn[name], law, SYMBOLS)
        found.setdefault("nfe", model.seen / samples)
    found["chance"], found["limit"] = chance(law, samples)
    if case.instead is not None:
        found["instead"] = _instead(case, Answers(oracle, LENGTH), drawn.get(case.does_so, next(iter(drawn.values()))))
    return found


def ways(case: Case) -> list[str]:
    """How its sequences are drawn: alone, in a batch of their kind, beside as many of another kind."""
    return ["alone", *(["batch"] if case.batched else []), *(["mixed"] if case.mixed else [])]


def _instead(case: Case, model: Answers, drawn: Tensor) -> dict[str, Any]:
    """How far samples are from the enumerated law of what the code does."""
    assert case.instead is not None
    law = law_of(case.instead, model)
    return {"says": case.instead.says, "distance": distance(drawn, law, SYMBOLS), "limit": chance(law, len(drawn))[1]}


def costs(case: Case, repeats: int = 7) -> dict[str, float]:
    """The processor's time for the same rule here over that of a loop, by size of the batch, on looked-up logits.

    Both take turns; of each the median counts.
    """
    oracle = the_table()
    model, rule = Answers(oracle, LENGTH, case.shift), named_rule(case.rule).rule
    ours = FullDenoiser(Answers(oracle, LENGTH).logits, oracle.vocab_size, oracle.mask_id)
    ratios = {}
    largest = (case.largest or COSTS[-1]) if case.batched else 1
    for batch in (size for size in COSTS if size <= largest):
        x = torch.full((batch, LENGTH), oracle.mask_id)
        calls: dict[str, Callable[[], object]] = {
            "theirs": lambda batch=batch: case.run(model, batch),
            "ours": lambda x=x: sample(ours, x, rule, seed=0),
        }
        spent: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(1 + (10 * repeats if batch == 1 else repeats if batch < 1000 else 3)):
            for name, call in calls.items():
                began = time.process_time()
                call()
                spent[name] += [time.process_time() - began] if turn else []  # the first turn warms up
        ratios[str(batch)] = statistics.median(spent["ours"]) / statistics.median(spent["theirs"])
    return ratios
