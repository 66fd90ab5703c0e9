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
"""Settings that do not change the trained network, and so may differ when a run is resumed."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TaskConfig(BaseModel):
    """The name of a task and its settings, as `unmask.tasks.named.named_task` takes them.

    Attributes:
        name: The name of the task; all other keys are its settings.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the task: all keys but the name."""
        return dict(self.model_extra or {})


class NetworkConfig(_Strict):
    """A `Transformer`; the vocabulary, mask token and length come from the task.

    All sizes are as in `TransformerConfig`.

    Attributes:
        start: Name of an embedded model, or folder of a checkpoint, whose weights initialise the network. It may be a
            model for shorter sequences on a line: the biases of distances that it does not have are then initialised
            like those of its greatest distance.
        frequencies: Whether the output has a learned bias per token, initialised to the logarithm of the token's
            frequency in the training split.
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
        """Returns the complete configuration for a task.

        Args:
            task: The task.
            causal: Whether the network is causal.

        Raises:
            ValueError: If the sizes do not fit each other or the task.
        """
        sizes = self.model_dump(exclude={"kind", "start"})
        return TransformerConfig(task.vocab_size, task.mask_id, task.length, causal=causal, **sizes)


class MaskedLMConfig(_Strict):
    """A masked language model of the Transformers library (see `models.pretrained.masked_lm`), new or trained before.

    Attributes:
        config: `model_type` and sizes of a new model, as in the library's configuration files.
        pretrained: Folder of a model to train further.
    """

    kind: Literal["masked_lm"]
    config: dict[str, Any] | None = None
    pretrained: str | None = None

    @model_validator(mode="after")
    def _one(self) -> MaskedLMConfig:
        if (self.config is None) == (self.pretrained is None):
            raise ValueError("a masked_lm needs exactly one of config (of a new model) and pretrained (a folder)")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError("config needs a model_type, such as modernbert, bert or esm")
        return self


class LLaDAConfig(_Strict):
    """A new network of LLaDA's architecture, exported in its layout (see `unmask.models.pretrained.llada`).

    Attributes:
        start: Name of an embedded model, or folder of a checkpoint of the same sizes, whose weights initialise it.
        d_model: Hidden size.
        n_layers: Number of layers.
        n_heads: Number of attention heads.
        mlp_hidden_size: Hidden size of the MLP.
        rope_theta: Base of the rotary position embedding.
        neighbours: Whether attention is initialised to attend to neighbouring positions (see
            `unmask.models.pretrained.neighbours`).
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


_NETWORKS: dict[str, type[BaseModel]] = {
    "transformer": NetworkConfig,
    "masked_lm": MaskedLMConfig,
    "llada": LLaDAConfig,
}
"""The kinds of network, by the word that the place of an error has for them."""


class EvaluationConfig(_Strict):
    """How the NELBO of validation sequences is estimated (see `unmask.nelbo`).

    Attributes:
        every: Steps between two estimates.
        sequences: Number of sequences of each estimate during the run.
        final: Number of sequences of the estimate at the end of the run.
        strata: As in `unmask.nelbo`.
        replicates: As in `unmask.nelbo`.
    """

    every: int = Field(1000, ge=1)
    sequences: int = Field(64, ge=2)
    final: int = Field(256, ge=2)
    strata: int = Field(16, ge=1)
    replicates: int = Field(2, ge=1)


class SamplesConfig(_Strict):
    """Which samples are logged during the run: the first validation prompts, completed under a rule.

    Attributes:
        every: Steps between two times that samples are drawn.
        prompts: Number of prompts; 0: no samples.
        rule: The unmasking rule and its settings, as on the command line.
        temperature: The temperature at which tokens are drawn.
        seed: Seed of the samples.
    """

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
        """Returns the rule with its settings."""
        return named_rule(self.rule)


class TrainConfig(_Strict):
    """The configuration of a training run: everything that determines the network, and how the run is saved and logged.

    Attributes:
        task: The task that the network is trained on.
        network: The network: a `Transformer` of this package, `kind: masked_lm` or `kind: llada`.
        objective: `"masked"` for a masked diffusion model; `"causal"` for an autoregressive judge.
        schedule: The noise schedule, which relates time to the share of masked tokens, for a network with timestep
            conditioning.
        steps: Length of the run. It and `decay_steps` may change on resuming, until the decay has begun.
        batch_size: Sequences per step, over all processes and accumulated batches.
        accumulate: Batches whose gradients are accumulated in a step, on each process.
        lr: Learning rate of the constant phase.
        warmup_steps: Steps of linear warm-up at the start.
        decay_steps: Steps of linear decay to 1 % of `lr` at the end; default: half of the run.
        weight_decay: Weight decay of AdamW, applied to matrices only.
        clip: Largest norm of the gradient, to which greater ones are clipped.
        ema: Decay of the exponential moving average of the weights, which is what is exported.
        seed: The seed of the weights, the order of the examples, and the masks.
        dtype: The type of the forward and backward pass; the trained weights themselves are float32.
        device: `"cpu"`, or `"auto"` for a GPU if there is one.
        threads: CPU threads; results are reproducible bit by bit only with a fixed number.
        workers: Processes that load data.
        out: Folder of the run.
        save_every: Steps between two saved states.
        log_every: Steps between two lines of the log.
        evaluation: How the NELBO is estimated during the run.
        samples: Which samples are logged during the run.
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
            raise ValueError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}")
        if self.objective == "causal" and self.network.kind != "transformer":
            raise ValueError(f"a {self.network.kind} has bidirectional attention: objective must be masked")
        return self

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, as a share of `lr`: warm-up, constant, linear decay."""
        return share_of_rate(step, self.steps, self.warmup_steps, self.decay_steps)

    def recipe(self) -> dict[str, Any]:
        """Returns the settings that determine the trained network (all but `MAY_CHANGE`)."""
        return self.model_dump(mode="json", exclude=set(MAY_CHANGE))


def read_config(path: Path, **overrides: Any) -> TrainConfig:
    """Reads and checks a configuration in YAML.

    The folder of the run is `runs/NAME` if the file `NAME.yaml` does not give `out`.

    Args:
        path: The file.
        **overrides: Settings that, if not `None`, replace those of the file.

    Raises:
        ValueError: If the file cannot be read, is not a YAML mapping, has an unknown key, or a value of the wrong kind
            or out of range. The message lists every problem with its key.
    """
    text = read_text(path, "the configuration")
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold keys and values, such as 'steps: 1000', got {type(found).__name__}")
    given = {"out": str(Path("runs") / path.stem), **found}
    return parse_config({**given, **{k: v for k, v in overrides.items() if v is not None}}, str(path))


def parse_config(given: dict[str, Any], name: str) -> TrainConfig:
    """Checks a configuration as `read_config` does.

    Args:
        given: The settings.
        name: What the message calls the configuration.

    Raises:
        ValueError: If it has an unknown key, or a value of the wrong kind or out of range.
    """
    try:
        return TrainConfig.model_validate(given)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(str(part) for part in problem["loc"] if part not in _NETWORKS)
            shown = "" if problem["type"] in ("missing", "value_error") else f", got {problem['input']!r}"
            if problem["type"] == "extra_forbidden":
                shown += f"; there are {', '.join(_keys_beside(problem['loc']))}"
            problems.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}{shown}".removeprefix(": "))
        raise ValueError(f"{name}: " + "; ".join(problems)) from None


def _keys_beside(place: tuple[int | str, ...]) -> list[str]:
    """The keys that there are where an unknown one stands, as the place of an error says it."""
    kind: type[BaseModel] = TrainConfig
    for part in place[:-1]:
        inner = _NETWORKS.get(str(part)) or kind.model_fields[str(part)].annotation
        kind = inner if isinstance(inner, type) and issubclass(inner, BaseModel) else kind
    return sorted(kind.model_fields)
