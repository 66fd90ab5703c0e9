"""`unmask serve`: an OpenAI-style server, and a page to watch, for models that unmask."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..checks import needs_extra
from ..files.writing import check_outputs, write_output
from ..folders import EMBEDDED
from . import common
from .engines import check_engine
from .groups import NEWEST, FromHub
from .loading import ON_CPU, Loading

if TYPE_CHECKING:
    from ..serving.limits import Limits

KEY = "UNMASK_API_KEY"
CACHES = ("none", "block-causal")
"""Caches that are exact, so that no answer depends on them."""


@dataclass(frozen=True)
class OnRay:
    """How many replicas of the server Ray Serve runs, and where."""

    engine: Annotated[
        str | None, typer.Option(help="ray: replicas behind the proxy of Ray Serve (extra ray); default: one server.")
    ] = None
    replicas: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: how many; with --max-replicas, the fewest. Default 1.")
    ] = None
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: add replicas by load, up to so many.")
    ] = None
    replica_cpus: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: cores, and threads, of a replica; default 1.")
    ] = None
    replica_gpus: Annotated[
        float | None, typer.Option(min=0, help="With --engine ray: GPUs of a replica; default 0.")
    ] = None
    address: Annotated[
        str | None, typer.Option(help="With --engine ray: a running cluster; default: RAY_ADDRESS, or this machine.")
    ] = None
    write_config: Annotated[
        Path | None, typer.Option(help="With --engine ray: write this file for `serve deploy`, and serve nothing.")
    ] = None


ONE = OnRay()
"""One server, in this process."""


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
    on_ray: OnRay = ONE,
) -> None:
    """Serve models to OpenAI's clients, and a page that shows text being unmasked.

    If UNMASK_API_KEY is set in the environment, requests must send that key. The log is JSON on standard error. With
    --engine ray, replicas of the server run behind the proxy of Ray Serve, on this machine or a cluster.
    """
    check_engine(on_ray, "one server here")
    if workers != 1:
        raise ValueError(
            f"--workers {workers}: one engine owns a device, and its requests share forward passes, which several"
            " workers would not; for several devices there is --engine ray with --replicas"
        )
    if cache not in (None, *CACHES):
        raise ValueError(f"the cache of a server is one of {', '.join(CACHES)}, got {cache!r}")
    memory = None if cache_memory is None else _bytes(cache_memory)
    with needs_extra("serve", "unmask serve"):
        from ..serving.app import create_app
        from ..serving.guard import LOCAL
        from ..serving.limits import Limits
        from ..serving.run import is_local, log_json, run
        from ..serving.served import SHIPPED, serve_models
    names = [hub.pinned(name) for name in models or SHIPPED]
    local, key = is_local(host), os.environ.get(KEY) or None
    if not local and key is None:
        common.err.print(f"[yellow]{host} is reached from other machines, and {KEY} is not set: anybody may ask[/]")
    limits = Limits(rows=rows, tokens=tokens, queue=queue, seconds=timeout)
    if on_ray.engine is not None:
        _serve_on_ray(on_ray, names, loading, cache, memory, limits, host, port, grace, log_prompts)
        return
    if all(name in EMBEDDED for name in names):
        common.one_thread()
    served = serve_models(names, cache=cache, rows=rows, memory=memory, **loading.options())
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


def _serve_on_ray(
    on_ray: OnRay,
    names: list[str],
    loading: Loading,
    cache: str | None,
    memory: int | None,
    limits: Limits,
    host: str,
    port: int,
    grace: float,
    log_prompts: bool,
) -> None:
    from ..fleet import replicas
    from ..serving.run import is_local

    replace(loading, device="meta").options()  # the type is checked here, the device where it is
    given = {name: value for name, value in asdict(loading).items() if value is not None}
    serving = replicas.Serving(
        models=tuple(names),
        loading=given,
        cache=cache,
        memory=memory,
        rows=limits.rows,
        tokens=limits.tokens,
        queue=limits.queue,
        seconds=limits.seconds,
        local=is_local(host),
        log_prompts=log_prompts,
    )
    wanted = replicas.Replicas(
        on_ray.replicas or 1, on_ray.max_replicas, on_ray.replica_cpus or 1, on_ray.replica_gpus or 0.0, grace
    )
    if on_ray.write_config is not None:
        check_outputs({"--write-config": on_ray.write_config})
        import yaml

        text = yaml.safe_dump(replicas.configuration(serving, wanted, host, port), sort_keys=False)
        write_output(on_ray.write_config, text)
        common.out.print(f"Deploy it: serve deploy {on_ray.write_config}", highlight=False, soft_wrap=True)
        return
    common.err.print(f"serving {', '.join(names)} at http://{host}:{port} by Ray Serve", highlight=False)
    replicas.run(serving, wanted, on_ray.address, host, port)


def _bytes(text: str) -> int:
    """Reads an amount of memory.

    Raises:
        ValueError: If it is not a number with a unit.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(KiB|MiB|GiB|TiB)", text)
    if match is None:
        raise ValueError(f"--cache-memory is a number with KiB, MiB, GiB or TiB, such as 2GiB, got {text!r:.40}")
    return int(float(match[1]) * 1024 ** (1 + ("KiB", "MiB", "GiB", "TiB").index(match[2])))
