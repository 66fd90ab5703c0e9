"""A request between the event loop of HTTP and the thread of the engine; whoever hangs up gives it up."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import AsyncGenerator, Sequence

from starlette.requests import Request as HttpRequest

from .asking import Wanted
from .engine import Engine
from .events import Event, Failed, Finished, Request
from .limits import Full
from .refusals import Refused

STATUS = {"request": 400, "timeout": 504, "model": 500, "shutdown": 503}
"""The status of a request that has failed, by the kind of failure."""


class Gone(Exception):
    """The client has hung up."""


def submit(engine: Engine, model: str, wanted: Wanted, watch: bool, http: HttpRequest) -> Answering:
    """Hands a request to the engine; it is given up if the client hangs up.

    Args:
        engine: The engine.
        model: The model that answers.
        wanted: What is wanted.
        watch: Whether every turn is told of.
        http: The request of HTTP, whose body has been read.

    Raises:
        Refused: If the queue is full, the server is about to stop, or the request is for more than it takes on.
    """
    if not engine.alive:
        raise Refused("the server is shutting down", status=503, headers={"Retry-After": "5"})
    loop, told = asyncio.get_running_loop(), asyncio.Queue[Sequence[Event] | None]()

    def tell(events: Sequence[Event]) -> None:
        loop.call_soon_threadsafe(told.put_nowait, events)

    request = Request(f"unmask-{uuid.uuid4().hex}", model, wanted.asked, tell, watch, wanted.candidates)
    try:
        engine.submit(request)
    except Full as full:
        raise Refused(str(full), status=429, headers={"Retry-After": str(math.ceil(full.seconds))}) from None
    except ValueError as error:
        raise Refused(str(error), "n" if "answers" in str(error) else "max_tokens") from None
    return Answering(engine, request, told, http)


class Answering:
    """A request that is being answered.

    Attributes:
        request: The request.
    """

    def __init__(
        self, engine: Engine, request: Request, told: asyncio.Queue[Sequence[Event] | None], http: HttpRequest
    ) -> None:
        self.engine, self.request, self._told = engine, request, told
        self._left = len(request.asked)
        self._watcher = asyncio.create_task(self._watch(http))

    async def events(self) -> AsyncGenerator[Event, None]:
        """Yields what the engine tells, up to the last answer.

        Raises:
            Refused: If the request has failed.
            Gone: If the client has hung up.
        """
        try:
            while self._left:
                events = await self._told.get()
                if events is None:
                    raise Gone
                for event in events:
                    if isinstance(event, Failed):
                        raise Refused(event.message, status=STATUS[event.kind])
                    self._left -= isinstance(event, Finished)
                    yield event
        finally:
            self._watcher.cancel()
            if self._left:
                self.engine.cancel(self.request)

    async def _watch(self, http: HttpRequest) -> None:
        """Waits until the client hangs up, and gives the request up at once: a response may be stuck in sending."""
        while (await http.receive())["type"] != "http.disconnect":
            pass
        if self._left:
            self.engine.cancel(self.request)
            self._told.put_nowait(None)
