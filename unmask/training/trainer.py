"""A Hugging Face Trainer with the loss of masked diffusion, whose runs can be resumed exactly."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..draws.streams import derive
from ..errors import UnmaskError
from ..files.writing import flush, write_atomically
from .config import TrainConfig
from .data import Course, Item
from .descent import adamw, move_average

WEIGHTS, AVERAGE, COMPLETE = "model.safetensors", "average.safetensors", "complete.json"


class MeanOverSequences(nn.Module):
    """The loss of a batch: `(1/n) Σ -log p_i(x_i)` over the `n` requested positions, averaged over sequences.

    If `n ~ U{1..L}` masks are at random positions, its expectation is the NELBO per token, in nats.

    The network computes in `dtype`, on copies of its weights. The weights themselves, their gradients, and the state of
    the optimiser stay in float32.

    Args:
        network: A module with `forward(x, where, time) -> logits[rows, vocab]`.
        dtype: The type of forward and backward pass.
    """

    accepts_loss_kwargs = False  # the Trainer must not rescale a mean over sequences by a number of tokens

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(
        self,
        x: Int[Tensor, "batch length"],
        where: Bool[Tensor, "batch length"],
        answers: Int[Tensor, "batch length"],
        time: Float[Tensor, " batch"],
    ) -> dict[str, Tensor]:
        """Returns the loss, in nats, as `{"loss": ...}`."""
        if self.dtype == torch.float32:
            logits = self.network(x, where, time)
        else:
            weights = {name: weight.to(self.dtype) for name, weight in self.network.named_parameters()}
            logits = functional_call(self.network, weights, (x, where, time))
        nats = F.cross_entropy(logits.float(), answers[where], reduction="none")
        count = where.sum(1, keepdim=True)
        return {"loss": (nats / count.expand_as(where)[where]).sum() / len(x)}


class Average(TrainerCallback):
    """An exponential moving average of the weights (see `unmask.training.descent.move_average`).

    Args:
        network: The network that is trained.
        decay: The decay of the average.

    Attributes:
        weights: The averages, by name of the parameter.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network, self.decay = network, decay
        self.weights = {name: weight.detach().clone() for name, weight in network.named_parameters()}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Updates the averages with the weights after a step."""
        for name, weight in self.network.named_parameters():
            average = self.weights[name] = self.weights[name].to(weight.device)
            move_average(average, weight, self.decay, state.global_step)


class MaskedTrainer(Trainer):
    """A Trainer whose runs end with the same bits whether or not they were killed and resumed.

    What the stock Trainer draws from global generators (order, masks, dropout) is here a function of the seed and of
    the position in the run. A checkpoint also holds the averaged weights; it is written under a temporary name, and
    renamed when it is complete and on the disk.

    Args:
        config: The configuration of the run.
        network: The network.
        course: The examples of the run.
        collator: The function that makes a batch of examples and masks it.
        arguments: The Trainer's settings, from `training_arguments`.
        callbacks: Called after the averages of the weights were updated.
        evaluation: Called every `config.evaluation.every` steps, on the main process; the numbers that it returns are
            logged.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: nn.Module,
        course: Course,
        collator: Callable[[list[Item]], Any],
        arguments: TrainingArguments,
        callbacks: list[TrainerCallback],
        evaluation: Callable[[int], dict[str, float]],
    ) -> None:
        self.config, self.average, self.evaluation = config, Average(network, config.ema), evaluation
        self.folder = Path(str(arguments.output_dir))
        self.seconds, self._began = 0.0, time.monotonic()
        self._calls = (-1, 0)
        super().__init__(
            model=MeanOverSequences(network, getattr(torch, config.dtype)),
            args=arguments,
            train_dataset=course,
            eval_dataset=course,  # never used, but without it the Trainer does not call evaluate
            data_collator=collator,
            callbacks=[self.average, *callbacks],
        )
        self.pop_callback(PrinterCallback)

    @property
    def elapsed(self) -> float:
        """Duration of the whole run in seconds, including the time before it was resumed."""
        return self.seconds + time.monotonic() - self._began

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Makes the AdamW optimiser of the configuration."""
        if self.optimizer is None:
            chosen = self.model if model is None else model
            assert chosen is not None
            self.optimizer = adamw(chosen.parameters(), self.config.lr, self.config.weight_decay)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Makes the scheduler of the configuration's learning rate."""
        if self.lr_scheduler is None:
            chosen = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(chosen, self.config.learning_rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Runs a forward and a backward pass; dropout, if the network has it, is seeded by the position in the run.

        Raises:
            UnmaskError: If the loss is not finite.
        """
        step = self.state.global_step
        call = self._calls[1] + 1 if self._calls[0] == step else 0
        self._calls = (step, call)
        torch.manual_seed(derive(self.config.seed, "dropout", step, call, self.args.process_index) >> 1)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            raise UnmaskError(
                f"the loss is {float(loss)} at step {step}: training diverged; lower lr (now {self.config.lr:g}), "
                "lengthen warmup_steps, or use dtype float32"
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Calls the evaluation, and logs and returns its numbers."""
        # The Trainer evaluates twice after the last step, and the finished network is evaluated elsewhere.
        if self.state.global_step == self.config.steps or not self.is_world_process_zero():
            return {}
        metrics = self.evaluation(self.state.global_step)
        self.log(metrics)
        return metrics

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / ".partial")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        partial = self.folder / ".partial"
        if self.args.should_save:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            written = partial / f"checkpoint-{self.state.global_step}"
            save_file({name: weight.cpu() for name, weight in self.average.weights.items()}, written / AVERAGE)
            complete(written, {"step": self.state.global_step, "seconds": self.elapsed})
            final = self.folder / written.name
            shutil.rmtree(final, ignore_errors=True)
            os.replace(written, final)
            flush(self.folder)
            for old in saved_checkpoints(self.folder)[2:]:
                shutil.rmtree(old, ignore_errors=True)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        # Each tensor is saved once, because the Trainer fails on tied weights; and no pickled arguments are saved.
        if self.args.should_save:
            folder = self.folder if output_dir is None else Path(output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            weights = dict(self.accelerator.unwrap_model(self.model).named_parameters())
            save_file({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}, folder / WEIGHTS)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses unexpected weights; missing ones give no warning, as tied weights and buffers are not in the file."""
        if load_result.unexpected_keys:
            raise UnmaskError(f"the saved state has other weights: {', '.join(load_result.unexpected_keys)}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        self.average.weights = load_file(folder / AVERAGE)
        self.seconds, self._began = json.loads((folder / COMPLETE).read_text())["seconds"], time.monotonic()


def training_arguments(config: TrainConfig, folder: Path) -> TrainingArguments:
    """Returns the Trainer's settings for a configuration, and sets up the processes that `accelerate launch` started.

    Args:
        config: The configuration of the run.
        folder: The folder of the Trainer's checkpoints.

    Raises:
        ValueError: If the batch cannot be divided among the processes.
    """
    os.environ.setdefault("ACCELERATE_LOG_LEVEL", "ERROR")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=config.steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.accumulate,
        max_grad_norm=config.clip,
        logging_steps=config.log_every,
        save_steps=config.save_every,
        eval_strategy="steps",
        eval_steps=config.evaluation.every,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_num_workers=config.workers,
        dataloader_pin_memory=False,
        use_cpu=config.device == "cpu" or not torch.accelerator.is_available(),
        seed=config.seed % 2**32,
        report_to=config.report_to or "none",
        disable_tqdm=True,
        log_level="error",
    )
    parts = arguments.world_size * config.accumulate
    if config.batch_size % parts:
        raise ValueError(
            f"batch_size {config.batch_size} cannot be divided among {arguments.world_size} processes x "
            f"{config.accumulate} accumulated batches; make it a multiple of {parts}"
        )
    arguments.per_device_train_batch_size = config.batch_size // parts
    return arguments


def complete(folder: Path, facts: dict[str, Any]) -> None:
    """Marks a folder as complete: flushes its files to the disk, and writes their sizes to a file.

    Args:
        folder: The folder.
        facts: What else is written to that file.
    """
    sizes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        flush(file)
        sizes[str(file.relative_to(folder))] = file.stat().st_size
    write_atomically(folder / COMPLETE, json.dumps({**facts, "sizes": sizes}).encode())


def saved_checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints of a run, the newest first; incomplete ones are skipped."""

    def sound(path: Path) -> bool:
        try:
            sizes = json.loads((path / COMPLETE).read_text())["sizes"]
            return all((path / name).stat().st_size == size for name, size in sizes.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    found = [path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit() and sound(path)]
    return sorted(found, key=lambda path: -int(path.name.split("-")[1]))


class Stop(TrainerCallback):
    """Ends a run after a step, as if it had been interrupted there.

    Args:
        after: The number of the step.
    """

    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks the Trainer to save and stop."""
        if state.global_step >= self.after:
            control.should_save = control.should_training_stop = True


class Watch(TrainerCallback):
    """Calls a function after each step, and another one for each line of the Trainer's log, on the main process only.

    Args:
        on_step: Called with the number of the step.
        on_log: Called with the line of the log.
    """

    def __init__(self, on_step: Callable[[int], None], on_log: Callable[[dict[str, Any]], None]) -> None:
        self.on_each, self.on_line = on_step, on_log

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reports the number of the step."""
        if state.is_world_process_zero:
            self.on_each(state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reports the newest line."""
        if state.is_world_process_zero:
            self.on_line(state.log_history[-1])
