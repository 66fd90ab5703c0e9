"""The command that serves: what it refuses, and its process under signals."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_cli import run as command

from unmask.cli import serve as serve_command
from unmask.serving.limits import Limits
from unmask.serving.served import serve_models


def test_workers_are_refused_with_the_reason():
    with pytest.raises(ValueError, match="--workers 4: one engine owns a device"):
        command("serve", "--workers", "4")


def test_what_cannot_be_served_is_named():
    with pytest.raises(ValueError, match="the cache of a server is one of none, block-causal"):
        command("serve", "--cache", "dual")
    with pytest.raises(ValueError, match="--cache-memory is a number with KiB"):
        command("serve", "--cache-memory", "much")
    with pytest.raises(ValueError, match="no model at 'nowhere'"):
        command("serve", "nowhere")
    with pytest.raises(ValueError, match="cannot serve text: it is neither"):
        serve_models(["text"])
    with pytest.raises(ValueError, match="two models are called sudoku"):
        serve_models(["sudoku", "sudoku"])
    with pytest.raises(ValueError, match="'block-causal' is for models whose attention is"):
        serve_models(["chat"], cache="block-causal")


def test_a_port_that_is_taken_is_named(monkeypatch):
    monkeypatch.setattr("unmask.serving.run.log_json", lambda: None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError, match="choose another --port"):
            command("serve", "sudoku", "--port", str(taken.getsockname()[1]))


def test_the_options_are_the_limits(monkeypatch):
    seen: dict[str, Any] = {}
    monkeypatch.setattr(
        "unmask.serving.run.run",
        lambda app, limits, host, port, grace: seen.update(vars(limits) | {"at": (host, port, grace)}),
    )
    monkeypatch.setattr("unmask.serving.run.log_json", lambda: None)
    command(
        "serve",
        "sudoku",
        "--rows",
        "3",
        "--tokens",
        "500",
        "--queue",
        "7",
        "--timeout",
        "9",
        "--port",
        "81",
        "--grace",
        "2",
    )
    assert seen == {**vars(Limits(rows=3, tokens=500, queue=7, seconds=9.0)), "at": ("127.0.0.1", 81, 2.0)}
    assert serve_command.KEY == "UNMASK_API_KEY"


def start(port: int) -> subprocess.Popen[bytes]:
    """A server that is ready."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "unmask", "serve", "chat", "--port", str(port), "--rows", "2", "--grace", "60"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, env=environment)
    for _ in range(600):
        try:
            assert get(port, "/readyz") == 200
            return process
        except OSError:
            assert process.poll() is None
            time.sleep(0.2)
    raise AssertionError("the server did not become ready")


def get(port: int, path: str, body: Any = None) -> int:
    """The status of a request, once its response is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    content = None if body is None else json.dumps(body).encode()
    connection.request("GET" if body is None else "POST", path, content, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status


@pytest.mark.slow
def test_a_process_drains_on_a_signal_and_breaks_connections_when_it_is_killed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = {"prompt": "7", "n": 16, "max_tokens": 16, "rule": "top1-entropy", "logit_bias": {"96": -100}}
    with ThreadPoolExecutor(1) as pool:
        process = start(port)
        asked = pool.submit(get, port, "/v1/completions", body)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert asked.result() == 200
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0
        lines = [json.loads(line) for line in log.decode().splitlines() if line.startswith("{")]
        assert [line["status"] for line in lines if line.get("path") == "/v1/completions"] == [200]

        process = start(port)
        asked = pool.submit(get, port, "/v1/completions", body)
        time.sleep(0.5)
        process.kill()
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            asked.result()
        process.wait()
        process = start(port)
        assert get(port, "/v1/completions", {**body, "n": 1}) == 200
        process.terminate()
        assert process.wait(60) == 0
        assert process.stderr is not None
        process.stderr.close()
