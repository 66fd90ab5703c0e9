"""`unmask solve`: complete a file of Sudoku puzzles and report what it cost."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.markup import escape

from ..evaluation.batching import best_batch
from ..evaluation.runner import Answers, answer, mean_ci95
from ..files.writing import check_outputs, write_output
from ..models.registry import load
from ..rules.named import NamedRule
from ..sampling.loop import Sampler
from ..tasks.fit import check_model
from ..tasks.sudoku import MASK, SudokuTask, as_tensor, cells_correct, demo_puzzles, solved
from ..tasks.sudoku_files import Puzzle, PuzzleFile, read_puzzles
from . import common
from .groups import NEWEST, USUAL, FromHub, RuleOptions

ANSWER_COLUMNS = ("answer", "solved", "nfe", "stream")
"""What `--output` adds to the file's own columns."""


def solve(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="Puzzles: CSV with a column puzzle, perhaps solution; one a line; or grids (.sdk, .ss). - is stdin."
            " Default: the shipped puzzles."
        ),
    ] = None,
    choice: RuleOptions = USUAL,
    temperature: common.Temperature = 0.0,
    seed: common.Seed = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Solve only this many puzzles, from the first.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Puzzles per batch; changes no answer. Default: measured.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Also report one row for each value of this column.")] = None,
    model: Annotated[str, typer.Option(help=common.MODEL)] = "sudoku",
    compile: Annotated[bool, typer.Option(help="Compile the network: a minute first, then quicker.")] = False,
    encoding: common.Encoding = None,
    output: Annotated[Path | None, typer.Option(help="Write the answers here as CSV, all columns kept.")] = None,
    rejected: Annotated[
        Path | None, typer.Option(help="Write the lines that were left out here, to correct and solve them again.")
    ] = None,
    hub: FromHub = NEWEST,
    json: common.Json = False,
) -> None:
    """Solve Sudoku puzzles with a masked diffusion model.

    A puzzle counts as solved if its grid obeys the rules. cells_correct is the share of empty cells that agree with the
    file's solution. NFE counts the model evaluations a puzzle took part in; nfe_ci95 is the half width of the 95 %
    interval of its mean. evaluations_mean counts the states of a puzzle that were evaluated: a speculative rule
    evaluates several at once.
    """
    model = hub.pinned(model)
    named = choice.named(model, temperature)
    check_outputs({"--output": output, "--rejected": rejected}, [file])
    read = PuzzleFile(demo_puzzles()[:limit], []) if file is None else read_puzzles(file, limit, encoding)
    puzzles = read.puzzles
    _say_left_out(read, rejected)
    if not puzzles:
        raise ValueError(f"{file} holds no usable puzzle")
    columns = list(dict.fromkeys(column for puzzle in puzzles for column in puzzle.columns))
    by = _grouping(by, columns)
    clash = sorted(column for column in columns if column.lower() in ANSWER_COLUMNS)
    if output is not None and clash:
        raise ValueError(f"the file has columns named {', '.join(clash)}, which --output adds; rename them")
    common.one_thread()
    denoiser = load(model)
    check_model(model, denoiser, SudokuTask())
    sampler = Sampler(denoiser.compiled() if compile else denoiser, named.rule)
    x = as_tensor(puzzles)
    batch_size = batch_size or best_batch(sampler, x)
    with common.progress(quiet=json) as bar:
        task = bar.add_task("solving, cells", total=int((x == MASK).sum()))
        answers = answer(
            sampler,
            x,
            seed=seed,
            temperature=temperature,
            batch_size=batch_size,
            on_step=lambda state, info: bar.advance(task, len(info.tokens)),
        )
    if output is not None:
        write_output(output, _table(puzzles, columns, answers))
    report: dict[str, Any] = {
        "rule": named.name,
        "settings": named.settings,
        "temperature": temperature,
        "seed": seed,
        "batch_size": batch_size,
        **summary(puzzles, answers, range(len(puzzles))),
        "forward_passes": answers.forward_passes,
        "seconds": answers.seconds,
        "rejected": [{"line": line.line, "reason": line.reason} for line in read.rejected],
    }
    if by is not None:
        report["by"] = _groups(puzzles, answers, by)
    if json:
        common.print_json(report)
    else:
        _print(report, by, named)


def _say_left_out(read: PuzzleFile, rejected: Path | None) -> None:
    """Says which lines were left out and why, and writes them where they can be mended."""
    for line in read.rejected:
        reason = escape(line.reason)
        common.err.print(f"[yellow]line {line.line} left out:[/] {reason}", highlight=False, soft_wrap=True)
    if rejected is not None:
        write_output(rejected, left_out(read))


def _grouping(by: str | None, columns: list[str]) -> str | None:
    """The column that `--by` names, in the spelling of the file."""
    if by is None or by in columns:
        return by
    same = [column for column in columns if column.lower() == by.lower()]
    if not same:
        known = ", ".join(columns) or "none besides puzzle and solution"
        raise ValueError(f"there is no column {by!r} to group by; the file has {known}")
    return same[0]


def _groups(puzzles: list[Puzzle], answers: Answers, by: str) -> list[dict[str, Any]]:
    """Figures over the puzzles of each value of a column."""
    groups: dict[str, list[int]] = {}
    for index, puzzle in enumerate(puzzles):
        groups.setdefault(puzzle.columns.get(by, ""), []).append(index)
    return [{by: value, **summary(puzzles, answers, rows), "value": value} for value, rows in sorted(groups.items())]


def summary(puzzles: list[Puzzle], answers: Answers, rows: Sequence[int]) -> dict[str, Any]:
    """Figures over some of the puzzles."""
    index = torch.tensor(list(rows))
    grids = answers.tokens[index]
    nfe, ci95 = mean_ci95(answers.nfe[index])
    right, total = cells_correct(grids, [puzzles[row] for row in rows])
    return {
        "puzzles": len(index),
        "solved": int(solved(grids).sum()),
        "cells_correct": right / total if total else None,
        "nfe_mean": nfe,
        "nfe_ci95": ci95,
        "evaluations_mean": float(answers.evaluations[index].double().mean()),
    }


def left_out(read: PuzzleFile) -> str:
    """The lines of a file that were left out, each under a comment that says why, in a form that can be read again."""
    parts = [read.header] if read.header else []
    for line in read.rejected:
        parts += [f"# line {line.line}: {line.reason}", line.text]
    return "".join(f"{part}\n" for part in parts)


def _table(puzzles: list[Puzzle], columns: list[str], answers: Answers) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["puzzle", "solution", *columns, *ANSWER_COLUMNS])
    rows = zip(puzzles, answers.tokens.tolist(), solved(answers.tokens).tolist(), answers.nfe.tolist(), strict=True)
    for (puzzle, grid, right, nfe), stream_id in zip(rows, answers.streams, strict=True):
        text = ["".join(map(str, cells)) for cells in (puzzle.cells, puzzle.solution or (), grid)]
        extra = [puzzle.columns.get(column, "") for column in columns]
        writer.writerow([text[0], text[1], *extra, text[2], int(right), nfe, stream_id])
    return stream.getvalue()


def _print(report: dict[str, Any], by: str | None, named: NamedRule) -> None:
    common.out.print(f"{named}, temperature {report['temperature']:g}, seed {report['seed']}", highlight=False)
    if named.says:
        common.out.print(f"[dim]{escape(named.says)}[/]", highlight=False, soft_wrap=True)
    table = common.table(escape(by or ""), "puzzles", "solved", "cells correct", "NFE (95 % interval)")
    for row in [*report.get("by", []), {**report, "value": "all"}]:
        cells = row["cells_correct"]
        table.add_row(
            escape(row["value"]),
            str(row["puzzles"]),
            f"{row['solved']} ({row['solved'] / row['puzzles']:.1%})",
            "–" if cells is None else f"{cells:.2%}",
            f"{row['nfe_mean']:.2f} ± {row['nfe_ci95']:.2f}",
        )
    common.out.print(table)
    common.out.print(
        f"{report['forward_passes']} forward passes of up to {report['batch_size']} puzzles, {report['seconds']:.1f} s",
        highlight=False,
    )
