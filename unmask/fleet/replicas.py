"""The server of `unmask serve` as a deployment of Ray Serve: several replicas behind its proxy."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI

from .cluster import Cluster  # first: it says which extra is missing

from ray import serve  # isort: skip
from ray.exceptions import RayError  # isort: skip

from ..errors import UnmaskError
from ..serving.app import create_app
from ..serving.guard import LOCAL
from ..serving.limits import Limits
from ..serving.run import log_json
from ..serving.served import serve_models

NAME = "unmask"
"""Of the application and of its one deployment."""
KEY = "UNMASK_API_KEY"
"""Where a replica finds the key that requests must send: in its environment, never in a configuration file."""


@dataclass(frozen=True)
class Serving:
    """What a replica serves; plain values, as a configuration file holds them.

    Attributes:
        models: Names or folders of the models; every replica loads all of them.
        loading: Options of `unmask.load`, types and devices by name.
        cache: Which keys and values to keep; see `serve_models`.
        memory: Bytes that the kept keys and values of a model may take; default: no limit.
        rows: Most sequences of a model that a replica evaluates at once.
        tokens: Most positions of a forward pass.
        queue: Sequences of a model that may wait in a replica; more are refused with 429.
        seconds: Time that a request may take.
        local: Whether only requests that name this machine are answered.
        log_prompts: Whether to write prompts to the log.
    """

    models: tuple[str, ...]
    loading: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cache: str | None = None
    memory: int | None = None
    rows: int = Limits.rows
    tokens: int = Limits.tokens
    queue: int = Limits.queue
    seconds: float = Limits.seconds
    local: bool = False
    log_prompts: bool = False

    @classmethod
    def read(cls, args: Mapping[str, Any]) -> Serving:
        """Reads what a configuration file says.

        Raises:
            ValueError: If there is no list of models, or an unknown setting.
        """
        known = [one.name for one in dataclasses.fields(cls)]
        if unknown := [name for name in args if name not in known]:
            raise ValueError(f"unknown argument {unknown[0]!r} of the application; there are {', '.join(known)}")
        models = args.get("models")
        if not isinstance(models, (list, tuple)) or not models:
            raise ValueError(f"models is a list of names or folders, got {models!r:.80}")
        return cls(**{**args, "models": tuple(models)})

    @property
    def limits(self) -> Limits:
        """The limits of a replica."""
        return Limits(rows=self.rows, tokens=self.tokens, queue=self.queue, seconds=self.seconds)

    def app(self) -> FastAPI:
        """Loads the models and makes the application."""
        if self.loading.get("device", "cpu") == "cpu":
            torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "1"))))
        loading = {**self.loading, "dtype": getattr(torch, self.loading.get("dtype", "float32"))}
        served = serve_models(self.models, cache=self.cache, rows=self.rows, memory=self.memory, **loading)
        key, hosts = os.environ.get(KEY) or None, LOCAL if self.local else None
        return create_app(served, self.limits, key=key, hosts=hosts, log_prompts=self.log_prompts)


@serve.deployment(name=NAME)
@serve.ingress()
class Replica:
    """One copy of the server. Its health is that of its engine, which `GET /readyz` reports, too."""

    def __init__(self, serving: Serving) -> None:
        log_json()
        self._app = serving.app()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Raises `RuntimeError` if the engine has stopped, so that Serve starts another replica."""
        if not self._app.state.engine.alive:
            raise RuntimeError("the engine has stopped")


@dataclass(frozen=True)
class Replicas:
    """How many replicas there are, and what each takes.

    Attributes:
        count: How many; with `most`, the fewest.
        most: The most, added and removed by load; `None` keeps their number.
        cpus: Cores of each.
        gpus: GPUs of each.
        grace: Seconds to finish open requests when a replica is stopped.
    """

    count: int = 1
    most: int | None = None
    cpus: int = 1
    gpus: float = 0.0
    grace: float = 30.0

    def options(self, limits: Limits) -> dict[str, Any]:
        """Returns the options of the deployment.

        Raises:
            ValueError: If there are to be fewer at most than at least.
        """
        if self.most is not None and self.most < self.count:
            raise ValueError(f"{self.most} replicas at most are fewer than the {self.count} at least")
        scaling: dict[str, Any] = {"num_replicas": self.count}
        if self.most is not None:
            # A replica whose batch is full has as many requests as it evaluates at once: time for another.
            scaling = {
                "autoscaling_config": {
                    "min_replicas": self.count,
                    "max_replicas": self.most,
                    "target_ongoing_requests": limits.rows,
                }
            }
        return {
            **scaling,
            "max_ongoing_requests": limits.rows + limits.queue,
            "graceful_shutdown_timeout_s": self.grace,
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus},
        }


def application(args: Mapping[str, Any]) -> serve.Application:
    """Builds the application of a configuration file: its `import_path` is `unmask.fleet.replicas:application`."""
    return Replica.bind(Serving.read(args))


def configuration(serving: Serving, replicas: Replicas, host: str, port: int) -> dict[str, Any]:
    """Returns the configuration that `serve deploy` takes."""
    args = {**dataclasses.asdict(serving), "models": list(serving.models), "loading": dict(serving.loading)}
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {
                "name": NAME,
                "route_prefix": "/",
                "import_path": f"{__name__}:application",
                "args": args,
                "deployments": [{"name": NAME, **replicas.options(serving.limits)}],
            }
        ],
    }


def run(serving: Serving, replicas: Replicas, address: str | None, host: str, port: int) -> None:
    """Serves until it is told to stop (SIGTERM, SIGINT).

    Raises:
        UnmaskError: If the cluster cannot be reached, or the replicas cannot be started.
    """
    most = replicas.most or replicas.count
    with Cluster(address, most, replicas.cpus, replicas.gpus).connected():
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(http_options={"host": host, "port": port})
        try:
            deploy(serving, replicas)
            _wait_for_signal()
        finally:
            serve.delete(NAME)


def _wait_for_signal() -> None:
    """Waits for SIGTERM or SIGINT; Ray, once connected, has handlers of its own, which end the process."""
    stop = threading.Event()
    before = [signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)]
    try:
        stop.wait()
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)


def deploy(serving: Serving, replicas: Replicas) -> None:
    """Deploys the application on the cluster that this process is connected to, and waits until it is ready.

    Raises:
        UnmaskError: If the replicas cannot be started.
    """
    options = replicas.options(serving.limits)
    if key := os.environ.get(KEY):
        options["ray_actor_options"]["runtime_env"] = {"env_vars": {KEY: key}}
    try:
        serve.run(Replica.options(**options).bind(serving), name=NAME)
    except (RuntimeError, RayError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UnmaskError(f"the replicas could not be started: {lines[-1] if lines else error}") from None
