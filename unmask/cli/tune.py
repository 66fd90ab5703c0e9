"""`unmask tune`: the sampler with the fewest evaluations that keeps the quality."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..evaluation import frontier
from ..evaluation.tuning import Trial, fewest, tune
from ..files.writing import check_outputs
from ..rules.named import brief
from ..rules.usual import usual_rule
from . import common, study
from .engines import HERE, EngineOptions
from .groups import NEWEST, FromHub


def tune_command(
    task: Annotated[
        str | None, typer.Option("--task", help="The task: sudoku, maze, text, ... or name:key=value,key=value.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="Instead of a task, a folder of texts *.txt with □ or [MASK:n] where masked; needs --model."),
    ] = None,
    model: study.Model = None,
    data: study.Data = None,
    encoding: common.Encoding = None,
    rules: Annotated[
        str, typer.Option(help="Comma-separated rules without a setting; their settings are tried gentlest first.")
    ] = "entropy-bound,entropy-bound:proxy=margin,threshold",
    reference: Annotated[str, typer.Option(help="The rule whose quality is to be kept.")] = "top1-entropy",
    tolerance: Annotated[float, typer.Option(help="The loss of quality that is allowed.")] = 0.005,
    confidence: Annotated[float, typer.Option(help="Confidence that the loss is not larger.")] = 0.95,
    split: study.Split = "validation",
    limit: study.Limit = 100,
    seeds: study.Seeds = 1,
    temperature: Annotated[float, typer.Option(help="Temperature of the draw.")] = 1.0,
    batch_size: study.BatchSize = None,
    out: study.Store = None,
    device: study.Device = "cpu",
    hub: FromHub = NEWEST,
    engine: EngineOptions = HERE,
    json: common.Json = False,
) -> None:
    """Find the sampler with the fewest evaluations that keeps the quality of one token at a time.

    Every setting is compared with the reference on the same prompts of the validation split. It is accepted if, with
    the given confidence, its quality is lower by no more than the tolerance. The settings of a rule are tried from the
    gentlest on until one fails, so the confidence holds for all of them. Report the result on the test split with
    unmask compare.
    """
    model = hub.pinned(model)
    chosen = study.Chosen(
        task,
        model,
        data,
        split,
        limit,
        seeds,
        str(temperature),
        batch_size,
        None,
        out,
        device,
        prompts,
        encoding,
        engine,
    )
    check_outputs({"--out": out}, chosen.inputs, made=("--out",))
    own_study, share = study.shared_study(chosen)
    masks = int((own_study.prompts.tokens == own_study.task.mask_id).sum(-1).max())
    base_rule = usual_rule(reference, chosen.own, temperature)
    own = chosen.own
    texts = frontier.split_rules(rules)
    families = [frontier.gentlest_first(frontier.sweep(text, masks, own, temperature)) for text in texts]
    with common.progress(quiet=json) as bar:
        job = bar.add_task("tuning", total=None)
        base, trials = tune(
            own_study,
            base_rule,
            families,
            tolerance=tolerance,
            confidence=confidence,
            temperature=temperature,
            on_batch=lambda: bar.advance(job),
            share=share,
        )
    best = fewest(trials)
    chosen_rule = str(best.named if best else base_rule)
    base_row = base.row(base_rule, temperature)
    report = {
        "use": chosen_rule,
        "speed_up": base_row["nfe_mean"] / (float(best.outcome.nfe.mean()) if best else base_row["nfe_mean"]),
        "tolerance": tolerance,
        "confidence": confidence,
        "quality_is": own_study.task.quality,
        "reference": base_row,
        "trials": [trial.row(temperature) for trial in trials],
    }
    if json:
        common.print_json(report)
        return
    table = common.table("rule", "quality", "difference", f"lower limit ({confidence:.0%})", "NFE", "")
    table.add_row(
        brief(base_rule.name, base_rule.settings),
        f"{base_row['quality']:.4f}",
        "",
        "",
        f"{base_row['nfe_mean']:.2f}",
        "reference",
    )
    for trial in trials:
        table.add_row(*_trial(trial))
    common.out.print(table)
    common.out.print(
        f"Use [bold]{chosen_rule}[/]: {report['speed_up']:.2f} times fewer evaluations than {base_rule}, on"
        f" {len(own_study.prompts)} {split} prompts. Accepted is what loses at most {tolerance:g} of quality"
        f" with {confidence:.0%} confidence; the fewer prompts, the wider the interval.",
        highlight=False,
    )


def _trial(trial: Trial) -> tuple[str, ...]:
    return (
        brief(trial.named.name, trial.named.settings),
        f"{float(trial.outcome.quality.mean()):.4f}",
        f"{trial.difference:+.4f}",
        f"{trial.lower:+.4f}",
        f"{float(trial.outcome.nfe.mean()):.2f}",
        "accepted" if trial.accepted else "may lose too much",
    )
