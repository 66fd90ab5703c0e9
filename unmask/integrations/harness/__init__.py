"""Evaluation on the tasks of lm-evaluation-harness, some of which read local files (extra `eval`)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import DataError

if TYPE_CHECKING:
    from ..lm_eval import UnmaskLM

LOCAL = {
    "gsm8k": ("gsm8k_test.jsonl", "gsm8k_train.jsonl"),
    "math500": ("math500.jsonl",),
    "humaneval": ("humaneval.jsonl",),
    "mbpp": ("mbpp.jsonl",),
    "instructions": (),
}
"""The tasks that come with this package, and the files that they read."""

RUNS_CODE = ("humaneval", "mbpp")
"""The tasks of `LOCAL` that are scored by running programs that the model wrote."""

WITHOUT_EXAMPLES = ("math500", "humaneval", "instructions")
"""The tasks of `LOCAL` without worked examples for a prompt."""


def evaluate(
    model: UnmaskLM,
    tasks: Sequence[str],
    *,
    data: Path | None = None,
    encoding: str | None = None,
    limit: int | None = None,
    shots: int | None = None,
    chat: bool = False,
    run_code: bool = False,
) -> list[dict[str, Any]]:
    """Evaluates a model on tasks.

    The tasks of `LOCAL` read their files from `data`; all other names are tasks of the harness, which downloads their
    data from the hub.

    Args:
        model: The model with its sampling rule.
        tasks: Names of tasks.
        data: The folder with the files.
        encoding: The encoding of these files; see `unmask.files.reading.read_text`.
        limit: Evaluate only the first `limit` documents of each task.
        shots: Number of worked examples before each question; default: the task's own number.
        chat: Whether to ask through the model's chat template.
        run_code: Whether to run programs that the model wrote, for tasks that are scored by running them (see
            `unmask.evaluation.sandbox`).

    Returns:
        A row per task, with its metrics and the costs of the answers.

    Raises:
        ValueError: If a task is unknown, needs files but no folder is given, has no worked examples but `shots` are
            requested, or runs programs without `run_code`; if `encoding` is given without a folder, or does not exist.
        DataError: If a file is missing or does not have the right content.
    """
    from lm_eval.evaluator import evaluate as run_harness
    from lm_eval.tasks import TaskManager

    _check(tasks, data, shots, run_code)
    if data is None and encoding is not None:
        raise ValueError("--encoding goes with --data FOLDER")
    manager = TaskManager(
        include_path=Path(__file__).parent,
        include_defaults=any(task not in LOCAL for task in tasks),
        metadata={"data": str(data)} if encoding is None else {"data": str(data), "encoding": encoding},
    )
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise ValueError(
            f"unknown task {', '.join(unknown)}; there are {', '.join(LOCAL)}, and those of lm-evaluation-harness"
        )
    with _quiet():
        loaded = manager.load(list(tasks))
        for name, task in loaded["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False) and name not in LOCAL:
                raise ValueError(f"the harness's own {name} runs programs without limits; it is not run here")
            if shots is not None or task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=model.seed)
        results = run_harness(
            lm=model,
            task_dict=loaded,
            limit=limit,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
            confirm_run_unsafe_code=run_code,
            log_samples=False,
        )
    found: dict[str, Any] = dict(results or {})
    costs = model.costs()
    rows = []
    for name, metrics in found["results"].items():
        size = found["n-samples"].get(name, {}).get("effective")
        shown = {_metric(key): value for key, value in metrics.items() if "," in key and value != "N/A"}
        rows.append({"task": name, "documents": size, **shown, **costs.get(name, {})})
    return rows


def _check(tasks: Sequence[str], data: Path | None, shots: int | None, run_code: bool) -> None:
    if not tasks:
        raise ValueError(f"name a task: {', '.join(LOCAL)}, or one of lm-evaluation-harness")
    for task in tasks:
        if LOCAL.get(task) and data is None:
            raise ValueError(f"{task} reads {' and '.join(LOCAL[task])}; give their folder with --data")
        if shots and task in WITHOUT_EXAMPLES:
            raise ValueError(f"{task} has no worked examples to put before a question; leave --shots out")
        if task in RUNS_CODE and not run_code:
            raise ValueError(
                f"{task} is scored by running programs that the model writes, in processes with limits on time and"
                " memory but with your rights; allow it with --run-code"
            )
    if data is not None and not data.is_dir():
        raise DataError(f"there is no folder {data}")


def _metric(key: str) -> str:
    """Returns the name of a metric without the filter `none`: `exact_match,none` is `exact_match`."""
    name, _, kind = key.partition(",")
    return name if kind == "none" else f"{name} ({kind})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the harness's log within a `with` block; its warnings are about settings that are chosen here."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
