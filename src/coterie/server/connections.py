"""A client connection with time limits on an incomplete request head and on an answer that is not read.

    opened --HEAD_S--> a whole head --> answered --> idle: closed by the server's own limit, or the next head
                       none: closed         '--output is not read for UNTAKEN_S: cut

Knows nothing about what is asked.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 60.0  # from the first byte, or the connection's opening, to the end of a head; the same as nginx
UNTAKEN_S = 300.0  # if a write buffer of 64 KiB stays full for this long, the client is gone or a sleeping laptop


class Connection(H11Protocol):
    """uvicorn's connection, with limits on what a client can make it hold."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._late: asyncio.TimerHandle | None = None
        self._untaken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time limit for a head."""
        super().connection_made(transport)
        self._late = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """Process data; an incomplete head has until HEAD_S."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._arrived()
        elif self._late is None:
            self._late = self.loop.call_later(HEAD_S, self.transport.close)

    def pause_writing(self) -> None:
        """The client does not read for now."""
        super().pause_writing()
        self._untaken = self._untaken or self.loop.call_later(UNTAKEN_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads again."""
        super().resume_writing()
        self._taken()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client has not read the end of its answer."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # closing waits for it to drain
            self._untaken = self._untaken or self.loop.call_later(UNTAKEN_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed, by either side."""
        super().connection_lost(exc)
        self._arrived()
        self._taken()

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _taken(self) -> None:
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None
