"""What a server does not take, and that nobody else notices: sizes, times, keys, hosts, a full queue, a stop."""

from __future__ import annotations

import io
import json
import logging
import random
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import APIError, APIStatusError, AuthenticationError
from serving import CHAT, LONG, ONE, Running, serving

from unmask.serving.guard import LOCAL
from unmask.serving.limits import Limits
from unmask.serving.run import HEAD, JsonLines, is_local

SMALL: dict[str, Any] = {"prompt": "7", "max_tokens": 2, "temperature": 0}


@pytest.fixture(scope="module")
def server(models):
    with serving(models, Limits(rows=4, slow=1.0, body=200_000)) as running:
        yield running


def raw(server: Running, *parts: bytes, pause: float = 0.0, timeout: float = 20.0) -> bytes:
    """What the server answers to bytes that are sent part by part, up to where it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as connection:
        answer = b""
        try:
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        except (BrokenPipeError, ConnectionResetError):
            pass
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def answers(server: Running) -> None:
    """The server still answers."""
    status, _, content = server.ask("/v1/completions", SMALL)
    assert status == 200, content


def accepts(server: Running) -> bool:
    """Whether the server takes connections."""
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=5).close()
    except OSError:
        return False
    return True


def test_a_full_queue_says_when_to_come_again(models):
    with serving(models[:1], Limits(rows=1, queue=20)) as server:
        started = threading.Event()

        def long() -> int:
            started.set()
            return server.ask("/v1/completions", {"prompt": "7", "n": 20, "max_tokens": 8, **ONE, **LONG})[0]

        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(long)
            while server.engine.load("chat")[0] < 10:
                time.sleep(0.001)
            status, headers, content = server.ask("/v1/completions", {**SMALL, "n": 20})
            assert status == 429
            assert 1 <= int(headers["retry-after"]) <= 60
            assert json.loads(content)["error"]["type"] == "rate_limit_error"
            assert server.ask("/v1/completions", SMALL)[0] == 200
            assert first.result() == 200


def test_a_request_has_its_time(models):
    with serving(models[:1], Limits(rows=1, seconds=0.3)) as server:
        body = {"prompt": "7", "n": 100, "max_tokens": 32, **ONE, **LONG}
        status, _, content = server.ask("/v1/completions", body)
        assert (status, json.loads(content)["error"]["type"]) == (504, "timeout_error")
        (*_, last) = server.events({**body, "stream": True}, "/v1/completions")
        assert "took longer than 0.3 s" in last["error"]["message"]
        options: dict[str, Any] = {"model": "chat", "prompt": "7", "n": 100, "max_tokens": 32, "stream": True}
        stream = server.client().completions.create(extra_body={**ONE, **LONG}, **options)
        with pytest.raises(APIError, match="took longer"):
            list(stream)
        server.idle()


def test_the_key_is_asked_for(models):
    with serving(models[:1], key="s3cret") as server:
        assert server.client(key="s3cret").chat.completions.create(model="chat", messages=CHAT, max_tokens=2)
        for key in ("s3cre", "s3crets", "S3CRET", "x" * 10_000):
            with pytest.raises(AuthenticationError):
                server.client(key=key).models.list()
        for path in ("/v1/models", "/metrics", "/openapi.json", "/v1/rules"):
            assert server.ask(path)[0] == 401
            assert server.ask(path, headers={"Authorization": "s3cret"})[0] == 401
            assert server.ask(path, headers={"Authorization": "Basic s3cret"})[0] == 401
            assert server.ask(path, headers={"Authorization": "bearer s3cret"})[0] == 200
        for path in ("/", "/healthz", "/readyz"):
            assert server.ask(path)[0] == 200


def test_a_local_server_answers_to_local_names(models):
    with serving(models[:1], hosts=LOCAL) as server:
        for host, status in (
            ("localhost", 200),
            ("127.0.0.1:99", 200),
            ("[::1]:5", 200),
            ("evil.example", 421),
            ("", 421),
        ):
            assert server.ask("/v1/models", headers={"Host": host})[0] == status
    assert [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "example.org")] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_body_of_a_hundred_megabytes_is_refused_before_it_is_read(server):
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    began = time.monotonic()
    answer = raw(server, head + b"Content-Length: 104857600\r\n\r\n", b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"at most 200000 bytes" in answer
    chunk = b"10000\r\n" + b"y" * 65536 + b"\r\n"
    answer = raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 20)
    assert b" 413 " in answer[:20] or answer == b""  # or it was closed while more was being sent
    assert time.monotonic() - began < 10
    answers(server)


def test_a_head_without_end_is_refused(server):
    bomb = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 100) for n in range(2 * HEAD // 100))
    assert raw(server, bomb).startswith(b"HTTP/1.1 400 ")
    answers(server)


def test_slow_clients_are_left(server):
    slow = [b"G", b"E", b"T", b" ", b"/", b" ", b"H", b"T", b"T", b"P"]
    with ThreadPoolExecutor(24) as pool:
        began = time.monotonic()
        silent = [pool.submit(raw, server, b"") for _ in range(8)]
        heads = [pool.submit(raw, server, *slow, pause=0.3) for _ in range(8)]
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n"
        bodies = [pool.submit(raw, server, head, *[b" "] * 8, pause=0.3) for _ in range(8)]
        time.sleep(0.2)
        answers(server)
        assert time.monotonic() - began < 5
        assert {one.result() for one in [*silent, *heads]} == {b""}
        assert all(one.result().startswith(b"HTTP/1.1 408 ") for one in bodies)
    # A second request of a connection has the same time.
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /heal")
        began = time.monotonic()
        while connection.recv(65536):
            pass
        assert 0.5 < time.monotonic() - began < 5


RULES = (
    *("", ":", "x" * 2000, "topk", "topk:k", "topk:k=", "topk:k=x", "topk:k=1e400", "topk:k=-1", "groups:sizes=1+x"),
    *("steps:steps=99999999", "dependence-bound:gamma=1,profile=../x", "lookahead:budget=steps:steps=99999999"),
)
"""Rules that there are not, or that cost too much."""


def malformed(draw: random.Random) -> tuple[str, bytes]:
    """A body that no request has."""
    path = draw.choice(("/v1/completions", "/v1/chat/completions", "/v1/unmask"))
    body: dict[str, Any] = {"temperature": 0, "max_tokens": 2}
    body |= {"messages": list(CHAT)} if "chat" in path else {"prompt": "7"}
    junk: list[Any] = [None, True, -1, 1e308, 2**70, "x", "\ud800", [], [[]], {}, {"a": None}, [1, "x"], "\0", -0.5]
    kind = draw.randrange(8)
    if kind == 0:
        text = json.dumps(body)
        return path, text[: draw.randrange(1, len(text))].encode()
    if kind == 1:
        return path, draw.choice(
            (b"", b"null", b"[]", b"7", b'"x"', b"\xff\xfe{}", b"{]", b"[" * 50_000, b"NaN", b"\0" * 9)
        )
    if kind == 2:
        body["".join(draw.choice("abcxyz_\u00e9\ud800") for _ in range(draw.randrange(1, 12))) + "?"] = draw.choice(
            junk
        )
    elif kind == 3:
        fields = {"temperature": [-1, "x", [], float("nan"), 1e9], "max_tokens": [0, 1.5, "2", 10**30, -5, []]}
        name = draw.choice(list(fields))
        body[name] = draw.choice(fields[name])
    elif kind == 4:
        name = "messages" if "chat" in path else "prompt"
        body[name] = draw.choice([5, {}, [{}], [[]], [{"role": "user"}], [[-1]], [{"role": 1, "content": "x"}], True])
    elif kind == 5:
        body["stop"] = draw.choice([5, {}, ["a"] * 99, [""], [None], [["a"]]])
    elif kind == 6:
        body["rule"] = draw.choice(RULES)
    else:
        text = (
            json.dumps(body).replace("2", "2" * 5000, 1)
            if draw.random() < 0.5
            else json.dumps(body)[:-1] + ',"x":' + "[" * 3000
        )
        return path, text.encode()
    return path, json.dumps(body).encode()


def test_a_thousand_malformed_bodies_are_refused_with_a_reason(server):
    draw = random.Random(0)
    connection = server.connection()
    for _ in range(1000):
        path, body = malformed(draw)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        content = response.read()
        assert 400 <= response.status < 500, (path, body[:200], content)
        error = json.loads(content)["error"]
        assert error["message"], body[:200]
        assert set(error) == {"message", "type", "param", "code"}
        if response.getheader("connection") == "close":
            connection.close()
    connection.close()
    answers(server)


def test_other_methods_paths_and_types_are_refused(server):
    assert server.ask("/v1/nothing")[0] == 404
    assert server.ask("/../pyproject.toml")[0] == 404
    assert server.ask("/v1/completions")[0] in (404, 405)
    status, _, content = server.ask("/v1/completions", SMALL, {"Content-Type": "text/plain"})
    assert status == 400
    assert "application/json" in json.loads(content)["error"]["message"]


def test_the_log_has_no_prompt_unless_it_is_told_to(models):
    for told in (False, True):
        written = io.StringIO()
        handler = logging.StreamHandler(written)
        handler.setFormatter(JsonLines())
        logger = logging.getLogger("unmask.serving")
        logger.addHandler(handler)
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            with serving(models[:1], log_prompts=told) as server:
                server.ask("/v1/completions", {**SMALL, "prompt": "12+35="})
                server.ask("/v1/completions", {**SMALL, "prompt": "12+35=", "rule": "12+35="})
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
        lines = [json.loads(line) for line in written.getvalue().splitlines()]
        requests = [line for line in lines if line["message"] == "request"]
        first, second = next(line for line in requests if "prompt_tokens" in line), requests[-1]
        assert (first["path"], first["status"], first["model"], second["status"]) == (
            "/v1/completions",
            200,
            "chat",
            400,
        )
        assert first["prompt_tokens"] == 6
        assert ("12+35=" in written.getvalue()) == told


def test_told_to_stop_it_finishes_what_it_has_begun(models):
    from unmask.serving.app import create_app
    from unmask.serving.run import configured

    limits = Limits(rows=2)
    app = create_app(models[:1], limits)
    uvicorn = configured(app, limits, "127.0.0.1", 0, 20)
    thread = threading.Thread(target=uvicorn.run, daemon=True)
    thread.start()
    while not uvicorn.started:
        time.sleep(0.01)
    server = Running(uvicorn.servers[0].sockets[0].getsockname()[1], app.state.engine, app.state.metrics)
    body = {"prompt": "7", "n": 8, "max_tokens": 8, **ONE, **LONG}
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(server.ask, "/v1/completions", body)
        stream = pool.submit(server.events, {**body, "stream": True}, "/v1/completions")
        while sum(server.engine.load("chat")) < 12:
            time.sleep(0.001)
        uvicorn.handle_exit(signal.SIGTERM, None)
        while accepts(server):
            time.sleep(0.01)
        assert whole.result()[0] == 200
        assert sum(choice["finish_reason"] is not None for event in stream.result() for choice in event["choices"]) == 8
    thread.join(20)
    assert not thread.is_alive()
    assert not server.engine.alive


def test_a_stop_that_is_not_waited_for_breaks_the_connection_and_never_answers_wrongly(models):
    with serving(models[:1], Limits(rows=1)) as server, ThreadPoolExecutor(1) as pool:
        body = {"prompt": "7", "n": 100, "max_tokens": 32, **ONE, **LONG}
        asked = pool.submit(server.ask, "/v1/completions", body)
        while server.engine.load("chat")[0] < 50:
            time.sleep(0.001)
        server.engine.stop()
        assert asked.result()[0] == 503
        status, headers, _ = server.ask("/readyz")
        assert status == 503
        status, headers, _ = server.ask("/v1/completions", SMALL)
        assert (status, headers["retry-after"]) == (503, "5")
        with pytest.raises(APIStatusError):
            server.client().completions.create(model="chat", prompt="7")
