"""Compares samplers on a task: every rule completes the same prompts with the same random streams, and is scored.

The answers of different rules to a prompt with the same seed are coupled (see `unmask.draws.streams`), so differences
between rules are paired: their confidence intervals are those of the mean difference over prompts, after averaging over
seeds.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..denoiser import Denoiser, device_of
from ..draws.streams import prompt_streams
from ..errors import DataError
from ..folders import model_folder
from ..rules.named import NamedRule
from ..sampling.loop import Sampler
from ..tasks.task import Foreign, Prompts, Task
from .runner import answer, mean_ci95
from .store import Store

Measure = Callable[[Int[Tensor, "samples length"]], Mapping[str, Float[Tensor, " samples"]]]
"""A function that returns further measures of completed sequences, by name: one number per sequence."""

Judge = Callable[[Prompts, Int[Tensor, "samples length"]], Mapping[str, Float[Tensor, " samples"]]]
"""A function that returns measures which also depend on the prompts, by name: one number per sequence."""


@dataclass(frozen=True)
class Part:
    """A batch of a study: a rule, a temperature and a seed, for the prompts from a number on.

    Attributes:
        named: The rule.
        temperature: The temperature of the draw.
        seed: The seed.
        start: The number of the first prompt.
    """

    named: NamedRule
    temperature: float
    seed: int
    start: int


Share = Callable[[Sequence[Part]], Iterable[tuple[int, dict[str, Any]]]]
"""Has others answer parts, by `Study.answer` of a study like this one; tells the place of each in the list, in any
order, and its answer."""


@dataclass(frozen=True)
class Outcome:
    """The results of one rule on all prompts.

    Attributes:
        quality: The task's score of each answer.
        nfe: Number of evaluations of each answer.
        seconds: Wall-clock time of the sampling, for all seeds together.
        measures: Further measures of each answer, by name.
    """

    quality: Float[Tensor, "seeds prompts"]
    nfe: Float[Tensor, "seeds prompts"]
    seconds: float
    measures: dict[str, Float[Tensor, "seeds prompts"]]

    def difference(self, other: Outcome) -> tuple[float, float]:
        """Compares the quality with that of another outcome on the same prompts and seeds.

        Returns:
            The mean of this quality minus the other's, paired by prompt, and the half width of its 95 % confidence
            interval.
        """
        return mean_ci95((self.quality - other.quality).mean(0))

    def row(self, named: NamedRule, temperature: float) -> dict[str, Any]:
        """Returns a summary as a row of a table.

        Args:
            named: The rule.
            temperature: The temperature of the draw.
        """
        quality, quality_ci95 = mean_ci95(self.quality.mean(0))
        nfe, nfe_ci95 = mean_ci95(self.nfe.mean(0))
        return {
            "rule": named.name,
            "settings": named.settings,
            "temperature": temperature,
            "quality": quality,
            "quality_ci95": quality_ci95,
            "nfe_mean": nfe,
            "nfe_ci95": nfe_ci95,
            "seconds": self.seconds,
            **{name: float(values.mean()) for name, values in self.measures.items()},
        }


def check_fit(denoiser: Denoiser, task: Task) -> None:
    """Refuses a model and a task with different vocabularies.

    Raises:
        DataError: If the number of token ids or the mask token differs.
    """
    found, wanted = (denoiser.vocab_size, denoiser.mask_id), (task.vocab_size, task.mask_id)
    if found != wanted:
        raise DataError(
            f"the model has {found[0]} token ids with mask {found[1]}, but the task {task.name} has {wanted[0]} with"
            f" mask {wanted[1]}: they do not belong together"
        )


class Study:
    """Runs rules on the prompts of a task, and stores the results.

    Args:
        denoiser: The model.
        task: The task, which scores the answers.
        prompts: The prompts to complete.
        seeds: Each prompt is answered once per seed.
        batch_size: Prompts per batch; it changes the time, but no answer.
        measure: Further measures of the answers.
        judge: Measures of the answers that also depend on the prompts.
        store: A file in which the results of every batch are stored, so that an interrupted study continues where it
            stopped.
        identity: What the results depend on besides rule, seed, temperature and prompts, such as the model's weights
            and the task's settings. Stored results of another identity are not used.

    Raises:
        ValueError: If there are no seeds or no prompts, or the batch size is below 1.
        DataError: If the task and the denoiser have different vocabularies, or the store holds something else.
        OSError: If the store cannot be written.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        task: Task,
        prompts: Prompts,
        *,
        seeds: Iterable[int] = (0,),
        batch_size: int = 64,
        measure: Measure | None = None,
        judge: Judge | None = None,
        store: Path | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.denoiser, self.task, self.prompts = denoiser, task, prompts
        self.seeds, self.batch_size, self.measure, self.judge = tuple(seeds), batch_size, measure, judge
        if not self.seeds or not len(prompts):
            raise ValueError(f"a study needs prompts and seeds, got {len(prompts)} and {len(self.seeds)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {batch_size}")
        check_fit(denoiser, task)
        content = json.dumps(
            [identity, batch_size, prompts.tokens.tolist(), prompts.answers.tolist()], sort_keys=True, default=str
        )
        self._key = hashlib.sha256(content.encode()).hexdigest()[:16]
        self._kept = Store(store)
        self._streams_of: dict[int, list[int]] = {}

    def batches(self) -> int:
        """Returns how many batches a rule takes."""
        return len(self.seeds) * -(-len(self.prompts) // self.batch_size)

    def parts(self, named: NamedRule, temperature: float) -> list[Part]:
        """The batches that a rule takes."""
        starts = range(0, len(self.prompts), self.batch_size)
        return [Part(named, temperature, seed, start) for seed in self.seeds for start in starts]

    def prepare(
        self, asked: Sequence[tuple[NamedRule, float]], share: Share, on_batch: Callable[[], None] | None = None
    ) -> None:
        """Has others answer what is not kept yet, so that `run` finds it.

        Args:
            asked: Rules, each with a temperature.
            share: Who answers.
            on_batch: Called for each batch, also for those that are kept.
        """
        told = on_batch or (lambda: None)
        waiting: dict[str, Part] = {}
        for part in (part for named, temperature in asked for part in self.parts(named, temperature)):
            if (key := self._name(part)) not in self._kept:
                waiting[key] = part
            else:
                told()
        keys = list(waiting)
        for number, found in share(list(waiting.values())):
            self._kept[keys[number]] = found
            told()

    def run(self, named: NamedRule, temperature: float = 1.0, on_batch: Callable[[], None] | None = None) -> Outcome:
        """Answers every prompt once per seed, or reads the results from the store.

        Args:
            named: The rule.
            temperature: The temperature of the draw.
            on_batch: Called after each batch.
        """
        parts: dict[int, list[dict[str, Any]]] = {seed: [] for seed in self.seeds}
        for part in self.parts(named, temperature):
            key = self._name(part)
            if key not in self._kept:
                self._kept[key] = self.answer(part)
            parts[part.seed].append(self._kept[key])
            if on_batch is not None:
                on_batch()

        def column(name: str) -> Tensor:
            rows = [[value for part in row for value in part["columns"][name]] for row in parts.values()]
            return torch.tensor(rows, dtype=torch.float64)

        names = [name for name in parts[self.seeds[0]][0]["columns"] if name not in ("quality", "nfe")]
        return Outcome(
            quality=column("quality"),
            nfe=column("nfe"),
            seconds=sum(part["seconds"] for row in parts.values() for part in row),
            measures={name: column(name) for name in names},
        )

    def _name(self, part: Part) -> str:
        return f"{self._key} {part.named} {part.temperature!r} {part.seed} {part.start}"

    def answer(self, part: Part) -> dict[str, Any]:
        """Answers a batch; returns its columns, a number for each answer, and the seconds that it took."""
        own = self.prompts[part.start : part.start + self.batch_size]
        forbidden, fill_id = (
            (self.task.special_ids, self.task.fill_id) if isinstance(self.task, Foreign) else ((), None)
        )
        answers = answer(
            Sampler(self.denoiser, part.named.rule, forbidden=forbidden),
            own.tokens.to(device_of(self.denoiser)),
            streams=self._streams(part.seed)[part.start : part.start + self.batch_size],
            temperature=part.temperature,
            batch_size=self.batch_size,
            fill_id=fill_id,
        )
        tokens = answers.tokens.cpu()
        columns = {"quality": self.task.score(own, tokens), "nfe": answers.nfe.double()}
        if self.measure is not None:
            columns |= self.measure(tokens)
        if self.judge is not None:
            columns |= self.judge(own, tokens)
        return {"columns": {name: values.tolist() for name, values in columns.items()}, "seconds": answers.seconds}

    def _streams(self, seed: int) -> list[int]:
        if seed not in self._streams_of:
            self._streams_of[seed] = prompt_streams(self.prompts.tokens.tolist(), seed)
        return self._streams_of[seed]


def code_fingerprint() -> str:
    """Returns a hash of the package's code without the command line, so that results of other code are not mixed in."""
    digest = hashlib.sha256()
    root = resources.files("unmask")
    with resources.as_file(root) as folder:
        for path in sorted(folder.rglob("*.py")):
            if "cli" not in path.relative_to(folder).parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def fingerprint(model: str | Path) -> str:
    """Returns a hash of the weights and configuration of a model.

    Args:
        model: The name of an embedded model, a checkpoint folder, or a model on the hub.

    Raises:
        AdapterError: If there is no such model.
    """
    digest = hashlib.sha256()
    with model_folder(model) as folder:
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")]):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def at_equal_entropy(rows: list[dict[str, Any]], reference: list[dict[str, Any]], name: str) -> None:
    """Compares a measure of each row with that of a reference of equal entropy.

    Samples of low diversity have a higher likelihood, so two samplers are compared where their entropies agree. The
    reference, run at several temperatures, is interpolated linearly in entropy. Each row gets two new entries:
    `reference_<name>` and `<name>_difference`; both are `None` outside the reference's range of entropies.

    Args:
        rows: The rows, with `entropy` and the measure; they are changed.
        reference: The rows of the reference.
        name: Name of the measure.
    """
    points = sorted((row["entropy"], row[name]) for row in reference)
    for row in rows:
        value = None
        for (low, left), (high, right) in itertools.pairwise(points):
            if low <= row["entropy"] <= high:
                share = (row["entropy"] - low) / (high - low) if high > low else 0.0
                value = left + share * (right - left)
                break
        row[f"reference_{name}"] = value
        row[f"{name}_difference"] = None if value is None else row[name] - value
