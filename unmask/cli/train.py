"""`unmask train`: train a network on a task."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..checks import needs_extra
from . import common


def train(
    target: Annotated[str, typer.Argument(help="A configuration file (YAML), or sudoku.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default: runs/NAME.")] = None,
    steps: Annotated[int | None, typer.Option(help="Length of the run.")] = None,
    decay_steps: Annotated[int | None, typer.Option(help="Steps of linear decay at the end.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per step.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the constant phase.")] = None,
    puzzles: Annotated[int | None, typer.Option(help="sudoku: size of the pool of generated puzzles.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data and batches.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    compile: Annotated[bool | None, typer.Option(help="sudoku: use torch.compile (needs a C++ compiler).")] = None,
    resume: Annotated[bool, typer.Option(help="Continue the run in the folder, at the exact step.")] = True,
    save_every: Annotated[int | None, typer.Option(min=1, help="Steps between two saved states.")] = None,
    json: common.Json = False,
) -> None:
    """Train a network; a run that was killed continues from its last saved state. Needs the extra `train`.

    A configuration file names a task and says what to train; options override it. Training is data-parallel under
    `accelerate launch -m unmask train CONFIG.yaml`. The target `sudoku` is the recipe of the shipped checkpoint: its
    puzzles are generated, and no evaluation puzzle is used.
    """
    given: dict[str, Any] = {
        "steps": steps,
        "decay_steps": decay_steps,
        "batch_size": batch_size,
        "lr": lr,
        "seed": seed,
        "threads": threads,
    }
    of_sudoku = {"puzzles": puzzles, "compile": compile}
    taken: list[int] = []
    if target == "sudoku":
        checkpoint, steps = _sudoku(
            out, given | of_sudoku, resume, save_every or 200, lambda step, _: taken.append(step)
        )
    elif Path(target).suffix in (".yaml", ".yml"):
        if set_there := [name for name, value in of_sudoku.items() if value is not None]:
            raise ValueError(f"{', '.join(set_there)}: an option of the target sudoku only")
        checkpoint, steps = _configured(Path(target), out, given | {"save_every": save_every}, resume, taken.append)
    else:
        raise ValueError(f"there is no recipe for {target!r}; give sudoku, or a configuration file NAME.yaml")
    if json:
        common.print_json(
            {"checkpoint": str(checkpoint), "steps": steps, "steps_taken": len(taken), **_metrics(checkpoint)}
        )
        return
    if not taken:
        common.out.print(
            f"This run was finished before: it has taken all of its {steps} steps. To train anew, give another folder"
            " with --out.",
            soft_wrap=True,
        )
    if target == "sudoku":
        hint = f"try: unmask solve --model {checkpoint}"
        common.out.print(f"The trained network is in {checkpoint}; {hint}", soft_wrap=True)
    else:
        common.out.print(f"The trained network and its model card are in {checkpoint}", soft_wrap=True)


def _sudoku(
    out: Path | None, given: dict[str, Any], resume: bool, save_every: int, on_step: Callable[[int, float], None]
) -> tuple[Path, int]:
    from ..training.sudoku import SudokuRecipe, train_sudoku

    recipe = SudokuRecipe(**{key: value for key, value in given.items() if value is not None})
    to = out or Path("runs/sudoku")
    return train_sudoku(to, recipe, resume=resume, save_every=save_every, on_step=on_step), recipe.steps


def _configured(
    path: Path, out: Path | None, given: dict[str, Any], resume: bool, on_step: Callable[[int], None]
) -> tuple[Path, int]:
    with needs_extra("train", "training from a configuration"):
        from ..training.config import read_config

        importlib.import_module("accelerate")  # the library asks for it only when training begins, and names no extra
    config = read_config(path, **given, out=None if out is None else str(out))
    from ..training.run import newest_step
    from ..training.run import train as run

    step = newest_step(config.out)
    if resume and 0 < step < config.steps:
        common.err.print(f"Going on from step {step} of {config.steps}.", highlight=False)
    try:
        return run(config, resume=resume, on_step=on_step), config.steps
    except KeyboardInterrupt:
        common.err.print(
            f"Stopped. The same command goes on from step {newest_step(config.out)}, the last one that was saved"
            f" (--save-every is {config.save_every}).",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(130) from None


def _metrics(checkpoint: Path) -> dict[str, Any]:
    import json

    path = checkpoint / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else {}
