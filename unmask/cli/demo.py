"""`unmask demo`: watch a real Sudoku being solved, then compare two samplers on the shipped puzzles."""

from __future__ import annotations

import time
from typing import Annotated, Any

import torch
import typer
from rich.live import Live
from rich.text import Text

from ..draws.streams import derive
from ..evaluation.runner import Answers, answer, mean_ci95
from ..models.registry import load
from ..rules.named import NamedRule, named_rule
from ..rules.usual import GAMMA
from ..sampling.loop import Sampler
from ..sampling.result import StepInfo
from ..sampling.state import State
from ..tasks.sudoku import MASK, as_tensor, demo_puzzles, solved
from ..tasks.sudoku_files import Puzzle
from . import common


def demo(
    gamma: Annotated[float, typer.Option(help="EB-Sampler's budget, in nats per evaluation.")] = GAMMA,
    limit: Annotated[int, typer.Option(min=1, help="Compare on this many puzzles of each grade; 40 are shipped.")] = 8,
    all: Annotated[bool, typer.Option("--all", help="Compare on all the puzzles that are shipped.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Puzzles per batch; changes no answer.")] = 64,
    temperature: common.Temperature = 0.0,
    seed: common.Seed = 0,
    pause: Annotated[float, typer.Option(min=0, help="Seconds between the evaluations shown.")] = 0.5,
    json: common.Json = False,
) -> None:
    """Solve real Sudoku puzzles live, then compare one-at-a-time sampling with EB-Sampler.

    Both use the same small masked diffusion model, at argmax unless told otherwise. A puzzle counts as solved if its
    grid obeys the rules. NFE is the number of model evaluations a puzzle took part in. One core takes half a minute,
    with --all a minute and a half.
    """
    common.one_thread()
    denoiser = load("sudoku")
    every, puzzles = demo_puzzles(), []
    for grade in dict.fromkeys(puzzle.columns["grade"] for puzzle in every):
        puzzles += [puzzle for puzzle in every if puzzle.columns["grade"] == grade][: None if all else limit]
    rules = [named_rule("top1-entropy"), named_rule("entropy-bound", gamma=gamma)]
    if not json:
        _watch(Sampler(denoiser, rules[1].rule), puzzles, gamma, temperature, seed, pause)
    answers: list[Answers] = []
    with common.progress(quiet=json) as bar:
        for named in rules:
            task = bar.add_task(f"{named}, cells", total=sum(puzzle.cells.count(MASK) for puzzle in puzzles))
            answers.append(
                answer(
                    Sampler(denoiser, named.rule),
                    as_tensor(puzzles),
                    seed=seed,
                    temperature=temperature,
                    batch_size=batch_size,
                    on_step=lambda state, info, task=task: bar.advance(task, len(info.tokens)),
                )
            )
    report = {"temperature": temperature, "seed": seed, **compare(puzzles, rules, answers)}
    if json:
        common.print_json(report)
    else:
        _print(report, gamma)


def compare(puzzles: list[Puzzle], rules: list[NamedRule], answers: list[Answers]) -> dict[str, Any]:
    """Figures of the first rule and the second, per grade and over all."""
    grades = [puzzle.columns["grade"] for puzzle in puzzles]
    rows = []
    for grade in [*dict.fromkeys(grades), "all"]:
        index = torch.tensor([i for i, value in enumerate(grades) if grade in (value, "all")])
        row: dict[str, Any] = {"grade": grade, "puzzles": len(index), "samplers": []}
        for named, run in zip(rules, answers, strict=True):
            nfe, ci95 = mean_ci95(run.nfe[index])
            right = int(solved(run.tokens[index]).sum())
            row["samplers"].append({"rule": str(named), "solved": right, "nfe_mean": nfe, "nfe_ci95": ci95})
        row["speed_up"] = row["samplers"][0]["nfe_mean"] / row["samplers"][1]["nfe_mean"]
        rows.append(row)
    totals = [
        {"rule": str(named), "forward_passes": run.forward_passes, "seconds": run.seconds}
        for named, run in zip(rules, answers, strict=True)
    ]
    return {"rows": rows, "totals": totals}


def _watch(sampler: Sampler, puzzles: list[Puzzle], gamma: float, temperature: float, seed: int, pause: float) -> None:
    """Shows one puzzle being filled in, evaluation by evaluation."""
    hard = next((puzzle for puzzle in puzzles if puzzle.columns["grade"] == "hard"), puzzles[-1])
    empty = hard.cells.count(MASK)
    common.out.print(
        f"A real puzzle with {81 - empty} clues. One at a time, its {empty} empty cells take {empty} model evaluations."
        f"\nEB-Sampler fills in, at each evaluation, every cell it can within γ = {gamma:g} nats:",
        highlight=False,
    )
    state = sampler.start([hard.cells], streams=[derive(seed, hard.cells, 0)], temperature=temperature)
    live = common.out.is_terminal
    with Live(_grid(state, None, hard), console=common.out, auto_refresh=False) as screen:
        while not bool(state.finished.all()):
            state, info = sampler.step(state)
            screen.update(_grid(state, info, hard), refresh=True)
            if live:
                time.sleep(pause)
    if not live:
        common.out.print()
    verdict = "solved" if bool(solved(state.x).all()) else "not solved"
    common.out.print(f"{verdict} in {int(state.nfe[0])} evaluations instead of {empty}.\n", highlight=False)


def _grid(state: State, info: StepInfo | None, puzzle: Puzzle) -> Text:
    """Clues plain, answers green, those of the last evaluation bold yellow."""
    fresh = info.chosen[0].tolist() if info is not None and len(info.chosen) else [False] * 81
    text = Text()
    for cell, token in enumerate(state.x[0].tolist()):
        row, column = divmod(cell, 9)
        style = "bold yellow" if fresh[cell] else "dim" if puzzle.cells[cell] else "green"
        text.append("· " if token == MASK else f"{token} ", style="dim" if token == MASK else style)
        if column in (2, 5):
            text.append("│ ", style="dim")
        if column == 8:
            text.append("\n")
            if row in (2, 5):
                text.append("──────┼───────┼──────\n", style="dim")
    text.append(f"evaluation {int(state.nfe[0])}: {int(state.pending.sum())} cells left")
    return text


def _print(report: dict[str, Any], gamma: float) -> None:
    where = "argmax" if report["temperature"] == 0 else f"temperature {report['temperature']:g}"
    common.out.print(
        f"Real puzzles at {where}: one cell at a time (Top-1) against EB-Sampler, γ = {gamma:g}", highlight=False
    )
    table = common.table("grade", "puzzles", "solved\nTop-1", "solved\nEB", "NFE\nTop-1", "NFE\nEB", "speed-up\n(NFE)")
    for row in report["rows"]:
        one, bound = row["samplers"]
        if row["grade"] == "all":
            table.add_section()
        table.add_row(
            row["grade"],
            str(row["puzzles"]),
            f"{one['solved'] / row['puzzles']:.1%}",
            f"{bound['solved'] / row['puzzles']:.1%}",
            f"{one['nfe_mean']:.1f}",
            f"{bound['nfe_mean']:.1f} ± {bound['nfe_ci95']:.1f}",
            f"{row['speed_up']:.1f} ×",
        )
    seconds = [total["seconds"] for total in report["totals"]]
    table.add_section()
    table.add_row("seconds", "", "", "", f"{seconds[0]:.1f}", f"{seconds[1]:.1f}", f"{seconds[0] / seconds[1]:.1f} ×")
    common.out.print(table)
    common.out.print("NFE: model evaluations a puzzle took part in, ± 95 % interval of the mean.", highlight=False)
