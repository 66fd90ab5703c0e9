"""What `GET /openapi.json` says of responses: their types, and every status that a request may be answered with."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

JSON, STREAM = "application/json", "text/event-stream"

STATUSES = {
    400: "A field cannot be honoured; `error.param` names it.",
    401: "The key is missing or wrong.",
    404: "There is no such model.",
    408: "The request was sent too slowly.",
    413: "The request is too large.",
    421: "This server answers to another host name.",
    429: "The queue is full; Retry-After says when to ask again.",
    500: "The server or a model has failed.",
    503: "The server is shutting down.",
    504: "The request took too long.",
}
"""What a request that is refused, or that has failed, is told."""

ALWAYS = (400, 401, 408, 413, 421)
"""Statuses of any request: they are given before it is looked at."""

ANSWERS = (404, 429, 500, 503, 504)
"""Statuses of requests for answers."""

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "null"},
            },
        }
    },
}
"""OpenAI's error object."""


def responses(*types: str, also: tuple[int, ...] = ()) -> dict[int | str, dict[str, Any]]:
    """Returns the responses of a route, as FastAPI takes them.

    Args:
        *types: The media types of an answer.
        also: Statuses besides those of any request.
    """
    failed = {
        status: {"description": STATUSES[status], "content": {JSON: {"schema": ERROR}}}
        for status in sorted({*ALWAYS, *also})
    }
    return {200: {"description": "The answer.", "content": {one: {} for one in types}}, **failed}


def described(app: FastAPI) -> dict[str, Any]:
    """Returns the interface, without the status 422 that FastAPI adds: a field that is wrong is answered with 400."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in schema["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema
