"""Checks made before any route (key, host, size and time), and the counts and log lines of each request."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Collection
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits
from .metrics import Metrics
from .refusals import Refused

log = logging.getLogger("unmask.serving.access")

CLOSED = ("/v1/", "/metrics", "/openapi.json", "/docs")
"""Beginnings of the paths that need the key, if there is one."""

HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'"),
]
"""Of every response: a page asks nobody but this server."""

LOCAL = ("localhost", "127.0.0.1", "[::1]")
"""Names of this machine for itself."""


class Guard:
    """Refuses bad requests before anything else reads them, and logs the outcome of every request.

    The log contains no prompts and no answers.

    Args:
        app: The application that it guards.
        limits: Limits on sizes and times.
        metrics: Counts requests.
        key: The API key that requests must send (`Authorization: Bearer ...`); `None` requires none.
        hosts: Host names by which requests may address the server, so that a page of another site cannot reach it by a
            name of its own that points here; `None` allows any.
        paths: Known paths; all others are counted as one.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        key: str | None,
        hosts: Collection[str] | None,
        paths: Collection[str],
    ) -> None:
        self.app, self.limits, self.metrics, self.hosts = app, limits, metrics, hosts
        self.paths = frozenset(paths)
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # 499: the client hung up before there was a response
        about: dict[str, Any] = scope.setdefault("state", {}).setdefault("unmask", {})

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
            async with asyncio.timeout(self.limits.seconds + 2 * self.limits.slow):  # a client that does not read
                await self.app(scope, _replay(body, receive), noted)
        except Refused as refused:
            refused.headers.setdefault("Connection", "close")
            await refused.response()(scope, receive, noted)
        except (ConnectionError, TimeoutError):
            pass
        except Exception:
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.answered(path, status, seconds)
            line = {"method": scope["method"], "path": path, "status": status, "seconds": round(seconds, 6), **about}
            log.info("request", extra={"fields": line})

    def _check(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self.hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
            if name not in self.hosts:
                raise Refused("this server answers to localhost only; see --host", status=421)
        if self._key is None or not scope["path"].startswith(CLOSED):
            return
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        # Digests, so that the time of the comparison tells nothing, not even the length.
        if not hmac.compare_digest(_digest(given.strip()), self._key) or kind.lower() != b"bearer":
            raise Refused(
                "give the server's key: Authorization: Bearer ...", status=401, headers={"WWW-Authenticate": "Bearer"}
            )

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """Reads the body, if it arrives in time and is not too large."""
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        most = self.limits.body
        if length.isdigit() and int(length[:20]) > most:
            raise Refused(f"a request has at most {most} bytes, this one {int(length[:20])}", status=413)
        if scope["method"] in ("GET", "HEAD") and length == b"0" and b"transfer-encoding" not in headers:
            return b""
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.slow):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ConnectionError
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise Refused(f"a request has at most {most} bytes", status=413)
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise Refused(f"the request was not complete within {self.limits.slow:g} s", status=408) from None


def _digest(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=32).digest()


def _replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that repeats a body already read, and then passes on what arrives."""
    told = False

    async def again() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
