"""A hub on this machine, for tests: the few routes that huggingface_hub asks, over folders."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "somebody/model"


@dataclass
class Request:
    """What was asked: `what` is `"list"`, or the name of a file."""

    method: str
    what: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """One model, `NAME`, and how its server behaves.

    Attributes:
        url: Where the server is.
        revisions: The folder of each branch.
        gated: Whether the files need `token`.
        token: The token that opens them.
        breaks: Files that break off in the middle when they are first asked for.
        down: Whether every request fails.
        asked: What was asked so far.
    """

    url: str = ""
    revisions: dict[str, Path] = field(default_factory=dict)
    gated: bool = False
    token: str | None = None
    breaks: set[str] = field(default_factory=set)
    down: bool = False
    asked: list[Request] = field(default_factory=list)

    def commit(self, revision: str) -> str | None:
        """The hash of a branch or commit, `None` if there is none."""
        hashes = {name: hashlib.sha1(name.encode()).hexdigest() for name in self.revisions}
        return hashes.get(revision) or next((one for one in hashes.values() if one == revision), None)

    def folder(self, commit: str) -> Path:
        """The folder of a commit."""
        return next(folder for name, folder in self.revisions.items() if self.commit(name) == commit)

    @property
    def files(self) -> set[str]:
        """The files that were asked for."""
        return {one.what for one in self.asked if one.what != "list"}


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Runs the server of a hub in a thread."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer(self, hub)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(asked: BaseHTTPRequestHandler, hub: Hub) -> None:
    """Answers one request."""
    api, resolve = f"/api/models/{NAME}", f"/{NAME}/resolve/"
    path = urlsplit(asked.path).path
    token = (asked.headers.get("Authorization") or "").removeprefix("Bearer ") or None
    what = path.removeprefix(resolve).partition("/")[2] if path.startswith(resolve) else "list"
    if path.startswith((api, resolve)):  # huggingface_hub also asks what else a hub knows
        hub.asked.append(Request(asked.command, unquote(what), asked.headers.get("Range"), token))
    if hub.down:
        return send(asked, 503)
    if token is not None and token != hub.token:
        return send(asked, 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
    if path == api or path.startswith((f"{api}/revision/", f"{api}/tree/")):
        commit = hub.commit(unquote(path.removeprefix(api).split("/")[-1]) or "main")
        if commit is None:
            return send(asked, 404, {"X-Error-Code": "RevisionNotFound"})
        return send(asked, 200, {}, json.dumps(listing(hub, commit, tree="/tree/" in path)).encode())
    if not path.startswith(resolve):
        return send(asked, 401 if token is None else 404, {"X-Error-Code": "RepoNotFound"})
    if hub.gated and token is None:
        return send(asked, 401, {"X-Error-Code": "GatedRepo"})
    return send_file(asked, hub, unquote(path.removeprefix(resolve)))


def listing(hub: Hub, commit: str, tree: bool) -> Any:
    """The files of a commit, as the hub lists them."""
    folder = hub.folder(commit)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}
    if tree:
        return [{"type": "file", "oid": "0" * 40, "size": size, "path": name} for name, size in sizes.items()]
    return {
        "id": NAME,
        "sha": commit,
        "siblings": [{"rfilename": name, "size": size, "blobId": "0" * 40} for name, size in sizes.items()],
    }


def send_file(asked: BaseHTTPRequestHandler, hub: Hub, place: str) -> None:
    """Sends a file, or the rest of it, or half of it."""
    revision, _, name = place.partition("/")
    commit = hub.commit(revision)
    if commit is None or not (hub.folder(commit) / name).is_file():
        return send(asked, 404, {"X-Error-Code": "EntryNotFound"})
    content = (hub.folder(commit) / name).read_bytes()
    headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
    start = int((asked.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
    if start:
        headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    broken = asked.command == "GET" and name in hub.breaks
    if broken:
        hub.breaks.remove(name)
        asked.close_connection = True
    return send(asked, 206 if start else 200, headers, content[start:], len(content) // 2 if broken else None)


def send(
    asked: BaseHTTPRequestHandler,
    status: int,
    headers: dict[str, str] | None = None,
    content: bytes = b"",
    only: int | None = None,
) -> None:
    """Sends an answer; `only` so many bytes of what it announces."""
    asked.send_response(status)
    for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
        asked.send_header(name, value)
    asked.end_headers()
    if asked.command == "GET":
        asked.wfile.write(content[:only])
