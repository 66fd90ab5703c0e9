"""`unmask compare`: any set of samplers side by side, with their exact error."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..files.writing import check_outputs
from . import common, study
from . import oracle as options
from .engines import HERE, EngineOptions
from .groups import NEWEST, FromHub

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
    task: study.TaskOption = None,
    model: study.Model = None,
    data: study.Data = None,
    encoding: common.Encoding = None,
    split: study.Split = "validation",
    limit: study.Limit = 100,
    seeds: study.Seeds = 1,
    temperature: study.Temperatures = "1",
    batch_size: study.BatchSize = None,
    judge: study.Judge = None,
    out: study.Store = None,
    device: study.Device = "cpu",
    csv: Annotated[Path | None, typer.Option(help="With --task: write the rows to this CSV file.")] = None,
    hub: FromHub = NEWEST,
    engine: EngineOptions = HERE,
    json: common.Json = False,
) -> None:
    """Compare samplers on an oracle, or on a task with a trained model.

    On an oracle (an exact denoiser) the figures are exact: kl is KL(data || sampler) in nats, and nfe_mean the mean
    number of evaluations under the sampler's own law. Only the profile that dependence-bound reads is measured, on 400
    samples of the oracle (seed 0). With --task, every rule completes the same prompts from the same random streams:
    quality is the task's score with the half width of its 95 % interval over prompts, and difference is the paired
    difference to the first rule.
    """
    from ..dependence.calibrate import oracle_profile
    from ..evaluation import frontier

    model = hub.pinned(model)
    if task is not None:
        chosen = study.Chosen(
            task,
            model,
            data,
            split,
            limit,
            seeds,
            temperature,
            batch_size,
            judge,
            out,
            device,
            encoding=encoding,
            engine=engine,
        )
        study.compare(chosen, rules, plot, csv, json)
        return
    of_tasks = {"--model": model, "--data": data, "--encoding": encoding, "--judge": judge, "--out": out, "--csv": csv}
    if alone := [name for name, value in of_tasks.items() if value is not None]:
        raise ValueError(f"{', '.join(alone)}: only with --task; without it samplers are compared on an oracle")
    if engine != HERE:
        raise ValueError("--engine goes with --task: the exact law of a sampler is computed here")
    check_outputs({"--plot": plot}, [joint])
    denoiser, width = options.oracle_from(oracle, joint, oracle_seed, length, symbols, states, stay)
    texts = frontier.split_rules(rules)
    own = oracle_profile(denoiser, width) if any(text.startswith("dependence-bound") for text in texts) else None
    named = [one for text in texts for one in frontier.sweep(text, width, own)]
    with common.progress(quiet=json) as bar:
        job = bar.add_task("comparing", total=len(named))
        rows = frontier.frontier(denoiser, width, named, on_rule=lambda: bar.advance(job))
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
