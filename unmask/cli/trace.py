"""`unmask trace`: one generation as a page to step through, an animation or a strip of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..checks import key_values
from ..draws.streams import prompt_streams
from ..files.writing import check_outputs, write_output
from ..models.registry import load
from ..sampling.loop import Sampler
from ..tasks.fit import check_model
from ..tasks.named import named_task
from ..tasks.of_model import embedded_for
from ..tasks.sudoku import SudokuTask
from ..tasks.sudoku_files import parse_cells
from ..tasks.task import Prompts, Task
from ..viewing import COLORS, Layout, Viewable, trace_gif, trace_html, trace_png
from ..viewing.pictures import check_pictures
from . import common
from .groups import NEWEST, USUAL, FromHub, RuleOptions

PAGE = Path("trace.html")
"""Where the page goes if nothing else is asked for."""


def trace(
    task: Annotated[
        str, typer.Option(help="What to complete: sudoku, maze, text, ... or name:key=value,key=value.")
    ] = "sudoku",
    index: Annotated[int | None, typer.Option(min=0, help="Number of the prompt, from 0 (default 0).")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the prompt: train, validation or test (default).")] = None,
    puzzle: Annotated[str | None, typer.Option(help="sudoku: a puzzle of 81 characters, 0 or . where empty.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Embedded model or checkpoint folder; default: the one of the task.")
    ] = None,
    choice: RuleOptions = USUAL,
    temperature: common.Temperature = 0.0,
    seed: common.Seed = 0,
    candidates: Annotated[int, typer.Option(min=0, help="Number of most probable tokens shown per position.")] = 5,
    score: Annotated[bool, typer.Option(help="Judge the result as the task does.")] = True,
    color: Annotated[str, typer.Option(help=f"What to colour by: {', '.join(COLORS)}.")] = "when",
    html: Annotated[Path | None, typer.Option(help=f"Write the page here (default: {PAGE}).")] = None,
    gif: Annotated[Path | None, typer.Option(help="Write an animation here (extra plot).")] = None,
    png: Annotated[Path | None, typer.Option(help="Write a strip of pictures here (extra plot).")] = None,
    hub: FromHub = NEWEST,
    json: common.Json = False,
) -> None:
    """Show how one sequence was filled in, evaluation by evaluation.

    The page opens in any browser. It has a slider over the evaluations, colours by when a position was unmasked, by its
    entropy or by the probability of its token then, and for each position the other tokens it could have become. The
    bound is the sum of ΣH - max H over the evaluations, in nats. The same seed gives the same tokens as unmask solve.
    """
    name, _, inline = task.partition(":")
    model = hub.pinned(model) or embedded_for(name)
    named = choice.named(model, temperature)
    if color not in COLORS:
        raise ValueError(f"unknown color {color!r}; choose one of {', '.join(COLORS)}")
    if html is None and gif is None and png is None and not json:
        html = PAGE
    settings = key_values(inline)
    check_outputs({"--html": html, "--gif": gif, "--png": png}, [settings.get("data")])
    if gif is not None or png is not None:
        check_pictures()
    common.one_thread()
    chosen = named_task(name, **settings)
    title, prompt = _prompt(chosen, index, split, puzzle)
    denoiser = load(model)
    check_model(model, denoiser, chosen)
    if isinstance(chosen, Viewable):
        symbol, layout = chosen.symbol, chosen.layout(prompt.tokens[0])
    else:
        symbol, layout = lambda token: chosen.show(torch.tensor([token])), Layout.text()
    streams = prompt_streams(prompt.tokens.tolist(), seed)
    sampler = Sampler(denoiser, named.rule)
    with common.progress(quiet=json) as bar:
        bar.add_task("tracing", total=None)
        state = sampler.start(prompt.tokens, streams=streams, temperature=temperature)
        result = sampler.run(state, trace=True, candidates=candidates)
        quality = float(chosen.score(prompt, result.tokens)[0]) if score else None
    masks, nfe = int((prompt.tokens == denoiser.mask_id).sum()), int(result.nfe[0])
    caption = f"{named}, temperature {temperature:g}, seed {seed}: {nfe} evaluations for {masks} masks"
    drawn = (result, 0, symbol, layout, title, caption, color)
    if html is not None:
        write_output(html, trace_html(*drawn))
    for path, make in ((gif, trace_gif), (png, trace_png)):
        if path is not None:
            write_output(path, make(*drawn))
    report: dict[str, Any] = {
        "task": task,
        "title": title,
        "model": model,
        "rule": named.name,
        "settings": named.settings,
        "temperature": temperature,
        "seed": seed,
        "masks": masks,
        "nfe": nfe,
        "bound": float(result.bound[0]),
        "quality": quality,
        "quality_is": chosen.quality,
        "files": [str(path) for path in (html, gif, png) if path is not None],
    }
    if json:
        common.print_json({**report, "trace": result.trace_json(0)})
        return
    common.out.print(f"{title}: {caption}", highlight=False, soft_wrap=True)
    judged = "" if quality is None else f"; {chosen.quality}: {quality:g}"
    common.out.print(f"bound {report['bound']:.3g} nats{judged}", highlight=False)
    for file in report["files"]:
        common.out.print(f"wrote {file}", highlight=False, markup=False, soft_wrap=True)


def _prompt(task: Task, index: int | None, split: str | None, puzzle: str | None) -> tuple[str, Prompts]:
    """What the options choose, and its title."""
    if puzzle is None:
        index, split = index or 0, split or "test"
        prompts = task.prompts(split, index + 1)
        if index >= len(prompts):
            raise ValueError(
                f"there is no prompt {index}: the {split} split of {task.name} has {len(prompts)}, counted from 0"
            )
        return f"{task.name.capitalize()}, {split} prompt {index}", prompts[index : index + 1]
    if not isinstance(task, SudokuTask):
        raise ValueError("--puzzle goes with --task sudoku; choose a prompt of another task by --split and --index")
    if index is not None or split is not None:
        raise ValueError("pass either --puzzle, the puzzle itself, or --split and --index, the place of one")
    cells = torch.tensor([parse_cells(puzzle)])
    return "Sudoku", Prompts(cells, cells)  # how it is scored is decided by the clues alone
