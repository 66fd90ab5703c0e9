"""What the commands share: consoles, options, JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..files.jsonl import strict
from ..viewing.progress import ProgressLines
from ..viewing.progress import progress as shared_progress

if TYPE_CHECKING:
    import torch

out = Console()
err = Console(stderr=True)

Temperature = Annotated[float, typer.Option(help="Temperature of the draw; 0 takes the argmax.")]
Seed = Annotated[int, typer.Option(help="Seed of every random stream.")]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of the file, such as latin-1; default: the one it declares, else UTF-8.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

MODEL = "Embedded model, checkpoint folder, or owner/name of the hub."
"""What a command can be given as a model."""


def one_thread() -> None:
    """Runs PyTorch on one thread.

    For the small embedded networks two threads are no faster. Beside another busy process they wait for each other at
    every operation: a run that takes one minute on one thread then took eight.
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
    print(json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False))


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
