"""Runs the server: sockets, signals and logs."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import json
import logging
import signal
import sys

import uvicorn
from fastapi import FastAPI

from .limits import Limits
from .protocol import impatient

HEAD = 32 * 1024
"""Bytes that the head of a request may have."""


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, message, and the extra fields of the record."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_json() -> None:
    """Sends the logs of the server to standard error, one JSON object per line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("unmask.serving", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


def is_local(host: str) -> bool:
    """Whether an address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def configured(app: FastAPI, limits: Limits, host: str, port: int, grace: float) -> uvicorn.Server:
    """Returns a server that is ready to run.

    Args:
        app: The application.
        limits: Limits on the requests that it accepts.
        host: The address to listen at.
        port: The port; 0 takes a free one.
        grace: Seconds for finishing open requests when the server is told to stop.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=impatient(limits.slow),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=limits.connections,
            h11_max_incomplete_event_size=HEAD,
            timeout_graceful_shutdown=max(1, round(grace)),
        )
    )


def run(app: FastAPI, limits: Limits, host: str, port: int, grace: float) -> None:
    """Serves until it is told to stop (SIGTERM, SIGINT); then finishes open requests, if `grace` is long enough.

    Args:
        app: The application.
        limits: Limits on the requests that it accepts.
        host: The address to listen at.
        port: The port.
        grace: Seconds for finishing open requests.
    """
    # Uvicorn sends itself the signal again once it has stopped; a server that did as it was told has not failed.
    before = [signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)]
    server = configured(app, limits, host, port, grace)
    gc.collect()
    gc.freeze()  # what is loaded stays: to search it for garbage again and again stops every request for a while
    try:
        server.run()
    except SystemExit:  # it could not start, and has logged why
        raise OSError(
            f"cannot listen at {host}:{port}; is another server running there? choose another --port"
        ) from None
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
            signal.signal(number, handler)
