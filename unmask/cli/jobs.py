"""Prompts answered into a folder of shards: what `generate` and `infill` do with `--output`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from ..evaluation.study import code_fingerprint, fingerprint
from ..fleet.answering import Answering, digest, fill
from ..fleet.engine import here
from ..fleet.formats import FORMATS
from ..fleet.shards import Shards, usual_rows
from ..language import Completion, LanguageModel
from ..rules.named import NamedRule
from . import common
from .engines import HERE, EngineOptions
from .loading import Loading


@dataclass(frozen=True)
class Output:
    """Where the answers go, if not to the screen."""

    output: Annotated[
        Path | None,
        typer.Option(help="Write the answers into this folder, in shards; an interrupted run goes on from them."),
    ] = None
    format: Annotated[str, typer.Option(help=f"With --output: {', '.join(FORMATS)}.")] = "jsonl"
    shard_rows: Annotated[
        int | None, typer.Option(min=1, help="With --output: rows of a shard; default: whole batches, at most 256.")
    ] = None


SCREEN = Output()
"""Answers go to the screen."""


@dataclass(frozen=True)
class Job:
    """Prompts, how to answer them, and where the answers go."""

    kind: Any
    model: str
    loading: Loading
    named: NamedRule
    settings: dict[str, Any]
    seed: int
    batch_size: int
    output: Output
    engine: EngineOptions

    def answer(self, prompts: Sequence[Any], json: bool) -> None:
        """Answers the prompts to the screen, or into a folder."""
        if self.output.output is not None:
            self._into(self.output.output, prompts, json)
            return
        self._check_screen()
        network = self.loading.model(self.model)
        ask = network.generate if self.kind == "generate" else network.infill
        with common.progress(quiet=json) as bar:
            task = bar.add_task("evaluations", total=None)
            completions = ask(
                prompts,
                **self._filled(network),
                seed=self.seed,
                batch_size=self.batch_size,
                on_step=lambda state, info: bar.advance(task),
            )
        _show(completions, self.named, json)

    def _filled(self, model: LanguageModel) -> dict[str, Any]:
        """The settings, with the length of answers that is usual for a model where none was given."""
        if self.kind == "infill" or self.settings["max_new_tokens"] is not None:
            return self.settings
        return {**self.settings, "max_new_tokens": model.usual_new_tokens}

    def _check_screen(self) -> None:
        """Raises `ValueError` if options are given that go with a folder for the answers."""
        if self.engine != HERE:
            raise ValueError("--engine goes with --output FOLDER, where the workers' answers are kept")
        if self.output != SCREEN:
            raise ValueError(f"--{'shard-rows' if self.output.shard_rows else 'format'} goes with --output FOLDER")

    def _into(self, out: Path, prompts: Sequence[Any], json: bool) -> None:
        """Answers the prompts into a folder, and prints what was done."""
        began = time.perf_counter()
        engine = self.engine.chosen()
        # With other workers, this process needs to know the tokenizer and the lengths, not the weights.
        model = (self.loading if engine is None else replace(self.loading, device="meta")).model(self.model)
        answering = self._answering(model)
        streams = answering.streams(model, prompts, self.seed)
        size = self.output.shard_rows or usual_rows(len(prompts), self.batch_size)
        shards = Shards(out, len(prompts), size, self.output.format, self._identity(answering, prompts))
        with shards.open() as waiting, common.progress(quiet=json) as bar:
            rows = sum(len(shards.range(number)) for number in waiting)
            job = bar.add_task("rows", total=len(prompts), completed=len(prompts) - rows)
            make = answering.worker if engine is not None else partial(answering.answers, model)
            totals = fill(
                shards, waiting, prompts, streams, make, engine or here, lambda count: bar.advance(job, count)
            )
        report = {
            "output": str(out),
            "rows": len(prompts),
            "shards": len(shards),
            "rows_before": len(prompts) - totals.rows,
            "nfe_mean": totals.nfe / totals.rows if totals.rows else None,
            "new_tokens": totals.new_tokens,
            "seconds": time.perf_counter() - began,
        }
        _tell(report, json)

    def _answering(self, model: LanguageModel) -> Answering:
        load, weights = partial(self.loading.model, self.model), fingerprint(self.model)
        return Answering(load, self.model, weights, self.kind, self._filled(model), self.batch_size)

    def _identity(self, answering: Answering, prompts: Sequence[Any]) -> dict[str, Any]:
        settings = {name: value for name, value in answering.settings.items() if name != "rule"}
        return {
            "command": self.kind,
            "model": self.model,
            "weights": answering.weights,
            "loading": self.loading.identity(),
            "rule": str(self.named),
            **settings,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "prompts": digest(prompts),
            "code": code_fingerprint(),
        }


def _tell(report: dict[str, Any], json: bool) -> None:
    if json:
        common.print_json(report)
        return
    answered = report["rows"] - report["rows_before"]
    mean = "" if report["nfe_mean"] is None else f", {report['nfe_mean']:.2f} evaluations each"
    before = f" ({report['rows_before']} were there)" if report["rows_before"] else ""
    common.out.print(
        f"{report['output']}: {report['rows']} rows in {report['shards']} shards; answered {answered}{before}{mean}, in"
        f" {report['seconds']:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


def _show(completions: list[Completion], named: NamedRule, json: bool) -> None:
    if json:
        common.print_json([{**one.as_json(), **named.as_json()} for one in completions])
        return
    for one in completions:
        common.out.print(Text(one.text))
        common.out.print(f"[dim]{common.cost(one)}[/]", highlight=False)
    if named.says:
        common.out.print(f"[dim]{escape(named.says)}[/]", highlight=False, soft_wrap=True)
