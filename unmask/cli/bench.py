"""`unmask bench`: compare samplers in one run, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from . import common

bench = typer.Typer(help="Compare in one run, on this machine; ratios are what to quote.", no_args_is_help=True)


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
