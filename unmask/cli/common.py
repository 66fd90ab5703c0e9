"""What the commands share: consoles, options, JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..folders import EMBEDDED
from ..hub import HubName
from ..rules.named import FAMILIES, PROXIES, NamedRule, named_rule
from ..rules.profile import Profile
from ..schedule import SCHEDULES
from ..viewing.progress import ProgressLines
from ..viewing.progress import progress as shared_progress

if TYPE_CHECKING:
    import torch

out = Console()
err = Console(stderr=True)

GAMMA = 0.05
"""The command line's γ for `entropy-bound`, in nats; chosen on validation puzzles. The library has none."""

GAMMAS = {"entropy-bound": GAMMA, "dependence-bound": GAMMA}
"""The command line's γ by family of rules."""

COMMITMENT = 0.1
"""The command line's limit on `1 - max p` for `dependence-bound` at temperatures below 1."""

MODEL = "Embedded model, checkpoint folder, or owner/name of the hub."
"""What a command can be given as a model."""

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
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of the file, such as latin-1; default: what it says itself, else UTF-8.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Revision = Annotated[
    str | None, typer.Option(help="Of a model of the hub: branch, tag or commit; owner/name@REVISION says the same.")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Ask the hub nothing: models of it are loaded as downloaded before.")
]


def rule_from(
    name: str,
    own: str | Profile | None = None,
    temperature: float = 1.0,
    *,
    gammas: Mapping[str, float] | None = None,
    **settings: Any,
) -> NamedRule:
    """Builds the rule that the options describe.

    Args:
        name: Name of the rule, perhaps with settings (`entropy-bound:proxy=margin`).
        own: Where the model's dependence profile is, or the profile, for a rule that reads one and is told no other.
        temperature: Temperature of the draw.
        gammas: The γ of a family of rules where neither its name nor an option gives one; default: `GAMMAS`.
        **settings: Settings of the rule, from the options.

    Raises:
        ValueError: If there is no such rule, or a setting is missing, given twice, or does not apply.
    """
    family, _, inline = name.partition(":")
    told = settings_of(inline)
    for key, value in settings.items():
        if key in told and value is not None and str(value) != told[key]:
            raise ValueError(f"{key} is given twice, as {told[key]} in --rule {name} and as {value} by its option")
    usual = GAMMAS if gammas is None else gammas
    if family in usual and settings.get("gamma") is None and "gamma" not in told:
        settings["gamma"] = usual[family]
    if family == "dependence-bound":
        settings["profile"] = settings.get("profile") or own
        if settings.get("commitment") is None and temperature < 1:
            settings["commitment"] = COMMITMENT
    return named_rule(name, **settings)


@overload
def pinned(model: str, revision: str | None, offline: bool) -> str: ...


@overload
def pinned(model: str | None, revision: str | None, offline: bool) -> str | None: ...


def pinned(model: str | None, revision: str | None, offline: bool) -> str | None:
    """Returns the name of a model with its revision; from then on this process asks the hub nothing, if told so.

    Raises:
        ValueError: If a revision is given for what is not a model of the hub.
    """
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"
    if revision is None:
        return model
    here = model is None or model in EMBEDDED or Path(model).is_dir()
    named = None if here else HubName.read(str(model), revision)
    if named is None:
        raise ValueError(f"--revision goes with owner/name of a model of the hub, and not with {model!r}")
    return str(named)


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


def progress(quiet: bool = False) -> Progress | ProgressLines:
    """Progress on standard error: a bar on a terminal, elsewhere (or if `quiet`) a line every ten seconds."""
    return shared_progress(err, bar=not quiet)


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
