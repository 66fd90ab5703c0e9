"""`unmask bench`: compare samplers in one run, on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from . import common

bench = typer.Typer(help="Compare speeds in one run on this machine; quote ratios, not times.", no_args_is_help=True)


@bench.callback()
def _group() -> None:
    pass


@bench.command()
def fhs(
    length: Annotated[int, typer.Option(min=2, help="Tokens.")] = 128,
    vocab: Annotated[int, typer.Option(min=64, help="Symbols.")] = 32_768,
    ratio: Annotated[int, typer.Option(min=1, help="Time steps per token of the ancestral samplers.")] = 8,
    json: common.Json = False,
) -> None:
    """Time the first-hitting sampler against ancestral sampling, published and as two draws."""
    from ..bench.fhs import bench as run

    with common.progress(quiet=json) as bar:
        task = bar.add_task("comparing", total=8)
        report = run(length, vocab, ratio, on_case=lambda: bar.advance(task))
    if json:
        common.print_json(report)
        return
    common.out.print(f"{length} tokens of {vocab} symbols, {report['steps']} time steps, one sequence", highlight=False)
    table = common.table("sampler", "seconds", "÷ FHS", "NFE", "uniforms", "steps timed")
    first = report["samplers"][0]["seconds"]
    for row in report["samplers"]:
        timed, of = row["timed_steps"]
        ratio_text = f"{row['seconds'] / first:.1f}"
        table.add_row(
            row["name"], f"{row['seconds']:.3g}", ratio_text, str(row["nfe"]), f"{row['draws']:,}", f"{timed} of {of}"
        )
    common.out.print(table)
    scaling = common.table(
        "symbols", "time steps", "categorical\n÷ FHS", "two draws\n÷ FHS", "categorical\n÷ two draws"
    )
    for row in report["scaling"]:
        ratios = [
            row[f"ratio_{name}"] for name in ("categorical_ancestral", "two_draw_ancestral", "categorical_two_draw")
        ]
        scaling.add_row(f"{row['vocab']:,}", f"{row['steps']:,}", *(f"{value:.1f}" for value in ratios))
    common.out.print(scaling)


@bench.command()
def step(
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls per variant.")] = 9,
    curves: Annotated[bool, typer.Option(help="Also measure how a step scales.")] = True,
    json: common.Json = False,
) -> None:
    """Time a whole step of the EB-Sampler against log_softmax and published steps, idle and beside a busy process."""
    from ..bench.step import CASES
    from ..bench.step import bench as run

    with common.progress(quiet=json) as bar:
        task = bar.add_task("comparing", total=len(CASES) + curves)
        report = run(repeats, curves, on_case=lambda: bar.advance(task))
    if json:
        common.print_json(report)
        return
    columns = ("log_softmax", "log_softmax_busy", "diffusers", "llada", "mdlm", "quarter_masked")
    table = common.table("rows", "symbols", "dtype", *(f"÷ {name}" for name in columns), "extra memory")
    for row in report["cases"]:
        ratios = [row[f"ratio_{name}"] for name in columns] + [row["extra_memory_ratio"]]
        shown = ["–" if value is None else f"{value:.3f}" for value in ratios]
        table.add_row(str(row["rows"]), f"{row['vocab']:,}", row["dtype"], *shown)
    common.out.print(table)
    for name, curve in report.get("scaling", {}).items():
        common.out.print(
            f"seconds grow with {name} to the power {curve['exponent']:.2f} ± {curve['spread']:.2f}", highlight=False
        )


@bench.command()
def draw(
    rows: Annotated[int, typer.Option(min=1, help="Rows to draw from.")] = 16,
    vocab: Annotated[int, typer.Option(min=2, help="Symbols.")] = 126_464,
    json: common.Json = False,
) -> None:
    """Time exact draws against multinomial and Gumbel noise."""
    from ..bench.step import draws

    with _timing(json):
        report = draws(rows, vocab)
    _show(report, json)


@bench.command()
def loop(
    models: Annotated[str, typer.Option(help="Sizes of random models, with commas: 10M, 100M, 1B.")] = "10M,100M",
    batch: Annotated[int, typer.Option(min=1, help="Sequences.")] = 1,
    length: Annotated[int, typer.Option(min=2, help="Tokens, half of them masked.")] = 64,
    vocab: Annotated[int, typer.Option(min=2, help="Symbols.")] = 50_368,
    json: common.Json = False,
) -> None:
    """Measure the time outside the denoiser, with random models."""
    from ..bench.loop import bench as run

    with _timing(json):
        report = run(tuple(models.split(",")), batch, length, vocab)
    _show(report["models"], json, report)


@bench.command()
def memory(json: common.Json = False) -> None:
    """Measure the memory that a step adds to the logits, as a share of them."""
    from ..bench.step import memory as run

    with _timing(json):
        report = run()
    _show(report["cases"], json, report)


@contextlib.contextmanager
def _timing(json: bool) -> Iterator[None]:
    """Reports from time to time that something is being timed."""
    with common.progress(quiet=json) as bar:
        bar.add_task("timing", total=None)
        yield


def _show(rows: dict[str, Any] | list[dict[str, Any]], json: bool, report: dict[str, Any] | None = None) -> None:
    """Prints rows of one kind as a table, or the report they are from as JSON."""
    rows = [rows] if isinstance(rows, dict) else rows
    if json:
        common.print_json(report or rows[0])
        return
    table = common.table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    common.out.print(table)


@bench.command()
def batch(
    puzzles: Annotated[int, typer.Option(min=1, help="Sudokus.")] = 1000,
    slots: Annotated[int, typer.Option(min=1, help="Sequences worked on at once.")] = 64,
    json: common.Json = False,
) -> None:
    """Time Sudokus in a batch and streamed through refilled slots, against the bare network; EB against Top-1."""
    from ..bench.batch import bench as run

    common.one_thread()
    with _timing(json):
        report = run(puzzles, slots)
    _show({name: value for name, value in report.items() if name != "seconds_network"}, json, report)
