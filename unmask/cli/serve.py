"""`unmask serve`: an OpenAI-style server, and a page to watch, for models that unmask."""

from __future__ import annotations

import os
import re
from typing import Annotated

import typer

from ..folders import EMBEDDED
from . import common
from .groups import NEWEST, FromHub
from .loading import ON_CPU, Loading

KEY = "UNMASK_API_KEY"
CACHES = ("none", "block-causal")
"""Caches that are exact, so that no answer depends on them."""


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Embedded models, folders, or owner/name of the hub. Default: chat, sudoku and rxnmapper."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is reached from other machines.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at.")] = 8000,
    loading: Loading = ON_CPU,
    hub: FromHub = NEWEST,
    cache: Annotated[
        str | None,
        typer.Option(help=f"Keys and values to keep: {', '.join(CACHES)}. Default: block-causal for such attention."),
    ] = None,
    cache_memory: Annotated[
        str | None,
        typer.Option(help="Most memory for the keys and values of a model, such as 2GiB. Default: no limit."),
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Most sequences of a model that are evaluated at once.")] = 64,
    tokens: Annotated[int, typer.Option(min=1, help="Most positions of a forward pass, padding included.")] = 16384,
    queue: Annotated[int, typer.Option(min=1, help="Sequences that may wait; more are refused with 429.")] = 1024,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that a request may take.")] = 300.0,
    grace: Annotated[float, typer.Option(min=1, help="Seconds to finish open requests after a stop signal.")] = 30.0,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write prompts to the log.")] = False,
    workers: Annotated[int, typer.Option(help="Only 1: one engine owns a device.")] = 1,
) -> None:
    """Serve models to OpenAI's clients, and a page that shows text being unmasked.

    If UNMASK_API_KEY is set in the environment, requests must send that key. The log is JSON on standard error.
    """
    if workers != 1:
        raise ValueError(
            f"--workers {workers}: one engine owns a device, and its requests share forward passes, which several"
            " workers would not; start a server for each device, on ports of their own"
        )
    if cache not in (None, *CACHES):
        raise ValueError(f"the cache of a server is one of {', '.join(CACHES)}, got {cache!r}")
    memory = None if cache_memory is None else _bytes(cache_memory)
    try:
        from ..serving.app import create_app
        from ..serving.guard import LOCAL
        from ..serving.limits import Limits
        from ..serving.run import is_local, log_json, run
        from ..serving.served import SHIPPED, serve_models
    except ImportError as error:
        raise ImportError(
            f"unmask serve needs the extra serve ({error.name} is missing): pip install 'unmask[serve]'"
        ) from None
    names = [hub.pinned(name) for name in models or SHIPPED]
    if all(name in EMBEDDED for name in names):
        common.one_thread()
    served = serve_models(names, cache=cache, rows=rows, memory=memory, **loading.options())
    limits = Limits(rows=rows, tokens=tokens, queue=queue, seconds=timeout)
    local, key = is_local(host), os.environ.get(KEY) or None
    if not local and key is None:
        common.err.print(f"[yellow]{host} is reached from other machines, and {KEY} is not set: anybody may ask[/]")
    log_json()
    shown = f"[{host}]" if ":" in host else host
    common.err.print(f"serving {', '.join(one.name for one in served)} at http://{shown}:{port}", highlight=False)
    run(
        create_app(served, limits, key=key, hosts=LOCAL if local else None, log_prompts=log_prompts),
        limits,
        host,
        port,
        grace,
    )


def _bytes(text: str) -> int:
    """Reads an amount of memory.

    Raises:
        ValueError: If it is not a number with a unit.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(KiB|MiB|GiB|TiB)", text)
    if match is None:
        raise ValueError(f"--cache-memory is a number with KiB, MiB, GiB or TiB, such as 2GiB, got {text!r:.40}")
    return int(float(match[1]) * 1024 ** (1 + ("KiB", "MiB", "GiB", "TiB").index(match[2])))
