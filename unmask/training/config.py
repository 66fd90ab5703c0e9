"""The configuration of a training run, checked before anything is computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..files.reading import read_text
from ..models.networks.transformer import TransformerConfig
from ..rules.named import NamedRule, named_rule
from ..schedule import SCHEDULES
from ..tasks.task import Task
from .descent import share_of_rate

MAY_CHANGE = frozenset({"out", "threads", "save_every", "log_every", "evaluation", "samples", "report_to", "workers"})
"""Settings that do not change what is trained."""


_KINDS = ("transformer", "masked_lm", "llada")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TaskConfig(BaseModel):
    """The name of a task and its settings, as `unmask.tasks.named.named_task` takes them."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class NetworkConfig(_Strict):
    """A `Transformer`; vocabulary, mask and length come from the task (see `TransformerConfig`).

    Attributes:
        start: Name of an embedded model or folder of a checkpoint whose weights it starts from. It may be one for
            shorter sequences on a line: places farther apart than it knows then start like its farthest ones.
        frequencies: A logit per token, which starts at the logarithm of how often the training split has it.
    """

    kind: Literal["transformer"] = "transformer"
    start: str | None = None
    rows: int = 1
    channels: int = 1
    width: int = 192
    depth: int = 4
    heads: int = 3
    mlp: int = 768
    recurrent: bool = False
    positions: bool = False
    time: bool = False
    frequencies: bool = False

    def transformer(self, task: Task, causal: bool) -> TransformerConfig:
        """The complete configuration for a task.

        Raises:
            ValueError: If the sizes do not fit each other or the task.
        """
        sizes = self.model_dump(exclude={"kind", "start"})
        return TransformerConfig(task.vocab_size, task.mask_id, task.length, causal=causal, **sizes)


class MaskedLMConfig(_Strict):
    """A masked language model of the Transformers library (see `models.pretrained.masked_lm`), new or trained before.

    Attributes:
        config: `model_type` and sizes of a new one, as in the library's configuration files.
        pretrained: Folder of one to train further.
    """

    kind: Literal["masked_lm"]
    config: dict[str, Any] | None = None
    pretrained: str | None = None

    @model_validator(mode="after")
    def _one(self) -> MaskedLMConfig:
        if (self.config is None) == (self.pretrained is None):
            raise ValueError("a masked_lm takes either config (of a new model) or pretrained (a folder)")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as modernbert, bert or esm")
        return self


class LLaDAConfig(_Strict):
    """A new network of LLaDA's architecture, exported in its layout (see `unmask.models.pretrained.llada`).

    Attributes:
        start: Name of an embedded model or folder of a checkpoint of the same sizes whose weights it starts from.
        neighbours: Its attention starts at neighbours (see `unmask.models.pretrained.neighbours`).
    """

    kind: Literal["llada"]
    start: str | None = None
    d_model: int = Field(ge=2)
    n_layers: int = Field(ge=1)
    n_heads: int = Field(ge=1)
    mlp_hidden_size: int = Field(ge=1)
    rope_theta: float = Field(10000.0, gt=0)
    neighbours: bool = False

    @property
    def sizes(self) -> dict[str, Any]:
        """The sizes by LLaDA's names."""
        return self.model_dump(exclude={"kind", "start"})


class EvaluationConfig(_Strict):
    """How NELBO is estimated on validation sequences (see `unmask.nelbo`).

    Attributes:
        every: Steps between two estimates.
        sequences: Sequences for those; `final` for the last one.
    """

    every: int = Field(1000, ge=1)
    sequences: int = Field(64, ge=2)
    final: int = Field(256, ge=2)
    strata: int = Field(16, ge=1)
    replicates: int = Field(2, ge=1)


class SamplesConfig(_Strict):
    """Which samples are logged on the way: the first validation prompts, completed under a rule."""

    every: int = Field(1000, ge=1)
    prompts: int = Field(2, ge=0)
    rule: str = "entropy-bound:gamma=0.1"
    temperature: float = Field(1.0, ge=0)
    seed: int = 0

    @field_validator("rule")
    @classmethod
    def _known(cls, rule: str) -> str:
        named_rule(rule)
        return rule

    def named(self) -> NamedRule:
        """The rule."""
        return named_rule(self.rule)


class TrainConfig(_Strict):
    """Everything a trained network is a function of, and how its run is kept and watched.

    Attributes:
        task: What it is trained on.
        network: What is trained: a `Transformer` of this package, `kind: masked_lm` or `kind: llada`.
        objective: `"masked"`: a masked diffusion model; `"causal"`: a judge that reads from left to right.
        schedule: For a network conditioned on time: at which time how many tokens are masked.
        steps: Length of the run; it and `decay_steps` may change on resuming until the decay has begun.
        batch_size: Sequences per step, over all processes and accumulated batches.
        accumulate: Batches that make up a step on one process.
        lr: Learning rate of the constant phase.
        warmup_steps: Linear warm-up at the start.
        decay_steps: Linear decay to 1 % of `lr` at the end; default: half of the run.
        weight_decay: AdamW's, on matrices.
        clip: Largest norm of the gradient.
        ema: Decay of the averaged weights, the ones exported.
        seed: The seed of weights, order and masks.
        dtype: The type of the forward and backward pass; the weights being trained are float32.
        device: `"cpu"`, or `"auto"` for a GPU if there is one.
        threads: CPU threads; results are reproducible bit by bit only at a fixed number.
        workers: Processes that load data.
        out: Folder of the run.
        save_every: Steps between two saved states.
        log_every: Steps between two lines of the log.
        report_to: Integrations of the Trainer to log to, such as `tensorboard` and `wandb`.
    """

    task: TaskConfig
    network: NetworkConfig | MaskedLMConfig | LLaDAConfig = Field(NetworkConfig(), discriminator="kind")
    objective: Literal["masked", "causal"] = "masked"
    schedule: Literal[*tuple(SCHEDULES)] = "linear"  # type: ignore[valid-type]
    steps: int = Field(ge=1)
    batch_size: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1)
    lr: float = Field(3e-3, gt=0, allow_inf_nan=False)
    warmup_steps: int = Field(100, ge=0)
    decay_steps: int = Field(-1, ge=0)
    weight_decay: float = Field(0.05, ge=0, allow_inf_nan=False)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    ema: float = Field(0.999, ge=0, lt=1)
    seed: int = Field(0, ge=0, lt=2**63)
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: Literal["auto", "cpu"] = "auto"
    threads: int = Field(1, ge=1)
    workers: int = Field(0, ge=0)
    out: Path = Field(strict=False)
    save_every: int = Field(500, ge=1)
    log_every: int = Field(50, ge=1)
    evaluation: EvaluationConfig = Field(default_factory=lambda: EvaluationConfig.model_validate({}))
    samples: SamplesConfig = Field(default_factory=lambda: SamplesConfig.model_validate({}))
    report_to: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        if given.get("decay_steps") is None and isinstance(given.get("steps"), int):
            filled["decay_steps"] = given["steps"] // 2
        if isinstance(given.get("network"), dict):
            filled["network"] = {"kind": "transformer", **given["network"]}
        return filled

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.decay_steps > self.steps:
            raise ValueError(f"decay_steps ({self.decay_steps}) must not exceed steps ({self.steps})")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of accumulate {self.accumulate}")
        if self.objective == "causal" and self.network.kind != "transformer":
            raise ValueError(f"a {self.network.kind} reads in both directions: objective must be masked")
        return self

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step, as a share of `lr`: warm-up, constant, linear decay."""
        return share_of_rate(step, self.steps, self.warmup_steps, self.decay_steps)

    def recipe(self) -> dict[str, Any]:
        """The settings that change what is trained."""
        return self.model_dump(mode="json", exclude=set(MAY_CHANGE))


def read_config(path: Path, **overrides: Any) -> TrainConfig:
    """Reads a YAML file; values given by name, if not `None`, replace those in it.

    The folder of the run is `runs/NAME` for a file `NAME.yaml` that does not say.

    Raises:
        ValueError: If the file cannot be read, is not a YAML mapping, has an unknown key, or a value of the wrong kind
            or out of range. The message lists every problem with its key.
    """
    text = read_text(path, "the configuration")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold keys and values, such as 'steps: 1000', got {type(found).__name__}")
    given = {"out": str(Path("runs") / path.stem), **found}
    return parse_config({**given, **{k: v for k, v in overrides.items() if v is not None}}, str(path))


def parse_config(given: dict[str, Any], name: str) -> TrainConfig:
    """Checks a configuration; see `read_config`.

    Raises:
        ValueError: If it has an unknown key, or a value of the wrong kind or out of range.
    """
    try:
        return TrainConfig.model_validate(given)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"] if part not in _KINDS)
            shown = "" if problem["type"] in ("missing", "value_error") else f", got {problem['input']!r}"
            problems.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}".removeprefix(": "))
        raise ValueError(f"{name}: " + "; ".join(problems)) from None
