"""A server that ends in order, whoever still waits.

    signal --> no new callers --> grace --> all who wait are told --> the engine stops, the device closes
    again  ---------------------> at once ------^

Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.config import HTTPProtocolType

from coterie.server.events import PATH, Hub
from coterie.server.log import LOG
from coterie.server.worker import Worker

GRACE_S = 5.0  # answers in flight may finish for so long
LAST_S = 3.0  # and their callers have so long to take what they are told, before their connections are cut
LOOK_S = 0.05
# A connection lies idle for so long: longer than clients keep theirs (httpx 5 seconds) or what stands before a server
# does (60). Who closed it first would now and then do so just when a request is on its way.
IDLE_S = 75
TAKE_S = 0.5  # who looks on has so long to take what is left
# Left to itself uvicorn takes httptools where that is installed, which holds as much of a head as anybody sends, and
# drops the body of who would rather speak HTTP/2 and says so, as Java's own client does.
HTTP: HTTPProtocolType = "h11"
_LOG = logging.getLogger("uvicorn.error")


class Server(uvicorn.Server):
    """Serves an application of `make_app` until SIGINT or SIGTERM; a second signal ends the grace, a third cuts."""

    def __init__(self, app: Starlette, grace_s: float = GRACE_S) -> None:
        cut_s = max(1, round(grace_s + LAST_S))
        # Its lines go where ours do.
        config = uvicorn.Config(app, http=HTTP, log_level="warning", log_config=None, access_log=False)
        config.timeout_keep_alive, config.timeout_graceful_shutdown = IDLE_S, cut_s
        super().__init__(config)
        _LOG.addFilter(_is_no_cut)
        self._worker: Worker = app.state.worker
        self._hub: Hub = app.state.hub
        self._grace_s, self._asked_again = grace_s, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._asked_again:
            self.force_exit = True
        elif self.should_exit:
            self._asked_again = True
        else:
            super().handle_exit(sig, frame)
            LOG.info("told to end by %s: answers in flight may go on for %g s", signal.Signals(sig).name, self._grace_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the answers in flight, but not for ever; who only looks on is let go at once."""
        self._hub.close()
        telling, cutting = asyncio.create_task(self._tell()), asyncio.create_task(self._cut_readers())
        try:
            await super().shutdown(sockets)
            if self.force_exit:  # which leaves the application to be torn down, with a traceback
                await self.lifespan.shutdown()
        finally:
            telling.cancel()
            cutting.cancel()

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._grace_s
        while loop.time() < end_s and not self._asked_again:
            await asyncio.sleep(LOOK_S)
        self._worker.end()

    async def _cut_readers(self) -> None:
        """Who looks on and takes nothing, as a sleeping laptop does, is not waited for."""
        await asyncio.sleep(TAKE_S)
        for connection in tuple(self.server_state.connections):
            scope = getattr(connection, "scope", None)  # of its request, once there was one
            if scope and scope.get("path") == PATH:
                connection.transport.abort()


def _is_no_cut(record: logging.LogRecord) -> bool:
    """False for the traceback of a request that was cut: nothing is wrong with it."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
