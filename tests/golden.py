"""What every named rule gave before the core became a conversation: tokens, evaluations and bounds, case by case.

`python -m tests.golden write` makes the file anew; do so only in a commit that says why tokens change. Networks run in
float64, where the rounding of another processor moves a sum by 1e-16 and so, but for bad luck of that size, no token.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import unmask
from unmask.oracles import Sudoku4Denoiser, random_markov, random_table
from unmask.rules.named import FAMILIES, named_rule

FILE = Path(__file__).with_name("golden.json.gz")

SETTINGS: dict[str, str] = {
    "speculative": "draft=3",
    "topk": "k=2",
    "threshold": "threshold=0.6",
    "factor": "factor=1.1",
    "klass": "threshold=0.6,kl=0.2,history=1",
    "entropy-bound": "gamma=0.5",
    "carried-bound": "epsilon=2",
    "noisy-bound": "gamma=0.5",
    "independence-test": "epsilon=0.02",
    "random-k": "k=3",
    "groups": "sizes=1+2+3+1",
    "steps": "steps=3",
    "first-hitting-parallel": "steps=3",
    "first-hitting-extrapolated": "steps=3",
    "ancestral": "steps=4",
    "llada-quota": "steps=4",
    "maskgit": "steps=4",
    "moment": "steps=4",
}
"""Of the rules that need any."""

PROFILES = {"sudoku": "sudoku", "text": "text", "chat": "chat"}
"""Models that have a profile for the dependence bound; the oracles take none."""


def rules(model: str | None = None) -> Iterator[str]:
    """Every named rule of 0.1.0 with settings, for a model or an oracle."""
    for name in FAMILIES:
        if name == "dependence-bound":
            if model is not None:
                yield f"{name}:gamma=0.3,profile={PROFILES[model]}"
        elif name in SETTINGS or all(setting.default is not None for setting in FAMILIES[name].settings.values()):
            yield f"{name}:{SETTINGS[name]}" if name in SETTINGS else name


def record(result: unmask.Result) -> dict[str, Any]:
    """What is compared: all integers exactly, bounds to rounding."""
    order = []
    for row in range(len(result.tokens)):
        steps = [0] * int(result.lengths[row])
        for event in result.trace(row):
            steps[event.position] = event.step
        order.append(steps)
    return {
        "tokens": result.sequences,
        "order": order,
        "nfe": result.nfe.tolist(),
        "evaluations": result.evaluations.tolist(),
        "passes": result.forward_passes,
        "bounds": [list(bounds) for bounds in result.bounds],
    }


def oracle_cases() -> Iterator[tuple[str, Any, Any, dict[str, Any]]]:
    """Name, denoiser, tokens and settings of the draw."""
    table = random_table(3, 5, seed=1)
    m = table.mask_id
    yield "table", table, torch.tensor([[m] * 5, [m, 1, m, m, 0], [2, m, m, m, m]]), {"streams": [1, 2, 3]}
    chain = random_markov(4, seed=2)
    m = chain.mask_id
    rows = torch.tensor([[m] * 9, [0, *[m] * 7, 3], [m, m, 2, m, m, m, 1, m, m]])
    yield "chain", chain, rows, {"seed": 5, "blocks": 4, "temperature": torch.tensor([1.0, 0.7, 0.0])}
    grids = Sudoku4Denoiser()
    m = grids.mask_id
    rows = torch.full((2, 16), m)
    rows[1, 0] = 1
    yield "sudoku4", grids, rows, {"seed": 7}
    yield "sudoku4-top", grids, rows, {"seed": 8, "top_k": 3, "top_p": 0.9}


def network_cases(dtype: torch.dtype) -> Iterator[tuple[str, str, Any, Any, dict[str, Any]]]:
    """Name, model, denoiser, tokens and settings of the draw."""
    sudoku = unmask.load("sudoku", dtype=dtype)
    puzzle = "53..7....6..195....98....6.8...6...34..8.3..17...2...6.6....28....419..5....8..79"
    given = [int(c) - 1 if c.isdigit() else sudoku.mask_id for c in puzzle]
    fewer = [token if i % 3 else sudoku.mask_id for i, token in enumerate(given)]
    yield "sudoku", "sudoku", sudoku, torch.tensor([given, fewer]), {"seed": 3, "temperature": torch.tensor([0.0, 1.0])}
    text = unmask.load("text", dtype=dtype)
    rows = torch.arange(256).reshape(2, 128) % 60
    rows[0, 50:74], rows[1, 30:50] = text.mask_id, text.mask_id
    yield "text", "text", text, rows, {"seed": 4, "blocks": 12}


def cases(dtype: torch.dtype = torch.float64) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs everything; one case after the other."""
    for name, denoiser, x, settings in oracle_cases():
        for rule in rules():
            yield f"{name}/{rule}", record(unmask.sample(denoiser, x, named_rule(rule).rule, trace=True, **settings))
    for name, model, denoiser, x, settings in network_cases(dtype):
        for rule in rules(model):
            yield f"{name}/{rule}", record(unmask.sample(denoiser, x, named_rule(rule).rule, trace=True, **settings))
    yield from language_cases(dtype)


def language_cases(dtype: torch.dtype) -> Iterator[tuple[str, dict[str, Any]]]:
    """Answers of the embedded language model: drawn and at argmax, in blocks and on one canvas."""
    from unmask.language import LanguageModel

    chat = unmask.load("chat", dtype=dtype)
    assert isinstance(chat, LanguageModel)
    prompts = ["12+35=", "9+4=", "7+80="]
    for rule in rules("chat"):
        for setting in ({}, {"block_length": 4, "temperature": 1.0}):
            answers = chat.generate(prompts, rule=rule, max_new_tokens=8, seed=2, **setting)
            yield (
                f"chat/{rule}/{'blocks' if setting else 'canvas'}",
                {
                    "tokens": [list(one.tokens) for one in answers],
                    "order": [list(one.steps) for one in answers],
                    "nfe": [one.nfe for one in answers],
                    "text": [one.text for one in answers],
                    "reason": [one.finish_reason for one in answers],
                },
            )


def write(path: Path = FILE, dtype: torch.dtype = torch.float64) -> int:
    """Writes the file, the same bytes for the same results; returns how many cases there are."""
    found = dict(cases(dtype))
    path.write_bytes(gzip.compress(json.dumps(found, separators=(",", ":")).encode(), mtime=0))
    return len(found)


def read(path: Path = FILE) -> dict[str, dict[str, Any]]:
    """Reads it."""
    return json.loads(gzip.decompress(path.read_bytes()))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["write"]:
            print(write(), "cases")
        case ["write", path, kind]:
            print(write(Path(path), getattr(torch, kind)), "cases")
        case _:
            sys.exit("usage: python -m tests.golden write [FILE DTYPE]")
