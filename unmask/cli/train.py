"""`unmask train`: train one of the package's own networks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import common

TARGETS = ("sudoku",)


def train(
    target: Annotated[str, typer.Argument(help=f"What to train: {', '.join(TARGETS)}.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/TARGET.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run.")] = None,
    decay_steps: Annotated[int | None, typer.Option(help="Steps of linear decay at the end.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the constant phase.")] = None,
    puzzles: Annotated[int | None, typer.Option(help="Size of the pool of generated puzzles.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, puzzles and batches.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    compile: Annotated[bool | None, typer.Option(help="Use torch.compile (needs a C++ compiler).")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in the folder, at the exact step.")] = True,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between two saved states.")] = 200,
    json: common.Json = False,
) -> None:
    """Train a network; a run that was killed continues where it stopped. Needs the extra `train`.

    The defaults are the recipe of the shipped checkpoint. Puzzles are generated; no evaluation puzzle is used.
    """
    if target not in TARGETS:
        raise ValueError(f"there is no recipe for {target!r}; choose one of {', '.join(TARGETS)}")
    from ..training.sudoku import SudokuRecipe, train_sudoku

    given: dict[str, Any] = {
        "steps": steps,
        "decay_steps": decay_steps,
        "batch_size": batch_size,
        "lr": lr,
        "puzzles": puzzles,
        "seed": seed,
        "threads": threads,
        "compile": compile,
    }
    recipe = SudokuRecipe(**{key: value for key, value in given.items() if value is not None})
    checkpoint = train_sudoku(out or Path("runs") / target, recipe, resume=resume, save_every=save_every)
    if json:
        common.print_json({"checkpoint": str(checkpoint), "steps": recipe.steps})
    else:
        common.out.print(
            f"The trained network is in {checkpoint}; try: unmask solve --model {checkpoint}", soft_wrap=True
        )
