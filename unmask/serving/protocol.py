"""HTTP as uvicorn speaks it, but a client has to be done with the head of a request in time."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def impatient(seconds: float) -> type[H11Protocol]:
    """Returns the protocol with a limit: a connection whose request has no complete head by then is closed.

    Uvicorn waits for ever for a client that sends its head a letter at a time, or nothing.

    Args:
        seconds: From when the connection is made, or from the first letter of a further request.
    """

    class Impatient(H11Protocol):
        """A connection with a limit for the head of a request."""

        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Begins to count."""
            super().connection_made(transport)
            self._patience = self.loop.call_later(seconds, self._too_slow)

        def data_received(self, data: bytes) -> None:
            """Counts on while there is no complete head."""
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._be_patient()
            elif self._patience is None:
                self._patience = self.loop.call_later(seconds, self._too_slow)

        def connection_lost(self, exc: Exception | None) -> None:
            """Stops to count."""
            self._be_patient()
            super().connection_lost(exc)

        def _be_patient(self) -> None:
            if self._patience is not None:
                self._patience.cancel()
                self._patience = None

        def _too_slow(self) -> None:
            self._patience = None
            if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
                self.transport.close()

    return Impatient
