"""A request between the event loop of HTTP and the thread of the engine; whoever hangs up gives it up."""

from __future__ import annotations

import asyncio
import functools
import math
import uuid
from collections import deque
from collections.abc import AsyncGenerator, Sequence

from starlette.requests import Request as HttpRequest

from .asking import Wanted
from .engine import Engine
from .events import Event, Failed, Finished, Request
from .limits import Full
from .refusals import Refused

STATUS = {"request": 400, "timeout": 504, "model": 500, "shutdown": 503}
"""The status of a request that has failed, by the kind of failure."""


Told = asyncio.Queue[Sequence[Event] | None]
"""What is told of a request; `None` if its client has hung up."""


class Gone(Exception):
    """The client has hung up."""


class Mailbox:
    """Takes events from the thread of the engine to an event loop, which is woken once for all that have come by then.

    Args:
        loop: The event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._posted: deque[tuple[Told, Sequence[Event]]] = deque()
        self._woken = False

    def post(self, told: Told, events: Sequence[Event]) -> None:
        """Puts events into a queue of the loop; may be called from any one thread.

        Raises:
            RuntimeError: If the loop has gone.
        """
        self._posted.append((told, events))
        if not self._woken:
            self._woken = True
            self.loop.call_soon_threadsafe(self._hand_over)

    def _hand_over(self) -> None:
        self._woken = False  # first: what is posted from now on may wake the loop once too often, but never waits
        while self._posted:
            told, events = self._posted.popleft()
            told.put_nowait(events)


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
    told: Told = asyncio.Queue()
    mailbox: Mailbox = http.app.state.mailbox
    tell = functools.partial(mailbox.post, told)
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

    def __init__(self, engine: Engine, request: Request, told: Told, http: HttpRequest) -> None:
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
