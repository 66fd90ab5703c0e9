"""A server of its own for a test: real sockets, in a thread."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from openai import OpenAI

from unmask.serving.app import create_app
from unmask.serving.engine import Engine
from unmask.serving.limits import Limits
from unmask.serving.metrics import Metrics
from unmask.serving.run import configured
from unmask.serving.served import Served

ONE: dict[str, Any] = {"rule": "top1-entropy"}
LONG: dict[str, Any] = {"logit_bias": {"96": -100}}
"""Keeps the model from ending an answer, so that it fills the canvas."""

CHAT: Any = [{"role": "user", "content": "12+35="}]


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    port: int
    engine: Engine
    metrics: Metrics

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        """The official client, as it comes."""
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=key, max_retries=0, **options)

    def connection(self) -> http.client.HTTPConnection:
        """A connection without a client's help."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(
        self, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the response to a body, which may be bytes; without one, to GET."""
        connection = self.connection()
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})}
        try:
            connection.request("GET" if body is None else "POST", path, content, sent)
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def json(self, path: str, body: Any = None) -> Any:
        """The response as JSON."""
        return json.loads(self.ask(path, body)[2])

    def events(self, body: Any, path: str = "/v1/unmask") -> list[dict[str, Any]]:
        """The server-sent events of a response."""
        status, headers, content = self.ask(path, body)
        assert status == 200, content
        assert headers["content-type"].startswith("text/event-stream")
        lines = content.decode().split("\n\n")
        assert lines.pop() == ""
        assert all(line.startswith("data: ") for line in lines)
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]

    def count(self, name: str, **labels: str) -> float:
        """What is counted under a name."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def idle(self, timeout: float = 20.0) -> None:
        """Waits until nothing is worked on and nobody waits."""
        until = time.monotonic() + timeout
        while any(self.engine.load(name) != (0, 0) for name in self.engine.lanes):
            assert time.monotonic() < until, "the engine is still busy"
            time.sleep(0.01)


@contextlib.contextmanager
def serving(served: Sequence[Served], limits: Limits | None = None, **options: Any) -> Iterator[Running]:
    """Runs a server until the end of a block."""
    limits = limits or Limits()
    app = create_app(served, limits, **options)
    server = configured(app, limits, "127.0.0.1", 0, 5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(port, app.state.engine, app.state.metrics)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
