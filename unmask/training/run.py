"""A training run from its configuration to the exported checkpoint, resumable after any interruption."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..errors import AdapterError, DataError
from ..files.writing import alone, write_atomically
from ..likelihood.nelbo import causal_likelihood, nelbo
from ..rules.named import named_rule
from ..rules.usual import timed
from ..sampling.sample import sample
from ..schedule import SCHEDULES
from ..tasks._common import stack
from ..tasks.named import named_task, saved_settings
from ..tasks.task import Task
from . import folder
from .config import TrainConfig
from .data import Collator, Course
from .networks import Network, as_denoiser, build_network, save_network, task_ids
from .report import write_report
from .trainer import MaskedTrainer, Stop, Watch, saved_checkpoints, training_arguments

CHECKED = 1000
"""The number of examples of each split that are checked before a run."""


def train(
    config: TrainConfig,
    task: Task | None = None,
    *,
    resume: bool = True,
    stop_after: int | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Path:
    """Trains a network on a task and exports its averaged weights; an interrupted run continues where it stopped.

    The folder `config.out` will hold `run.json` (the configuration), `state/checkpoint-N` (weights, their average and
    the optimiser, from which a run is resumed), `log.jsonl`, `samples.jsonl`, and `checkpoint/`. In the latter,
    `model.safetensors` and `config.json` (which `unmask.load` reads) are written anew at every evaluation and at the
    end, and `README.md` (a model card), `metrics.json` and `curves.png` at the end. A run that was killed and resumed
    ends with the same bits as one that was not (on a CPU, with the same number of threads).

    Args:
        config: The configuration of the run.
        task: The task; default: the one that the configuration names.
        resume: Continue the run in `config.out`; if False, a folder that holds one is refused.
        stop_after: Stop after this step as if interrupted, with the state saved but without a report.
        on_step: Called with the number of each step, for instance to show progress elsewhere.

    Returns:
        The folder of the exported checkpoint (or of the run, if `stop_after` ended it).

    Raises:
        ValueError: If settings do not fit each other or the task, or `config.out` holds another run, or any with
            `resume=False`.
        DataError: If the task's data cannot be read or has an example that cannot be used.
        AdapterError: If a model to start from, or the folder's `run.json`, cannot be read.
        UnmaskError: If training diverges, or a file cannot be written; the last saved state stays intact.
    """
    task = named_task(config.task.name, **config.task.settings) if task is None else task
    network = build_network(config, task)
    for split in ("train", "validation"):
        check_examples(task, split)
    arguments = training_arguments(config, config.out / "state")
    with folder.computing(config.out, config.threads), contextlib.ExitStack() as stack:
        if arguments.should_save:
            stack.enter_context(alone(config.out, "training"))
            _remember(config, task, resume)
        run = _Run(config, task, network)
        course = Course(task.examples("train"), config.steps, config.batch_size, config.seed)
        collator = Collator(task.mask_id, config.batch_size, config.objective, SCHEDULES[config.schedule])
        callbacks: list[TrainerCallback] = [Watch(run.on_step, run.on_log)]
        if on_step is not None:
            callbacks.append(Watch(on_step, lambda _: None))
        if stop_after is not None:
            callbacks.append(Stop(stop_after))
        trainer = run.trainer = MaskedTrainer(
            config, network, course, collator, arguments, callbacks, run.on_evaluation
        )
        trainer.accelerator.wait_for_everyone()
        last = next(iter(saved_checkpoints(config.out / "state")), None)
        began = int(last.name.split("-")[1]) if last else 0
        with run.watched(began, arguments.should_save):
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        if trainer.state.global_step < config.steps:
            return config.out
        if arguments.should_save:
            run.finish()
        trainer.accelerator.wait_for_everyone()
        return config.out / "checkpoint"


def check_examples(task: Task, split: str) -> None:
    """Checks the first examples of a split.

    Args:
        task: The task.
        split: The split, such as `"train"`.

    Raises:
        DataError: If there are no examples, or one has another length than the task's, holds a token outside the
            vocabulary or the mask token, or has no maskable token. The message names the example.
    """
    examples = task.examples(split)
    if len(examples) == 0:
        raise DataError(f"the {split} split of the task {task.name} is empty")
    for index in range(min(len(examples), CHECKED)):
        tokens, maskable = examples[index]
        name = f"example {index} of the {split} split"
        if tokens.shape != (task.length,) or maskable.shape != (task.length,):
            raise DataError(f"{name} has {tokens.numel()} tokens, expected {task.length}")
        if bool(((tokens < 0) | (tokens >= task.vocab_size)).any()):
            raise DataError(f"{name} has tokens outside the vocabulary 0..{task.vocab_size - 1}")
        if bool((tokens == task.mask_id).any()):
            raise DataError(f"{name} holds the mask token, {task.mask_id}")
        if not bool(maskable.any()):
            raise DataError(f"{name} has nothing that may be masked")


@dataclass
class _Run:
    """Shows progress, logs, evaluates and exports during a run; on the main process only."""

    config: TrainConfig
    task: Task
    network: Network
    trainer: MaskedTrainer = field(init=False)

    @contextlib.contextmanager
    def watched(self, step: int, shown: bool) -> Iterator[None]:
        """Opens the progress bar and the logs within a `with` block, if `shown`.

        Args:
            step: The step from which the run continues.
            shown: Whether this is the main process.
        """
        out = self.config.out
        self.note = ""
        with contextlib.ExitStack() as stack:
            if shown:
                self.show = stack.enter_context(folder.progress("steps", self.config.steps))
                self.write_line = stack.enter_context(folder.log(out / "log.jsonl", step))
                self.write_sample = stack.enter_context(folder.log(out / "samples.jsonl", step))
            yield

    def on_step(self, step: int) -> None:
        if self.config.samples.prompts and (step % self.config.samples.every == 0 or step == self.config.steps):
            self.sample(step)
        self.show(step, self.note)

    def on_log(self, line: dict[str, Any]) -> None:
        if "train_runtime" in line:
            return
        kept = {key: round(value, 6) if isinstance(value, float) else value for key, value in line.items()}
        if "loss" in kept:
            self.note = f"loss {kept['loss']:.4f}"
            kept["seconds"] = round(self.trainer.elapsed, 1)
        self.write_line({key: value for key, value in kept.items() if key != "epoch"})

    def averaged(self) -> Network:
        """Returns a copy of the network with the averaged weights, in float32 and on the device of the training."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.trainer.average.weights, strict=False)  # a tied weight has only one name there
        return network.eval()

    def on_evaluation(self, step: int) -> dict[str, float]:
        """Evaluates and exports the current averaged weights, and returns what to log."""
        mean, error = self.evaluate(self.config.evaluation.sequences)
        metrics = {"nelbo": mean, "nelbo_se": error}
        self.export(step, metrics)
        return {**metrics, "seconds": round(self.trainer.elapsed, 1)}

    def evaluate(self, sequences: int) -> tuple[float, float]:
        """Estimates the mean negative log-likelihood of validation sequences, in nats per maskable token.

        It is a NELBO for the masked objective, and exact for each sequence for the causal one.

        Returns:
            The mean and its standard error.
        """
        x, maskable = stack(self.task.examples("validation"), sequences)
        network = self.averaged()
        device = next(network.parameters()).device
        x, maskable = x.to(device), maskable.to(device)
        if self.config.objective == "causal":
            return causal_likelihood(network, x, maskable).mean()
        denoiser, settings = as_denoiser(network, self.task), self.config.evaluation
        schedule = SCHEDULES[self.config.schedule] if denoiser.wants_time else None
        return nelbo(
            denoiser,
            x,
            maskable=maskable,
            strata=settings.strata,
            replicates=settings.replicates,
            seed=0,
            schedule=schedule,
        ).mean()

    def sample(self, step: int) -> None:
        """Completes the first validation prompts and logs the samples."""
        settings = self.config.samples
        prompts = self.task.prompts("validation", settings.prompts)
        denoiser = as_denoiser(self.averaged(), self.task)
        # The prediction of a causal network for a position is right only once all tokens before it are known.
        named = named_rule("left-to-right") if self.config.objective == "causal" else settings.named()
        rule = named.rule
        if denoiser.wants_time:
            rule = timed(rule, SCHEDULES[self.config.schedule])
        x = prompts.tokens.to(next(denoiser.network.parameters()).device)
        result = sample(denoiser, x, rule, seed=settings.seed, temperature=settings.temperature)
        tokens = result.tokens.cpu()
        for row, (prompt, filled) in enumerate(zip(prompts.tokens, tokens, strict=True)):
            shown = {"prompt": self.task.show(prompt), "sample": self.task.show(filled)}
            self.write_sample({"step": step, "rule": str(named), **shown, "nfe": int(result.nfe[row])})

    def export(self, step: int, metrics: dict[str, Any]) -> Path:
        """Writes the averaged weights as a checkpoint, and returns its folder."""
        config, to = self.config, self.config.out / "checkpoint"
        training = {
            "steps": step,
            "recipe": config.recipe(),
            "seconds": round(self.trainer.elapsed, 1),
            "torch": torch.__version__,
            **metrics,
        }
        save_network(to, self.averaged(), config, self.task, training)
        return to

    def finish(self) -> None:
        """Evaluates the finished network, and writes its checkpoint and the report."""
        mean, error = self.evaluate(self.config.evaluation.final)
        metrics = {"nelbo": mean, "nelbo_se": error, "nelbo_sequences": self.config.evaluation.final}
        to = self.export(self.config.steps, metrics)
        write_report(
            to,
            self.config,
            self.task,
            network=self.network,
            seconds=self.trainer.elapsed,
            metrics=metrics,
            history=[json.loads(line) for line in (self.config.out / "log.jsonl").read_text().splitlines()],
        )


def newest_step(out: Path) -> int:
    """Returns the step of the last state that a run has saved in its folder; 0 if there is none."""
    last = next(iter(saved_checkpoints(out / "state")), None)
    return int(last.name.split("-")[1]) if last else 0


def _remember(config: TrainConfig, task: Task, resume: bool) -> None:
    path = config.out / "run.json"
    wanted = {"recipe": config.recipe(), "task": saved_settings(task, task_ids(task))}
    if path.exists():
        if not resume:
            raise ValueError(f"{config.out} already holds a run; resume it, or train into another folder")
        try:
            saved = json.loads(path.read_text())
            old = {**saved["recipe"], **saved["task"]}
            # The file of an older run does not hold the vocabulary.
            known = {name: value for name, value in wanted["task"].items() if name in saved["task"]}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise AdapterError(
                f"{path} does not hold the configuration of a run ({type(error).__name__}: {error})"
            ) from error
        folder.continues(path, old, {**wanted["recipe"], **known}, newest_step(config.out))
    write_atomically(path, (json.dumps(wanted, indent=2) + "\n").encode())
