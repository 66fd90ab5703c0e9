"""The routes of the server: those of OpenAI's API, those of unmasking, and those for operating the server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.responses import Response

from .. import __version__
from .answering import Gone, Mailbox, submit
from .asking import Wanted, wanted_chat, wanted_completion, wanted_unmasking
from .bodies import ChatBody, CompletionBody, Draw, UnmaskBody
from .described import ANSWERS, JSON, STREAM, described, responses
from .engine import Engine
from .events import Finished, Written
from .guard import Guard
from .limits import Limits
from .metrics import Metrics
from .named import rules
from .refusals import Json, Refused
from .served import Served
from .shapes import Shapes
from .streams import chunks, note, sse, unmasking

PAGE = Path(__file__).with_name("page")
LONG = 20_000
"""Bytes of a request from which on it is encoded in a thread of its own, so that others do not wait."""

_Body = TypeVar("_Body", bound=Draw)


def create_app(
    served: Sequence[Served],
    limits: Limits | None = None,
    *,
    key: str | None = None,
    hosts: Collection[str] | None = None,
    log_prompts: bool = False,
) -> FastAPI:
    """Makes the application; its engine starts and ends with it.

    Args:
        served: The models.
        limits: Limits on sizes, times and the number of requests.
        key: The API key that requests must send; `None` requires none.
        hosts: Host names by which requests may address the server; `None` allows any.
        log_prompts: Whether to write prompts to the log.
    """
    limits, metrics = limits or Limits(), Metrics()
    engine = Engine({one.name: one.runner() for one in served}, limits, metrics)
    metrics.watch(engine)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.mailbox = Mailbox(asyncio.get_running_loop())
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)

    app = FastAPI(
        title="unmask",
        version=__version__,
        description="Masked diffusion models, as OpenAI's clients ask them.",
        lifespan=lifespan,
        openapi_url="/openapi.json",
        docs_url=None,  # they fetch scripts from another server
        redoc_url=None,
    )
    app.state.engine, app.state.metrics = engine, metrics
    app.openapi = functools.partial(described, app)
    _add_errors(app)
    _add_answers(app, list(served), engine, log_prompts)
    _add_upkeep(app, list(served), engine, metrics)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    paths = [getattr(route, "path", "") for route in app.routes]
    app.add_middleware(Guard, limits=limits, metrics=metrics, key=key, hosts=hosts, paths=[*paths, "/"])
    return app


def _add_errors(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return error.response()

    async def malformed(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return refusal_of(error).response()

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return Refused(str(error.detail), status=error.status_code, headers=error.headers).response()

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it

    async def broken(request: Request, error: Exception) -> Response:
        return Refused("the server has failed; its log says why", status=500).response()

    app.add_exception_handler(Exception, broken)
    for kind, handler in (
        (Refused, refused),
        (RequestValidationError, malformed),
        (HTTPException, unknown),
        (Gone, gone),
    ):
        app.add_exception_handler(kind, handler)


def refusal_of(error: RequestValidationError) -> Refused:
    """Returns the refusal of an invalid body; it names the first invalid field."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return Refused(f"the request is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}")
    if not where:
        return Refused("the request is a JSON object, sent with Content-Type: application/json")
    param, said = where[0], first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return Refused(f"unknown field {'.'.join(where)[:200]}", param[:200])
    given = "" if first["type"] == "missing" else f", got {first['input']!r:.60}"
    return Refused(f"{'.'.join(where)[:200]}: {said[:1].lower()}{said[1:]}{given}", param[:200])


def _add_answers(app: FastAPI, served: Sequence[Served], engine: Engine, log_prompts: bool) -> None:
    def named(name: str | None) -> Served:
        found = next((one for one in served if name in (None, one.name)), None)
        if found is None:
            known = ", ".join(one.name for one in served)
            raise Refused(f"there is no model {name!r:.80}; this server has {known}", "model", status=404)
        return found

    async def wanted(
        http: Request, body: _Body, ask: Callable[[Served, _Body, Sequence[Served]], Wanted]
    ) -> tuple[Served, Wanted]:
        model = named(body.model)
        if int(http.headers.get("content-length", LONG)) < LONG:
            found = ask(model, body, served)
        else:
            found = await asyncio.to_thread(ask, model, body, served)
        http.state.unmask.update(model=model.name, rule=str(found.rule), answers=len(found.asked))
        if log_prompts:
            http.state.unmask["prompts"] = [asked.prompt.text for asked in found.asked]
        return model, found

    async def openai(http: Request, body: CompletionBody | ChatBody, model: Served, found: Wanted) -> Response:
        chat, stream = isinstance(body, ChatBody), bool(body.stream)
        if body.stream_options is not None and not stream:
            raise Refused("stream_options goes with stream: true", "stream_options")
        if body.events and not stream:
            raise Refused("events of unmasking go with stream: true", "unmask")
        logprobs = bool(body.logprobs) if chat else body.logprobs is not None
        answering = submit(engine, model.name, found, stream or logprobs, http)
        form = "chat" if chat else "completion"
        shapes = Shapes(form, model, found, answering.request, logprobs, found.candidates)
        if stream:
            include_usage = bool(body.stream_options and body.stream_options.include_usage)
            return sse(chunks(http, answering, shapes, body.events, include_usage))
        finished: dict[int, Finished] = {}
        async with contextlib.aclosing(answering.events()) as events:
            async for event in events:
                if isinstance(event, Written):
                    shapes.note(event)
                elif isinstance(event, Finished):
                    finished[event.index] = event
        whole = shapes.whole([finished[index] for index in sorted(finished)])
        note(http, whole["usage"])
        return Json(whole)

    @app.post("/v1/completions", tags=["openai"], responses=responses(JSON, STREAM, also=ANSWERS))
    async def completions(body: CompletionBody, http: Request) -> Response:
        """Continues prompts, or fills gaps: before `suffix`, or at the places that `spans` names."""
        return await openai(http, body, *await wanted(http, body, wanted_completion))

    @app.post("/v1/chat/completions", tags=["openai"], responses=responses(JSON, STREAM, also=ANSWERS))
    async def chats(body: ChatBody, http: Request) -> Response:
        """Answers a chat."""
        return await openai(http, body, *await wanted(http, body, wanted_chat))

    @app.post("/v1/unmask", tags=["unmask"], responses=responses(STREAM, also=ANSWERS))
    async def unmask(body: UnmaskBody, http: Request) -> Response:
        """Returns a stream of events: every position that is written or erased, evaluation by evaluation."""
        model, found = await wanted(http, body, wanted_unmasking)
        answering = submit(engine, model.name, found, True, http)
        return sse(unmasking(answering, model, found))


def _add_upkeep(app: FastAPI, served: Sequence[Served], engine: Engine, metrics: Metrics) -> None:
    created = int(time.time())

    @app.get("/v1/models", tags=["openai"], responses=responses(JSON))
    async def models() -> Response:
        """Lists the models."""
        return Json({"object": "list", "data": [about(one) for one in served]})

    @app.get("/v1/models/{name}", tags=["openai"], responses=responses(JSON, also=(404,)))
    async def model(name: str) -> Response:
        """Describes a model."""
        found = next((one for one in served if one.name == name), None)
        if found is None:
            raise Refused(f"there is no model {name!r:.80}", "model", status=404)
        return Json(about(found))

    def about(one: Served) -> dict[str, Any]:
        own = {"id": one.name, "object": "model", "created": created, "owned_by": "unmask"}
        return {**own, "unmask": one.about()}

    @app.get("/v1/rules", tags=["unmask"], responses=responses(JSON))
    async def named_rules() -> Response:
        """Lists the rules (which decide the positions to unmask at each step), with their settings."""
        return Json({"object": "list", "data": rules()})

    @app.get("/healthz", tags=["upkeep"], responses=responses(JSON))
    async def healthz() -> Response:
        """Reports that the process is alive."""
        return Json({"status": "ok"})

    @app.get("/readyz", tags=["upkeep"], responses=responses(JSON, also=(503,)))
    async def readyz() -> Response:
        """Reports whether the server accepts requests."""
        return Json({"status": "ready"}) if engine.alive else Json({"status": "stopping"}, 503)

    @app.get("/metrics", tags=["upkeep"], responses=responses("text/plain"))
    async def counted() -> Response:
        """Returns the server's metrics, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")
