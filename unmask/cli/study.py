"""What `compare --task` and `tune` share: a model, a task, prompts, and rules to run on them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ..checks import key_values
from ..denoiser import Denoiser
from ..evaluation import frontier
from ..evaluation.batching import best_batch
from ..evaluation.study import Measure, Part, Share, Study, at_equal_entropy, check_fit, code_fingerprint, fingerprint
from ..files.writing import check_outputs, write_output
from ..rules.named import brief, named_rule
from ..rules.usual import timed
from ..sampling.loop import Sampler
from ..schedule import Linear
from ..tasks.task import Task
from . import common
from .engines import HERE, EngineOptions

TaskOption = Annotated[
    str | None, typer.Option("--task", help="Compare on a task: sudoku, maze, text, ... or name:key=value,key=value.")
]
Model = Annotated[str | None, typer.Option(help=f"{common.MODEL} Default: the task's own.")]
Data = Annotated[Path | None, typer.Option(help="The task's data, instead of what ships with the package.")]
Split = Annotated[str, typer.Option(help="validation (to choose settings) or test (to report results).")]
Limit = Annotated[int, typer.Option(min=1, help="Number of prompts.")]
Seeds = Annotated[int, typer.Option(min=1, help="Answers per prompt, each from its own seed.")]
Temperatures = Annotated[
    str, typer.Option(help="Temperature of the draw; several, comma-separated, also compare at equal entropy.")
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="Prompts per batch; changes no answer. Default: measured, or 64 with --out."),
]
Judge = Annotated[
    str | None,
    typer.Option(help="text: causal language model that judges samples: a folder, or the shipped one, judge."),
]
Device = Annotated[str, typer.Option(help="Where the model computes: cpu, cuda, mps, ...")]
Store = Annotated[Path | None, typer.Option(help="Keep every batch in this file; an interrupted run resumes from it.")]


@dataclass(frozen=True)
class Chosen:
    """The options of a study."""

    task: str | None
    model: str | None
    data: Path | None
    split: str
    limit: int
    seeds: int
    temperature: str
    batch_size: int | None
    judge: str | None
    out: Path | None
    device: str = "cpu"
    prompts: Path | None = None
    encoding: str | None = None
    engine: EngineOptions = HERE

    @property
    def temperatures(self) -> list[float]:
        """The temperatures, as numbers."""
        try:
            return [float(part) for part in self.temperature.split(",")]
        except ValueError:
            raise ValueError(f"--temperature takes numbers separated by commas, got {self.temperature!r}") from None

    @property
    def own(self) -> str:
        """The model, or the embedded one of the task."""
        from ..tasks.of_model import embedded_for

        return self.model or embedded_for((self.task or "").partition(":")[0])

    @property
    def inputs(self) -> list[str | Path | None]:
        """Returns the files that are read."""
        return [self.data, *(key_values((self.task or "").partition(":")[2]).get(name) for name in _FILES)]


_FILES = ("data", "test_data")
"""Settings of tasks that name files."""


def shared_study(chosen: Chosen) -> tuple[Study, Share | None]:
    """Loads model, task and prompts, and with an engine says who answers: workers that load them, too."""
    engine = chosen.engine.chosen()
    if engine is None:
        return study_of(chosen), None
    # How long a batch takes here says nothing about the workers; the model is needed for its vocabulary only.
    chosen = replace(chosen, batch_size=chosen.batch_size or 64)
    study = study_of(chosen, "meta")
    make = partial(_worker, replace(chosen, out=None))
    return study, lambda parts: engine(make, list(enumerate(parts)))


def _worker(chosen: Chosen) -> Callable[[Part], dict[str, Any]]:
    return study_of(chosen).answer


def study_of(chosen: Chosen, device: str | None = None) -> Study:
    """Loads model, task and prompts; the model alone may have another device: `meta` is for one without weights."""
    from ..evaluation.measures import measure_for
    from ..models.registry import load
    from ..tasks.fit import check_model
    from ..tasks.named import TASKS, named_task
    from ..tasks.text import TextTask

    if (chosen.task is None) == (chosen.prompts is None):
        raise ValueError("say on what: either --task, or --prompts FOLDER with --model")
    if chosen.prompts is not None:
        return _prompts_study(chosen, chosen.prompts, device or chosen.device)
    assert chosen.task is not None
    common.one_thread()
    name, _, inline = chosen.task.partition(":")
    settings = key_values(inline)
    if chosen.data is not None:
        settings["data"] = str(chosen.data)
    if chosen.encoding is not None:
        settings["encoding"] = chosen.encoding
    if name in TASKS and "device" in TASKS[name].settings():
        settings.setdefault("device", chosen.device)
    model = chosen.own
    denoiser = load(model, device=common.device_named(device or chosen.device))
    task = named_task(name, **settings)
    if chosen.judge is not None and not isinstance(task, TextTask):
        raise ValueError(f"--judge goes with the task text, not with {chosen.task}")
    check_model(model, denoiser, task)
    identity = {
        "model": fingerprint(model),
        "task": [name, settings],
        "code": code_fingerprint(),
        "judge": chosen.judge and fingerprint(chosen.judge),
    }
    return _study(chosen, denoiser, task, identity, measure_for(task, denoiser, chosen.judge))


def _study(
    chosen: Chosen, denoiser: Denoiser, task: Task, identity: dict[str, Any], measure: Measure | None = None
) -> Study:
    prompts = task.prompts(chosen.split, chosen.limit)
    batch_size = chosen.batch_size
    if batch_size is None:
        check_fit(denoiser, task)
        # An interrupted run is found again by its batches: they must not depend on how busy the machine was.
        one_at_a_time = Sampler(denoiser, timed(named_rule("top1-entropy").rule, Linear()))
        batch_size = best_batch(one_at_a_time, prompts.tokens) if chosen.out is None else 64
    return Study(
        denoiser,
        task,
        prompts,
        seeds=range(chosen.seeds),
        batch_size=batch_size,
        measure=measure,
        store=chosen.out,
        identity=identity,
    )


def _prompts_study(chosen: Chosen, folder: Path, device: str) -> Study:
    """The study of a folder of prompts."""
    from ..models.registry import load
    from ..tasks.of_model import task_of
    from ..tasks.prompt_folder import PromptFolder
    from ..tasks.text import TextTask

    if chosen.model is None:
        raise ValueError("--prompts needs --model: the name of an embedded text model, or a folder")
    common.one_thread()
    text = task_of(chosen.model)
    if not isinstance(text, TextTask):
        raise ValueError(f"--prompts takes texts, and the model {chosen.model} is of {text.name}")
    denoiser = load(chosen.model, device=common.device_named(device))
    task = PromptFolder(folder, denoiser, text, chosen.encoding)
    identity = {"model": fingerprint(chosen.model), "task": "prompts", "code": code_fingerprint()}
    return _study(chosen, denoiser, task, identity)


def compare(chosen: Chosen, rules: str, plot: Path | None, csv_file: Path | None, json: bool) -> None:
    """Runs every rule, and prints, writes and draws the rows."""
    check_outputs({"--plot": plot, "--csv": csv_file, "--out": chosen.out}, chosen.inputs, made=("--out",))
    temperatures = chosen.temperatures
    study, share = shared_study(chosen)
    masks = int((study.prompts.tokens == study.task.mask_id).sum(-1).max())
    own = chosen.own
    texts = frontier.split_rules(rules)
    named = {t: [one for text in texts for one in frontier.sweep(text, masks, own, t)] for t in temperatures}
    rows: list[dict[str, Any]] = []
    with common.progress(quiet=json) as bar:
        job = bar.add_task("comparing", total=sum(map(len, named.values())) * study.batches())
        on_batch = partial(bar.advance, job)
        if share is not None:
            pairs = [(one, temperature) for temperature in temperatures for one in named[temperature]]
            study.prepare(pairs, share, on_batch)
            on_batch = None
        for temperature in temperatures:
            first = None
            for one in named[temperature]:
                outcome = study.run(one, temperature, on_batch)
                first = first or outcome
                difference, ci95 = outcome.difference(first)
                row = {**outcome.row(one, temperature), "difference": difference, "difference_ci95": ci95}
                rows.append({"quality_is": study.task.quality, **row})
    if "entropy" in rows[0] and len(temperatures) > 1:
        name = "judge" if "judge" in rows[0] else "nelbo"
        at_equal_entropy(rows, rows[:: len(rows) // len(temperatures)], name)
    if csv_file is not None:
        _write_csv(csv_file, rows)
    if plot is not None:
        frontier.plot_study(rows, plot, f"{study.task.name}: {study.task.quality}")
    if json:
        common.print_json(rows)
        return
    _print(study, chosen, rows)


def _print(study: Study, chosen: Chosen, rows: list[dict[str, Any]]) -> None:
    common.out.print(
        f"{study.task.name}, {chosen.split}: {len(study.prompts)} prompts, {chosen.seeds} seed(s); quality is the"
        f" {study.task.quality}",
        highlight=False,
    )
    extra = [name for name in ("nelbo", "judge", "entropy", "distinct_n", "log_likelihood") if name in rows[0]]
    show(rows, extra)


def show(rows: list[dict[str, Any]], extra: list[str]) -> None:
    """Prints rows as a table, with further figures if the terminal is wide enough for them."""
    shown = _table(rows, extra)
    if extra and not common.fits(shown):
        common.out.print(f"wider than the terminal, so only in --json and --csv: {', '.join(extra)}", highlight=False)
        shown = _table(rows, [])
    common.out.print(shown)


def _table(rows: list[dict[str, Any]], extra: list[str]) -> Table:
    """The rows with further figures."""
    several = len({row["temperature"] for row in rows}) > 1
    table = common.table("rule", *(["T"] if several else []), "quality", "difference", "NFE", "seconds", *extra)
    for row in rows:
        table.add_row(
            brief(row["rule"], row["settings"]),
            *([f"{row['temperature']:g}"] if several else []),
            f"{row['quality']:.3f} ± {row['quality_ci95']:.3f}",
            f"{row['difference']:+.3f} ± {row['difference_ci95']:.3f}",
            f"{row['nfe_mean']:.2f}",
            f"{row['seconds']:.1f}",
            *(f"{row[name]:.3f}" for name in extra),
        )
    return table


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    flat = [{**row, "settings": ",".join(f"{k}={v}" for k, v in row["settings"].items())} for row in rows]
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, fieldnames=list(flat[0]))
    writer.writeheader()
    writer.writerows(flat)
    write_output(path, stream.getvalue())
