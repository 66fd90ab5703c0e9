"""Training of the Sudoku network, resumable after any interruption.

It has its own training loop instead of the Trainer of `unmask.training.run`, because `unmask train sudoku` must
reproduce the shipped checkpoint bit by bit on an installation without extras. The Trainer needs the extra `train`,
saves another kind of state, and stops at a gradient that is not finite, where this recipe skips a step. What the two
have in common is in `descent` (learning rate, AdamW, average) and `folder` (lock, log, progress, continuing a run).
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.errors import AdapterError
from unmask.files.writing import alone, replacing, write_atomically
from unmask.models.networks.checkpoint import save_checkpoint
from unmask.models.networks.sudoku import SudokuConfig, SudokuNet
from unmask.tasks import sudoku_puzzles
from unmask.tasks.sudoku_puzzles import PuzzlePool, StateMix
from unmask.training import folder
from unmask.training.descent import adamw, move_average, share_of_rate


@dataclass(frozen=True)
class SudokuRecipe:
    """Everything that determines the trained network.

    Attributes:
        steps: Length of the run. It and `decay_steps` may change on resuming, until the decay has begun.
        batch_size: Sequences per step.
        lr: Learning rate of the constant phase.
        warmup_steps: Steps of linear warm-up at the start.
        decay_steps: Steps of linear decay to 1 % of `lr` at the end; default: two fifths of the run.
        seed: Seed of the weights, the puzzles and the batches.
        puzzles: Size of the pool of minimal puzzles.
        mix: The mixture of the kinds of training states.
        network: Sizes of the network.
        window: Number of passes that are differentiated through; each of them has a loss.
        warm_passes: In 60 % of the steps, from 1 to so many passes run before the window, without gradients.
        weight_decay: Weight decay of AdamW, applied to matrices only.
        clip: Largest norm of the gradient, to which greater ones are clipped.
        ema: Decay of the exponential moving average of the weights, which is what is exported.
        dtype: The type of the forward and backward pass; the trained weights themselves are float32.
        threads: CPU threads; results are reproducible bit by bit only with a fixed number.
        compile: Whether `torch.compile` compiles the pass (faster, needs a C++ compiler, rounds differently).

    Raises:
        ValueError: If a setting is out of range.
    """

    steps: int = 20_500
    batch_size: int = 16
    lr: float = 3e-3
    warmup_steps: int = 100
    decay_steps: int | None = None
    seed: int = 20261120
    puzzles: int = 200_000
    mix: StateMix = field(default_factory=StateMix)
    network: SudokuConfig = field(default_factory=SudokuConfig)
    window: int = 8
    warm_passes: int = 16
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    dtype: str = "bfloat16"
    threads: int = 1
    compile: bool = True

    def __post_init__(self) -> None:
        if self.decay_steps is None:
            object.__setattr__(self, "decay_steps", 2 * self.steps // 5)
        for name in ("steps", "batch_size", "puzzles", "window", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "decay_steps", "warm_passes", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if self.decay > self.steps:
            raise ValueError(f"decay_steps ({self.decay_steps}) must not exceed steps ({self.steps})")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be a positive number, got {self.lr}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f'dtype must be "float32" or "bfloat16", got {self.dtype!r}')

    @property
    def decay(self) -> int:
        """The value of `decay_steps`, with its default filled in."""
        assert self.decay_steps is not None
        return self.decay_steps

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step: warm-up, constant, linear decay."""
        return self.lr * share_of_rate(step, self.steps, self.warmup_steps, self.decay)


def train_sudoku(
    out: Path,
    recipe: SudokuRecipe | None = None,
    *,
    resume: bool = True,
    save_every: int = 200,
    log_every: int = 50,
    stop_after: int | None = None,
    on_step: Callable[[int, float], None] | None = None,
) -> Path:
    """Trains a `SudokuNet` and exports its averaged weights; an interrupted run continues where it stopped.

    The loss is the masked-diffusion bound in its time-agnostic form: the cross-entropy of the masked cells, averaged
    over those of each sequence, for every pass of the window. The folder `out` will hold `recipe.json`, `pool.npz` (the
    puzzles), `state.pt` (weights, optimiser, average, step), `log.jsonl`, and at the end `checkpoint/` (which
    `load_checkpoint` reads, with a model card). Every batch is a function of the seed and the step, and the state is
    replaced atomically, so a run that was killed and resumed ends with the same bits as one that was not (with the same
    number of threads).

    Args:
        out: Folder of the run; made if missing.
        recipe: The recipe; default: that of the shipped checkpoint.
        resume: Continue the run in `out`; if False, a folder that holds one is refused.
        save_every: Steps between two saved states.
        log_every: Steps between two lines of the log.
        stop_after: Stop after this step as if interrupted, with the state saved but nothing exported.
        on_step: Called with the step and its loss, for instance to show progress elsewhere.

    Returns:
        The folder of the exported checkpoint (or of the state, if `stop_after` ended the run).

    Raises:
        ValueError: If `out` holds a run of another recipe, or any run with `resume=False`; if another process trains
            there; if `save_every` or `log_every` is below 1; or if the recipe needs a C++ compiler and there is none.
        AdapterError: If the saved state cannot be read.
        UnmaskError: If a file cannot be written, for instance on a full disk; the last saved state stays intact.
        ImportError: If numba is not installed.
    """
    recipe = SudokuRecipe() if recipe is None else recipe
    if save_every < 1 or log_every < 1:
        raise ValueError(f"save_every and log_every must be >= 1, got {save_every} and {log_every}")
    if recipe.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "cl"))):
        raise ValueError("torch.compile needs a C++ compiler, and none was found: install one, or set compile=False")
    with folder.computing(out, recipe.threads), alone(out, "training"):
        _remember(out, recipe, resume)
        run = _Run(recipe, _load_pool(out, recipe))
        run.load(out / "state.pt")
        finished = _loop(run, out, save_every, log_every, stop_after, on_step)
        return export_sudoku(out) if finished else out


def _loop(
    run: _Run,
    out: Path,
    save_every: int,
    log_every: int,
    stop_after: int | None,
    on_step: Callable[[int, float], None] | None,
) -> bool:
    """Trains to the last step and returns True, or to `stop_after` and returns False."""
    steps = run.recipe.steps
    with folder.progress("steps", steps) as show, folder.log(out / "log.jsonl", run.step) as write_line:
        while run.step < steps:
            loss = run.advance()
            show(run.step, f"loss {loss:.4f}")
            last = run.step in (steps, stop_after)
            if last or run.step % log_every == 0:
                write_line(run.report())
            if last or run.step % save_every == 0:
                run.save(out / "state.pt")
            if on_step is not None:
                on_step(run.step, loss)
            if run.step == stop_after:
                return False
    return True


def export_sudoku(out: Path, to: Path | None = None) -> Path:
    """Writes the averaged weights of the run in `out`, finished or not, as a checkpoint with a model card.

    Args:
        out: Folder of a run of `train_sudoku`.
        to: The folder to write to; default: `out / "checkpoint"`.

    Returns:
        The folder of the checkpoint.

    Raises:
        AdapterError: If the recipe or the state in `out` cannot be read.
    """
    to = out / "checkpoint" if to is None else to
    recipe = _recipe_from(_read_recipe(out / "recipe.json"))
    state = _read_state(out / "state.pt")
    net = SudokuNet(recipe.network)
    net.load_state_dict(state["ema"])
    metadata = {
        "task": "sudoku",
        "steps": state["step"],
        "recipe": asdict(recipe),
        "loss_nats_per_masked_cell": round(state["loss"], 4),
        "cpu_minutes": round(state["seconds"] / 60, 1),
        "torch": torch.__version__,
    }
    save_checkpoint(to, net, metadata)
    write_atomically(to / "README.md", _model_card(recipe, metadata).encode())
    return to


class _Run:
    """The state of a run: float32 weights, their copy in the type of the forward pass, optimiser, average, step."""

    def __init__(self, recipe: SudokuRecipe, pool: PuzzlePool) -> None:
        self.recipe = recipe
        self.pool = pool
        self.hard, self.few = pool.hard, pool.few(recipe.mix.few_clues)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.net = SudokuNet(recipe.network)
        self.ema = SudokuNet(recipe.network)
        self.ema.load_state_dict(self.net.state_dict())
        self.work = SudokuNet(recipe.network).to(getattr(torch, recipe.dtype))
        self.refine = torch.compile(self.work.refine, dynamic=False) if recipe.compile else self.work.refine
        self.optimiser = adamw(self.net.parameters(), recipe.lr, recipe.weight_decay)
        self.step = 0
        self.loss = math.nan  # loss at the last pass, averaged over some hundred steps
        self.seconds = 0.0
        self.skipped = 0

    def losses(self, x: Tensor, target: Tensor, warm: int) -> Tensor:
        """Returns the cross-entropy at each pass of the window, in nats, averaged over masked cells, then sequences."""
        masked = (x == 0).float()
        weight = masked / masked.sum(1, keepdim=True) / len(x)
        embedded = self.work.embed(x)
        state = torch.zeros_like(embedded)
        with torch.no_grad():
            for _ in range(warm):
                state = self.refine(state, embedded)
        logits = []
        for _ in range(self.recipe.window):
            state = self.refine(state, embedded)
            logits.append(self.work.read(state).reshape(len(x), 81, 10)[..., 1:])
        stacked = torch.stack(logits)
        labels = (target - 1).expand(len(logits), -1, -1)
        ce = F.cross_entropy(stacked.reshape(-1, 9), labels.reshape(-1), reduction="none")
        return (ce.view(len(logits), len(x), 81) * weight).sum((1, 2))

    def advance(self) -> float:
        """Takes one training step, and returns the loss at the last pass, in nats per masked cell."""
        began = time.process_time()
        recipe = self.recipe
        x, target = sudoku_puzzles._batch(
            self.pool, self.hard, self.few, recipe.seed, self.step, recipe.batch_size, recipe.mix
        )
        rng = np.random.Generator(np.random.PCG64([recipe.seed, self.step]))
        warm = int(rng.integers(1, recipe.warm_passes + 1)) if recipe.warm_passes and rng.random() < 0.6 else 0
        pairs = list(zip(self.net.parameters(), self.work.parameters(), self.ema.parameters(), strict=True))
        with torch.no_grad():
            for p, q, _ in pairs:
                q.copy_(p)
                q.grad = None
        losses = self.losses(torch.from_numpy(x), torch.from_numpy(target), warm)
        losses.mean().backward()
        for p, q, _ in pairs:
            assert q.grad is not None
            p.grad = q.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate(self.step)
        if torch.isfinite(norm):
            self.optimiser.step()
        else:
            self.skipped += 1
        self.step += 1
        for p, _, e in pairs:
            move_average(e, p, recipe.ema, self.step)
        loss = float(losses[-1].detach())
        if math.isfinite(loss):
            self.loss = loss if math.isnan(self.loss) else self.loss + (loss - self.loss) / min(self.step, 500)
        self.seconds += time.process_time() - began
        return loss

    def report(self) -> dict[str, float]:
        """Returns a line of the log."""
        return {
            "step": self.step,
            "loss": round(self.loss, 5),
            "lr": self.recipe.learning_rate(self.step - 1),
            "cpu_seconds": round(self.seconds, 1),
            "skipped": self.skipped,
        }

    def save(self, path: Path) -> None:
        state = {
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "loss": self.loss,
            "seconds": self.seconds,
            "skipped": self.skipped,
        }
        # Through a buffer: torch.save reports a full disk as a RuntimeError of its archive writer, and hides the cause.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(path, buffer.getvalue())

    def load(self, path: Path) -> None:
        if not path.exists():
            return
        state = _read_state(path)
        self.net.load_state_dict(state["net"])
        self.ema.load_state_dict(state["ema"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.loss = state["step"], state["loss"]
        self.seconds, self.skipped = state["seconds"], state["skipped"]


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, weights_only=True)
        return {name: state[name] for name in ("net", "ema", "optimiser", "step", "loss", "seconds", "skipped")}
    except Exception as error:  # torch.load raises whatever its parsers raise
        raise AdapterError(
            f"{path} is not a readable training state ({type(error).__name__}: {error}); "
            "restore it from a copy, or remove it to start the run again"
        ) from error


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text())
        _recipe_from(saved)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise AdapterError(
            f"{path} does not hold the recipe of a Sudoku run ({type(error).__name__}: {error})"
        ) from error
    return saved


def _recipe_from(saved: dict[str, Any]) -> SudokuRecipe:
    return SudokuRecipe(**{**saved, "mix": StateMix(**saved["mix"]), "network": SudokuConfig(**saved["network"])})


def _remember(out: Path, recipe: SudokuRecipe, resume: bool) -> None:
    path = out / "recipe.json"
    wanted = asdict(recipe)
    if path.exists():
        if not resume:
            raise ValueError(f"{out} already holds a run; resume it, or train into another folder")
        step = _read_state(out / "state.pt")["step"] if (out / "state.pt").exists() else 0
        if not folder.continues(path, _read_recipe(path), wanted, step):
            return
    write_atomically(path, (json.dumps(wanted, indent=2) + "\n").encode())


def _load_pool(out: Path, recipe: SudokuRecipe) -> PuzzlePool:
    """Returns the puzzles of the run: reads them from its folder, or makes them (0.4 ms each) and saves them there."""
    path = out / "pool.npz"
    # A missing or damaged file does no harm: the same puzzles are made again from the seed.
    with contextlib.suppress(Exception), np.load(path) as saved:
        if saved["origin"].tolist() == [recipe.seed, recipe.puzzles]:
            return PuzzlePool(saved["solutions"], saved["kinds"])
    parts = []
    with folder.progress("puzzles", recipe.puzzles) as show:
        for start in range(0, recipe.puzzles, 5_000):
            parts.append(sudoku_puzzles.make_pool(recipe.seed, min(5_000, recipe.puzzles - start), start))
            show(start + len(parts[-1].solutions), "")
    pool = PuzzlePool(np.concatenate([p.solutions for p in parts]), np.concatenate([p.kinds for p in parts]))
    with replacing(path) as temporary, temporary.open("wb") as file:
        origin = np.array([recipe.seed, recipe.puzzles])
        np.savez_compressed(file, origin=origin, solutions=pool.solutions, kinds=pool.kinds)
    return pool


def _model_card(recipe: SudokuRecipe, metadata: dict[str, Any]) -> str:
    sizes, mix = recipe.network, recipe.mix
    parameters = sum(p.numel() for p in SudokuNet(sizes).parameters())
    unfinished = "" if metadata["steps"] == recipe.steps else f" (an unfinished run of {recipe.steps:,} steps)"
    return f"""# A masked diffusion model of 9x9 Sudoku

Gives the marginals of the masked cells of any partly filled grid, whatever the number of masks: from an empty grid it
generates, from a puzzle it solves. Tokens: 0 is the mask, 1..9 are digits.

## Network

`unmask.models.networks.sudoku.SudokuNet`, {parameters:,} parameters: one block (channels {sizes.channels}, messages
{sizes.messages}, hidden {sizes.hidden}) applied {sizes.passes} times with shared weights; `passes` may be changed.

What is built in: the *symmetries* of Sudoku. The state holds a vector for every cell and digit; the block sums messages
over the digits of a cell and over the cells of rows, columns, boxes and their three-cell intersections, with the same
weights everywhere. So the network knows which cells share a unit, and treats all digits alike; it is equivariant to
relabelling digits and to all moves of cells that keep the puzzle a puzzle. What is not: that a unit holds each digit
once, or anything else about how to solve. There is no rule check and no search, in the network or around it.

## Training

- Data: {recipe.puzzles:,} minimal puzzles made by `unmask.tasks.sudoku_puzzles.make_pool(seed={recipe.seed})`,
  nothing else. No puzzle of any collection was seen.
- States: {mix.random} % uniformly random masks of n ~ U{{1..81}} cells; {mix.any} % states of any minimal puzzle,
  {mix.few} % of those with at most {mix.few_clues} clues, {mix.hard} % of those that naked and hidden singles do not
  solve. A state of a puzzle is its clues and a random part of its other cells: none, part of what singles reach, all of
  that, or more.
- Loss: cross-entropy of the masked cells averaged over those of each sequence, at each of {recipe.window} consecutive
  passes; in 60 % of the steps 1 to {recipe.warm_passes} passes without gradient come before.
- AdamW, learning rate {recipe.lr:g}, betas (0.9, 0.98), weight decay {recipe.weight_decay:g} on matrices, gradient norm
  clipped to {recipe.clip:g}, {recipe.warmup_steps} warm-up steps, linear decay over the last {recipe.decay:,};
  batches of {recipe.batch_size}; {recipe.dtype} arithmetic on float32 weights; average {recipe.ema:g} exported.
- {metadata["steps"]:,} steps{unfinished}, {metadata["cpu_minutes"]:g} CPU-minutes on {recipe.threads} thread(s),
  seed {recipe.seed}; loss at the last pass {metadata["loss_nats_per_masked_cell"]:.4f} nats per masked cell.

```sh
unmask train sudoku --out runs/sudoku --steps {recipe.steps} --decay-steps {recipe.decay}
```

`config.json` holds the complete recipe under `training`.
"""
