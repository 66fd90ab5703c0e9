"""Writes the report of a finished run: a model card, metrics, and training curves."""

from __future__ import annotations

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

from ..files.writing import write_atomically
from ..tasks.task import Task
from ..viewing.drawing import missing
from .config import TrainConfig
from .networks import Network, describe


def write_report(
    to: Path,
    config: TrainConfig,
    task: Task,
    *,
    network: Network,
    seconds: float,
    metrics: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Writes `metrics.json`, `README.md` and, where matplotlib is installed, `curves.png`.

    Args:
        to: The folder of the checkpoint.
        config: The configuration of the run.
        task: The task.
        network: The network.
        seconds: Duration of the whole run, evaluations included.
        metrics: `nelbo` and its standard error `nelbo_se`, in nats per maskable token, and `nelbo_sequences`, the
            number of sequences they were estimated from.
        history: Lines of the log.
    """
    facts = {
        **metrics,
        "bits_per_token": metrics["nelbo"] / math.log(2),
        "steps": config.steps,
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "seconds": round(seconds, 1),
    }
    write_atomically(to / "metrics.json", (json.dumps(facts, indent=2) + "\n").encode())
    drawn = not missing("matplotlib")
    if drawn:
        write_atomically(to / "curves.png", _curves(history, metrics, config))
    write_atomically(to / "README.md", _card(config, task, describe(network), facts, drawn).encode())


def _curves(history: list[dict[str, Any]], metrics: dict[str, Any], config: TrainConfig) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    losses = [(line["step"], line["loss"]) for line in history if "loss" in line]
    evaluated = [(line["step"], line["nelbo"], line["nelbo_se"]) for line in history if "nelbo" in line]
    evaluated.append((config.steps, metrics["nelbo"], metrics["nelbo_se"]))
    with contextlib.suppress(ValueError):  # a run shorter than the log's interval has no losses
        axes.plot(*zip(*losses, strict=True), linewidth=1, label="training loss")
    step, mean, error = zip(*evaluated, strict=True)
    axes.errorbar(step, mean, yerr=error, fmt="o-", markersize=3, label="validation ± s.e. (averaged weights)")
    axes.set(xlabel="step", ylabel="nats per token", title=f"{config.task.name}, {config.objective}")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _card(config: TrainConfig, task: Task, described: str, facts: dict[str, Any], drawn: bool) -> str:
    masked = config.objective == "masked"
    measure = "NELBO" if masked else "Negative log-likelihood"
    about = (
        "Gives the marginals of the masked tokens of a sequence, whatever the number of masks."
        if masked
        else "Gives the distribution of every token given those before it: a judge of samples, not a sampler."
    )
    settings = ", ".join(f"{key} = {value!r}" for key, value in config.task.settings.items()) or "as they come"
    loss = (
        "mask count n ~ U{1..L}, stratified over the batch, (1/n) Σ cross-entropy of the masked tokens,"
        " mean over sequences"
        if masked
        else "mean cross-entropy of the tokens of a sequence, mean over sequences"
    )
    start = getattr(config.network, "start", None)
    begun = "" if start is None else f"\n- It started from the weights of `{start}`."
    return f"""# A {"masked diffusion" if masked else "causal"} model of the task {config.task.name}

{about} {task.length} tokens per sequence out of {task.vocab_size}, the mask (id {task.mask_id}) included.

## Network

{described}

## Training

- Task: `{config.task.name}`, settings {settings}.
- Loss: {loss}.
- AdamW, learning rate {config.lr:g}, betas (0.9, 0.98), weight decay {config.weight_decay:g} on matrices, gradient norm
  clipped to {config.clip:g}, {config.warmup_steps:,} warm-up steps, linear decay over the last {config.decay_steps:,};
  batches of {config.batch_size}; {config.dtype} arithmetic on float32 weights; average {config.ema:g} exported.
- {config.steps:,} steps, {facts["seconds"] / 60:.1f} minutes on {config.threads} thread(s), seed {config.seed}.{begun}

## Result

{measure} of {facts["nelbo_sequences"]} validation sequences: {facts["nelbo"]:.4f} ± {facts["nelbo_se"]:.4f} nats per
token (± one standard error), {facts["bits_per_token"]:.3f} bits.
{f"{chr(10)}![Training curves](curves.png){chr(10)}" if drawn else ""}
`config.json` holds the complete recipe under `training`; `unmask.load(folder)` loads the model.
"""
