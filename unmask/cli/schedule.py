"""`unmask schedule`: the group sizes for the uniform order that lose the least in a given number of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..draws.streams import derive
from ..likelihood.curve import InformationCurve, measure_curve, optimal_sizes, oracle_curve
from . import common
from . import oracle as options
from .profile import Data, Exact, Of, Split, Together, Whose, sequences_of


def schedule(
    model: Of = None,
    *,
    evaluations: Annotated[int, typer.Option(min=1, help="How many evaluations a sequence may take.")],
    task: Whose = None,
    data: Data = None,
    split: Split = "validation",
    oracle: Exact = None,
    oracle_seed: options.OracleSeed = None,
    length: options.Length = None,
    symbols: options.Symbols = None,
    states: options.States = None,
    stay: options.Stay = None,
    samples: Annotated[int, typer.Option(min=1, help="Sequences to measure on.")] = 100,
    strata: Annotated[int, typer.Option(min=1, help="Evaluations per sequence, at different masked shares.")] = 16,
    batch_size: Together = 64,
    seed: common.Seed = 0,
    json: common.Json = False,
) -> None:
    """Find the best schedule of a random order: how many positions each evaluation should unmask.

    The command measures on data how uncertain a token is when n tokens are masked, as for the NELBO; for an oracle this
    is exact. From it follows the loss of any sequence of group sizes, in expected nats compared with one at a time, and
    dynamic programming finds the sizes that lose the least. The printed rule uses them: --rule groups:sizes=...
    """
    if (model is None) == (oracle is None):
        raise ValueError("name a model, or an exact denoiser with --oracle")
    common.one_thread()
    if oracle is not None:
        denoiser, width = options.oracle_from(oracle, None, oracle_seed, length, symbols, states, stay)
        curve, about = oracle_curve(denoiser, width), oracle.value
    else:
        assert model is not None
        curve, about = _measured(model, task, data, split, samples, strata, batch_size, seed, quiet=json), model
    masks = len(curve.nats)
    sizes = optimal_sizes(curve, evaluations)
    equal = tuple(masks // evaluations + (number < masks % evaluations) for number in range(evaluations))
    report: dict[str, Any] = {
        "of": about,
        "tokens": masks,
        "evaluations": evaluations,
        "sizes": list(sizes),
        "rule": f"groups:sizes={'+'.join(map(str, sizes))}",
        "loss": curve.loss(sizes),
        "loss_equal": curve.loss(equal),
        "curve": curve.nats.tolist(),
        "measured": int(curve.evaluations.sum()),
    }
    if json:
        common.print_json(report)
        return
    common.out.print(report["rule"], highlight=False, soft_wrap=True)
    table = common.table("", "nats a sequence")
    table.add_row("expected loss against one at a time", f"{report['loss']:.4g}")
    table.add_row(f"the same in {evaluations} equal groups", f"{report['loss_equal']:.4g}")
    common.out.print(table)
    how = f"{report['measured']} evaluations on {split} data" if model else "exact"
    common.out.print(f"{masks} tokens, {how}; --json has the curve.", highlight=False)


def _measured(
    model: str,
    task: str | None,
    data: Path | None,
    split: str,
    samples: int,
    strata: int,
    batch_size: int,
    seed: int,
    quiet: bool,
) -> InformationCurve:
    denoiser, _, rows, _ = sequences_of(model, task, data, split)
    x, maskable = rows(range(samples))
    with common.progress(quiet) as bar:
        job = bar.add_task("evaluations", total=samples * strata)
        return measure_curve(
            denoiser,
            x,
            maskable=maskable,
            strata=strata,
            streams=[derive(seed, number) for number in range(samples)],
            batch_size=batch_size,
            on_batch=lambda done: bar.advance(job, done),
        )
