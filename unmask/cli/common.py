"""What the commands share: consoles, options, JSON."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..rules.named import FAMILIES, PROXIES, NamedRule, named_rule
from ..rules.profile import Profile
from ..schedule import SCHEDULES

if TYPE_CHECKING:
    import torch

out = Console()
err = Console(stderr=True)

GAMMA = 0.05
"""The command line's γ for `entropy-bound`, in nats; chosen on validation puzzles. The library has none."""

COMMITMENT = 0.1
"""The command line's limit on `1 - max p` for `dependence-bound` at temperatures below 1."""

Rule = Annotated[str, typer.Option(help=f"One of: {', '.join(FAMILIES)}.")]
Gamma = Annotated[
    float | None,
    typer.Option(help=f"entropy-bound, dependence-bound (default here {GAMMA}), noisy-bound: nats per evaluation."),
]
ProfileOption = Annotated[
    str | None,
    typer.Option("--profile", help="dependence-bound: model or folder with a profile; default: the model's."),
]
Commitment = Annotated[
    float | None,
    typer.Option(
        help=f"dependence-bound: largest 1 - max p priced by dependence (default 1; {COMMITMENT} below T = 1)."
    ),
]
K = Annotated[int | None, typer.Option("--k", help="topk: positions per evaluation.")]
Threshold = Annotated[float | None, typer.Option(help="threshold: probability from which a token is accepted.")]
FactorOption = Annotated[float | None, typer.Option("--factor", help="factor: the bound of Fast-dLLM's rule.")]
Gumbel = Annotated[float | None, typer.Option(help="maskgit: scale of the noise on its choices (default 4.5).")]
Alpha = Annotated[float | None, typer.Option(help="moment: scale of the noise it is the limit of (default 4.5).")]
DraftOption = Annotated[
    int | None, typer.Option("--draft", help="speculative: positions drafted per evaluation (default 4).")
]
Epsilon = Annotated[
    float | None,
    typer.Option(help="carried-bound: nats for the whole sequence; independence-test: movement that counts as none."),
]
Noise = Annotated[float | None, typer.Option(help="noisy-bound: power of the noise on the error proxy (default 1).")]
StepsOption = Annotated[
    int | None, typer.Option("--steps", help="Number of evaluations; for ancestral, of time steps.")
]
Proxy = Annotated[str | None, typer.Option(help=f"Error proxy that ranks positions: {', '.join(PROXIES)}.")]
Schedule = Annotated[str | None, typer.Option(help=f"Times of the timed rules: {', '.join(SCHEDULES)}.")]
Temperature = Annotated[float, typer.Option(help="Temperature of the draw; 0 takes the argmax.")]
Seed = Annotated[int, typer.Option(help="Seed of every random stream.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def rule_from(name: str, own: str | Profile | None = None, temperature: float = 1.0, **settings: Any) -> NamedRule:
    """Builds the rule that the options describe.

    Args:
        name: Of the rule, perhaps with settings.
        own: Where the model's dependence profile is, or the profile, for a rule that reads one and is told no other.
        temperature: Of the draw.
        **settings: Of the rule. Where γ is missing it is `GAMMA`.
    """
    family = name.partition(":")[0]
    if name in ("entropy-bound", "dependence-bound") and settings.get("gamma") is None:
        settings["gamma"] = GAMMA
    if family == "dependence-bound":
        settings["profile"] = settings.get("profile") or own
        if settings.get("commitment") is None and temperature < 1:
            settings["commitment"] = COMMITMENT
    return named_rule(name, **settings)


def one_thread() -> None:
    """Runs PyTorch on one thread.

    For the small embedded networks two are no faster, and beside another busy process they wait for each other at every
    operation: one at a time then took eight minutes where one thread takes one.
    """
    import torch

    torch.set_num_threads(1)


def device_named(name: str) -> torch.device:
    """Reads the name of a device.

    Raises:
        ValueError: If there is no such device here.
    """
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot compute on the device {name!r}: {str(error).splitlines()[0]}") from error
    return device


def print_json(value: Any) -> None:
    """Prints strict JSON: numbers that are not finite become strings (`"inf"`) or null (NaN)."""
    print(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def progress(quiet: bool = False) -> Progress:
    """A progress bar on standard error; nothing where that is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    )


def table(first: str, *columns: str) -> Table:
    """A plain table: the first column is text, the others are numbers."""
    plain = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    plain.add_column(first, no_wrap=True)
    for name in columns:
        plain.add_column(name, justify="right")
    return plain


def settings_of(text: str) -> dict[str, str]:
    """Reads `key=value,key=value`.

    Raises:
        ValueError: If a part has no `=`.
    """
    settings = {}
    for item in filter(None, text.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise ValueError(f"expected key=value, got {item!r}")
        settings[key.strip()] = value.strip()
    return settings
