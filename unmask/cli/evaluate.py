"""`unmask eval`: a language model on the tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..language import LanguageModel
from ..rules.named import NamedRule
from . import common
from . import generate as options
from .engines import HERE, EngineOptions
from .groups import NEWEST, USUAL, FromHub, RuleOptions
from .loading import ON_CPU, Loading


def evaluate(
    model: options.Model,
    tasks: Annotated[
        str,
        typer.Option(help="Comma-separated: gsm8k, math500, humaneval, mbpp, instructions, or any of the harness."),
    ],
    choice: RuleOptions = USUAL,
    temperature: Annotated[
        float | None, typer.Option(help="Temperature of the draw, instead of the one each task asks for.")
    ] = None,
    seed: common.Seed = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with the JSONL files of gsm8k, math500, ...")] = None,
    encoding: common.Encoding = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N documents of each task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Worked examples before each question.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of the answers, instead of the one each task asks for.")
    ] = None,
    block_length: options.Block = None,
    guidance: options.Guidance = None,
    end_last: options.EndLast = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="humaneval, mbpp: run the programs that the model writes.")
    ] = False,
    batch_size: options.BatchSize = 8,
    loading: Loading = ON_CPU,
    hub: FromHub = NEWEST,
    out: Annotated[
        Path | None, typer.Option(help="Keep every answer in this file; an interrupted run resumes from it.")
    ] = None,
    engine: EngineOptions = HERE,
    json: common.Json = False,
) -> None:
    """Evaluate a language model with lm-evaluation-harness (extra eval).

    tokens_per_evaluation and tokens_per_second count tokens up to the end token only. seconds is the time in calls to
    the model; answers read from --out count with the time that they took when they were made. With --engine ray,
    workers that load the model answer the batches; the table is the same.
    """
    model = hub.pinned(model)
    from ..evaluation.study import code_fingerprint, fingerprint
    from ..integrations.harness import evaluate as run
    from ..integrations.lm_eval import UnmaskLM

    named = choice.named(model, 0.0 if temperature is None else temperature)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "max_new_tokens": max_new_tokens,
        "block_length": block_length,
        "guidance": guidance,
        "end_last": end_last,
        "seed": seed,
        "batch_size": batch_size,
    }
    others = engine.chosen()
    make = partial(_worker, partial(loading.model, model), named, settings)
    with common.progress(quiet=json) as bar:
        job = bar.add_task("answering", total=None)
        own = UnmaskLM(
            (loading if others is None else replace(loading, device="meta")).model(model),
            named,
            **settings,
            store=out,
            identity=[fingerprint(model), *loading.identity(), code_fingerprint()],
            on_answer=lambda count: bar.advance(job, count),
            share=None if others is None else lambda pieces: others(make, list(enumerate(pieces))),
        )
        names = [name.strip() for name in tasks.split(",") if name.strip()]
        asked = {"limit": limit, "shots": shots, "chat": chat, "run_code": run_code}
        rows = run(own, names, data=data, encoding=encoding, **asked)
    report = {
        "model": model,
        "rule": named.name,
        "settings": named.settings,
        "temperature": temperature,
        "seed": seed,
        "block_length": block_length,
        "guidance": guidance,
        "end_last": end_last,
        "chat": chat,
        "batch_size": batch_size,
        "dtype": loading.dtype,
        "tasks": rows,
    }
    if json:
        common.print_json(report)
    else:
        _print(report, str(named))


def _worker(load: Callable[[], LanguageModel], named: NamedRule, settings: dict[str, Any]) -> Callable[[Any], Any]:
    from ..integrations.lm_eval import UnmaskLM

    return UnmaskLM(load(), named, **settings).answer


def _print(report: dict[str, Any], rule: str) -> None:
    drawn = "each task's temperature" if report["temperature"] is None else f"temperature {report['temperature']:g}"
    common.out.print(f"{report['model']}, {rule}, {drawn}, seed {report['seed']}", highlight=False)
    table = common.table("task", "documents", "result", "NFE", "new tokens", "per evaluation", "per second", "seconds")
    for row in report["tasks"]:
        results = [name for name in row if f"{name}_stderr" in row]
        text = ", ".join(f"{name} {row[name]:.3f} ± {row[f'{name}_stderr']:.3f}" for name in results)
        figures = ("nfe_mean", "new_tokens_mean", "tokens_per_evaluation", "tokens_per_second", "seconds")
        shown = ["–" if row.get(name) is None else f"{row[name]:.2f}" for name in figures]
        table.add_row(row["task"], str(row["documents"]), text or "–", *shown)
    common.out.print(table)
    for row in report["tasks"]:
        if row.get("prompts_cut"):
            common.out.print(f"{row['task']}: {row['prompts_cut']} prompts were too long and lost their beginning.")
        if row.get("prompts_with_mask"):
            common.out.print(f"{row['task']}: {row['prompts_with_mask']} prompts held the mask token, as text.")
