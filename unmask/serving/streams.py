"""Responses that are streams: a chunk or an event as soon as the engine tells of it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from .answering import Answering, Gone
from .asking import Wanted
from .events import Finished, Written
from .refusals import Refused, dumps
from .served import Served
from .shapes import Shapes
from .unmasking import end_event, start_event, step_event


def sse(events: AsyncGenerator[bytes, None]) -> Response:
    """A response of server-sent events."""
    return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def chunks(
    http: Request, answering: Answering, shapes: Shapes, rich: bool, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The chunks of a completion or a chat, as server-sent events.

    Args:
        http: The request.
        answering: What becomes of it.
        shapes: The form of the chunks.
        rich: Whether every evaluation is told of in between.
        include_usage: Whether the last chunk has the usage.
    """
    served, wanted, finished = shapes.served, shapes.wanted, []

    def extra(index: int, event: dict[str, Any]) -> bytes:
        return data({**shapes.head(True), "choices": [], "unmask": {"index": index, **event}})

    try:
        for chunk in shapes.opening():
            yield data(chunk)
        for index in range(len(wanted.asked) if rich else 0):
            yield extra(index, start_event(answering.request, wanted, index, served))
        async with contextlib.aclosing(answering.events()) as events:
            async for event in events:
                if isinstance(event, Written | Finished):
                    for chunk in shapes.chunks(event):
                        yield data(chunk)
                if rich and isinstance(event, Written):
                    yield extra(event.index, step_event(event, served))
                if isinstance(event, Finished):
                    finished.append(event)
                    if rich:
                        yield extra(event.index, end_event(event, wanted, served))
        used = shapes.usage(finished)
        note(http, used)
        if include_usage:
            yield data({**shapes.head(True), "choices": [], "usage": used})
        yield b"data: [DONE]\n\n"
    except Refused as refused:
        yield data(refused.body)
    except Gone:
        return


async def unmasking(answering: Answering, served: Served, wanted: Wanted) -> AsyncGenerator[bytes, None]:
    """The events of unmasking, as server-sent events."""
    try:
        yield data(start_event(answering.request, wanted, 0, served))
        async with contextlib.aclosing(answering.events()) as events:
            async for event in events:
                if isinstance(event, Written):
                    yield data(step_event(event, served))
                elif isinstance(event, Finished):
                    yield data(end_event(event, wanted, served))
    except Refused as refused:
        yield data({"type": "error", "message": refused.message})
    except Gone:
        return


def data(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(value) + b"\n\n"


def note(http: Request, usage: dict[str, Any]) -> None:
    """Leaves what an answer cost to the log."""
    own = usage["unmask"]
    http.state.unmask.update(
        prompt_tokens=usage["prompt_tokens"], new_tokens=usage["completion_tokens"], nfe=own["nfe"]
    )
