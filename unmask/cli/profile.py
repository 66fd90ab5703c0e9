"""`unmask profile`: measure how much masked positions depend on each other under a model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Bool
from torch import Tensor

from ..checks import key_values
from ..denoiser import Denoiser
from ..dependence.calibrate import measure_profile, oracle_samples
from ..dependence.picture import heat_map
from ..draws.streams import derive
from ..errors import AdapterError
from ..files.writing import check_outputs
from ..folders import model_folder
from ..models.registry import load
from ..rules.geometry import geometry_of, sudoku
from ..rules.profile import Line, Profile, Relations
from ..sampling.batch import Tokens
from ..tasks.of_model import task_of
from ..tasks.task import Foreign, own_lengths
from . import common
from . import oracle as options
from .groups import NEWEST, FromHub

SAVE_EVERY = 10.0
"""Seconds between two savings of what was measured."""

Rows = Callable[[range], tuple[Tokens, Bool[Tensor, "rows length"]]]
"""The sequences of some contexts, by number, and which of their tokens may be masked."""


Of = Annotated[str | None, typer.Argument(help=common.MODEL)]
Whose = Annotated[
    str | None,
    typer.Option("--task", help="Task with the sequences: sudoku, text, ... or name:key=value; default: the model's."),
]
Data = Annotated[Path | None, typer.Option(help="The task's data, instead of what ships with the package.")]
Split = Annotated[str, typer.Option(help="Split of the task's data: train, validation or test.")]
Exact = Annotated[options.OracleName | None, typer.Option("--oracle", help="An exact denoiser instead of a model.")]
Together = Annotated[int, typer.Option(min=1, help="Sequences per evaluation; changes nothing else.")]


def profile(
    model: Of = None,
    task: Whose = None,
    data: Data = None,
    split: Split = "validation",
    oracle: Exact = None,
    oracle_seed: options.OracleSeed = None,
    length: options.Length = None,
    symbols: options.Symbols = None,
    states: options.States = None,
    stay: options.Stay = None,
    contexts: Annotated[int, typer.Option(min=1, help="Masked sequences to start from.")] = 400,
    draws: Annotated[int, typer.Option(min=1, help="Tokens drawn in each context, with one evaluation each.")] = 4,
    batch_size: Together = 64,
    seed: common.Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Output folder; default: the model's, or runs/profile-NAME.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a heat map to this file (extra plot).")] = None,
    hub: FromHub = NEWEST,
    json: common.Json = False,
) -> None:
    """Measure the dependence profile of a model, which the rule dependence-bound reads.

    In each context (a sequence with masks) one masked token is drawn and the model is evaluated again. How far another
    prediction moves is, on average, its mutual information with that token. Evaluations count masked sequences,
    contexts included. The profile is saved every few seconds; a measurement that was interrupted, or that should get
    more contexts, goes on from there.
    """
    model = hub.pinned(model)
    if (model is None) == (oracle is None):
        raise ValueError("name a model, or an exact denoiser with --oracle")
    check_outputs({"--plot": plot}, [data])
    common.one_thread()
    if oracle is not None:
        denoiser, width = options.oracle_from(oracle, None, oracle_seed, length, symbols, states, stay)
        geometry = sudoku(2) if oracle is options.OracleName.SUDOKU4 else Line.of(width)
        about: dict[str, Any] = {"oracle": oracle.value, "oracle_seed": oracle_seed, "stay": stay, "length": width}
        about |= {"symbols": denoiser.symbols, "states": states}
        rows = _samples(denoiser, width, seed)
        folder = out or Path("runs") / f"profile-{oracle.value}"
    else:
        assert model is not None
        denoiser, geometry, rows, about = sequences_of(model, task, data, split)
        folder = out or (Path(model) if Path(model).is_dir() else Path("runs") / f"profile-{model}")
    about |= {"seed": seed, "draws": draws}
    found = _measure(denoiser, geometry, rows, about, folder, contexts, draws, batch_size, quiet=json)
    if plot is not None:
        heat_map(found, plot, f"Dependence profile of {about.get('model') or about.get('oracle')}")
    _report(found, folder, json)


def sequences_of(
    model: str, task: str | None, data: Path | None, split: str, smoothing: float | None = None
) -> tuple[Denoiser, Line | Relations, Rows, dict[str, Any]]:
    """Returns a model, the geometry of its task, the task's sequences, and what identifies them."""
    from ..tasks.fit import check_model
    from ..tasks.named import named_task

    denoiser = load(model, smoothing=smoothing)
    name, _, inline = (task or "").partition(":")
    settings = key_values(inline)
    if data is not None:
        settings["data"] = str(data)
    chosen = named_task(name, **settings) if name else task_of(model, **settings)
    name = name or chosen.name
    check_model(model, denoiser, chosen)
    examples = chosen.examples(split)

    def rows(numbers: range) -> tuple[Tokens, Tensor]:
        pairs = [examples[number % len(examples)] for number in numbers]
        x = torch.stack([tokens for tokens, _ in pairs])
        if isinstance(chosen, Foreign):
            return own_lengths(chosen, x)
        return x, torch.stack([maskable for _, maskable in pairs])

    about = {"model": model, "weights": weights_of(model), "task": name, "settings": settings, "split": split}
    return denoiser, geometry_of(chosen), rows, about


def weights_of(model: str) -> str:
    """Identifies the weights of a model."""
    with model_folder(model) as folder:
        files = sorted(path for path in folder.glob("*.safetensors") if path.stem != "profile")
        return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def _samples(denoiser: Any, width: int, seed: int) -> Rows:
    """Samples of an oracle, one token at a time."""

    def rows(numbers: range) -> tuple[Tensor, Tensor]:
        x = oracle_samples(denoiser, width, numbers, seed)
        return x, torch.ones_like(x, dtype=torch.bool)

    return rows


def _measure(
    denoiser: Denoiser,
    geometry: Line | Relations,
    rows: Rows,
    about: dict[str, Any],
    folder: Path,
    contexts: int,
    draws: int,
    batch_size: int,
    quiet: bool,
) -> Profile:
    found = Profile.empty(geometry)
    if (folder / "profile.json").exists():
        found = Profile.load(folder)
        if found.about != about:
            raise AdapterError(
                f"{folder} has a profile of something else, {found.about}; remove it or give another --out"
            )
        if found.measured > contexts:
            raise ValueError(f"{folder} has {found.measured} contexts already, more than the {contexts} asked for")
    found.about.update(about)
    saved = time.monotonic()
    with common.progress(quiet) as bar:
        job = bar.add_task("contexts", total=contexts, completed=found.measured)
        while found.measured < contexts:
            numbers = range(found.measured, min(contexts, found.measured + batch_size))
            x, maskable = rows(numbers)
            streams = [derive(about["seed"], number) for number in numbers]
            found = measure_profile(denoiser, x, found, maskable=maskable, draws=draws, streams=streams)
            bar.update(job, completed=found.measured)
            if time.monotonic() - saved > SAVE_EVERY:
                found.save(folder)
                saved = time.monotonic()
    found.save(folder)
    return found


def _report(found: Profile, folder: Path, json: bool) -> None:
    """Prints the table by class and masked share."""
    mean, error, count = found.mean, found.error, found.count
    if json:
        rows = [
            {
                "pair": found.geometry.label(number),
                "share": [share / found.fractions, (share + 1) / found.fractions],
                "mean": float(mean[number, share]),
                "error": float(error[number, share]),
                "count": int(count[number, share]),
            }
            for number in range(mean.shape[0])
            for share in range(mean.shape[1])
            if count[number, share]
        ]
        counts = {"contexts": found.measured, "evaluations": found.evaluations}
        common.print_json({"folder": str(folder), **counts, "about": found.about, "cells": rows})
        return
    table = common.table("pair", *(f"≤ {(share + 1) / found.fractions:.0%}" for share in range(found.fractions)))
    for number in range(mean.shape[0]):
        cells = ["–" if not n else f"{float(m):.3f}" for m, n in zip(mean[number], count[number], strict=True)]
        table.add_row(found.geometry.label(number), *cells)
    common.out.print("Mutual information in nats, by masked share of the sequence", highlight=False)
    common.out.print(table)
    common.out.print(
        f"{found.measured} contexts, {found.evaluations} evaluations; --json has standard errors. Profile in {folder}",
        highlight=False,
        soft_wrap=True,
    )
