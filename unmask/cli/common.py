"""What the commands share: consoles, options, JSON."""

from __future__ import annotations

import ctypes
import json
import sys
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

    from ..language import Completion

out = Console()
err = Console(stderr=True)


def cost(answer: Completion) -> str:
    """Says what an answer took, and why it ended."""
    evaluations = "1 evaluation" if answer.nfe == 1 else f"{answer.nfe} evaluations"
    return f"{evaluations}, {answer.new_tokens} tokens, {answer.seconds:.2f} s, {answer.finish_reason}"


Temperature = Annotated[float, typer.Option(help="Temperature of the draw; 0 takes the argmax.")]
Seed = Annotated[int, typer.Option(help="Seed of every random stream.")]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of the file, such as latin-1; default: the one it declares, else UTF-8.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Settings of glibc's memory allocator (malloc.h): bytes that may stay free, and from which on a block is mapped."""

MODEL = "Embedded model, checkpoint folder, or owner/name of the hub."
"""What a command can be given as a model."""


def one_thread() -> None:
    """Runs PyTorch on one thread.

    For the small embedded networks two threads are no faster. Beside another busy process they wait for each other at
    every operation: a run that takes one minute on one thread then took eight.
    """
    import torch

    torch.set_num_threads(1)


def keep_memory() -> None:
    """Lets the process keep the memory of tensors that are gone, for the next ones.

    The C library returns it to the system at once, and gets it back page by page with the next forward pass: a third of
    the processor time of the embedded networks. Does nothing where there is no such setting (only glibc has it).
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(_TRIM_THRESHOLD, 1 << 29)
        libc.mallopt(_MMAP_THRESHOLD, 1 << 25)  # the largest that it accepts; larger tensors are still returned


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
    """A plain table: the first column is text, the others are numbers. In a narrow terminal the text is folded."""
    plain = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    plain.add_column(first, overflow="fold")
    for name in columns:
        plain.add_column(name, justify="right")
    return plain


def fits(shown: Table) -> bool:
    """Whether a table is shown whole at the width of the terminal."""
    return out.measure(shown, options=out.options.update(width=10_000)).maximum <= out.width
