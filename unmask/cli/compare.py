"""`unmask compare`: any set of samplers side by side, with their exact error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import common
from . import oracle as options

DEFAULT = "top1-entropy,entropy-bound,entropy-bound:proxy=margin,threshold,topk,first-hitting-parallel"


def compare(
    oracle: options.Name = options.OracleName.MARKOV,
    joint: options.Joint = None,
    oracle_seed: options.OracleSeed = None,
    length: options.Length = None,
    symbols: options.Symbols = None,
    states: options.States = None,
    stay: options.Stay = None,
    rules: Annotated[
        str,
        typer.Option(help="Comma-separated; a rule without its setting is swept over a grid, name:key=value fixes it."),
    ] = DEFAULT,
    plot: Annotated[Path | None, typer.Option(help="Draw KL against evaluations to this file (extra plot).")] = None,
    json: common.Json = False,
) -> None:
    """Compare samplers on an oracle: exact KL, total variation and bound against expected evaluations.

    Everything is exact, nothing is sampled: kl is KL(data || sampler) in nats, nfe_mean under the sampler's own law.
    """
    from ..evaluation import frontier

    denoiser, width = options.oracle_from(oracle, joint, oracle_seed, length, symbols, states, stay)
    named = [one for text in frontier.split_rules(rules) for one in frontier.sweep(text, width)]
    with common.progress(quiet=json) as bar:
        task = bar.add_task("comparing", total=len(named))
        rows = frontier.frontier(denoiser, width, named, on_rule=lambda: bar.advance(task))
    if plot is not None:
        what = f"stay {stay:g}" if stay is not None else "given joint" if joint else f"seed {oracle_seed or 0}"
        title = oracle.value if oracle is options.OracleName.SUDOKU4 else f"{oracle.value}, {width} tokens, {what}"
        frontier.plot(rows, plot, title)
    if json:
        common.print_json(rows)
        return
    table = common.table("rule", "NFE", "KL", "TV", "bound")
    for one, row in zip(named, rows, strict=True):
        exact = (0.0 if row[key] < 1e-12 else row[key] for key in ("nfe_mean", "kl", "tv", "bound"))
        table.add_row(str(one), *(f"{value:.4g}" for value in exact))
    common.out.print(table)
    if plot is not None:
        common.out.print(f"Plot in {plot}", highlight=False)
