"""A server that ends in order, whoever still waits.

    signal --> no new callers --> grace --> all who wait are told --> the engine stops, the device closes
    again  ---------------------> at once ------^
    the engine fails ---> all are told ---------^  and `failed` says so

Knows nothing about requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from coterie.core.errors import CoterieError, DeviceError
from coterie.server.connections import Connection
from coterie.server.events import PATH, Hub
from coterie.server.log import LOG
from coterie.server.supervisor import ENDS, READY, WORKS, notify, watched_s
from coterie.server.worker import Worker

GRACE_S = 5.0  # answers in flight may finish for so long
LAST_S = 3.0  # and their callers have so long to take what they are told, before their connections are cut
LOOK_S = 0.05
PROXIES = "FORWARDED_ALLOW_IPS"  # uvicorn's: whose X-Forwarded-For is believed; without it 127.0.0.1's
# A connection lies idle for so long: longer than clients keep theirs (httpx 5 seconds) or what stands before a server
# does (60). Who closed it first would now and then do so just when a request is on its way.
IDLE_S = 75
TAKE_S = 0.5  # who looks on has so long to take what is left
WAITING = 2048  # who connects, and is not taken yet; uvicorn's
# Where no more files may be open, asyncio (of Python 3.11 to 3.13) tries as often as its backlog says, logs each time
# and begins again a second later for each: within seconds it does nothing else. So it takes one connection at a time.
ONE = 1
NO_MORE, AGAIN_S = "socket.accept() out of system resource", 60.0
# Left to itself uvicorn takes httptools where that is installed, which holds as much of a head as anybody sends, and
# drops the body of who would rather speak HTTP/2 and says so, as Java's own client does.
HTTP: type[asyncio.Protocol] = Connection  # h11
_LOG = logging.getLogger("uvicorn.error")


class Server(uvicorn.Server):
    """Serves an application of `make_app` until SIGINT or SIGTERM; a second signal ends the grace, a third cuts.

    A fourth kills. SIGHUP, of a terminal that is gone, comes twice then, and counts once. Where it is ignored, by
    nohup, it stays so.
    """

    def __init__(self, app: Starlette, grace_s: float = GRACE_S) -> None:
        cut_s = max(1, round(grace_s + LAST_S))
        # Its lines go where ours do.
        config = uvicorn.Config(app, http=HTTP, log_level="warning", log_config=None, access_log=False, backlog=ONE)
        config.timeout_keep_alive, config.timeout_graceful_shutdown = IDLE_S, cut_s
        super().__init__(config)
        _LOG.addFilter(_is_no_cut)
        self._worker: Worker = app.state.worker
        self._hub: Hub = app.state.hub
        self._grace_s, self._asked_again, self.failed = grace_s, False, False
        self._full_until = 0.0
        self._worker.at_end(self._ended)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer from now on, and tell who waits for that."""
        if PROXIES not in os.environ and sockets and all(one.family == socket.AF_UNIX for one in sockets):
            self.config.forwarded_allow_ips = "*"  # at a file nobody asks but what stands before the server
        asyncio.get_running_loop().set_exception_handler(self._go_wrong)
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(WAITING)
        if every_s := watched_s():
            self._watching = asyncio.create_task(self._say_it_works(every_s))
        notify(READY)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGHUP too while it serves, and raise again what came."""
        with super().capture_signals():
            main = threading.current_thread() is threading.main_thread()
            if not main or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
                yield
                return
            before = signal.signal(signal.SIGHUP, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if sig == signal.SIGHUP and self.should_exit:
            return
        if self._asked_again:
            self.force_exit = True
            if threading.current_thread() is threading.main_thread():
                # The end waits for the step under way, which may never come back. The next signal waits for nothing.
                signal.signal(sig, signal.SIG_DFL)
        elif self.should_exit:
            self._asked_again = True
        else:
            super().handle_exit(sig, frame)
            LOG.info("told to end by %s: answers in flight may go on for %g s", signal.Signals(sig).name, self._grace_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the answers in flight, but not for ever; who only looks on is let go at once."""
        notify(ENDS)
        self._hub.close()
        telling, cutting = asyncio.create_task(self._tell()), asyncio.create_task(self._cut_readers())
        try:
            await super().shutdown(sockets)
            if self.force_exit:  # which leaves the application to be torn down, with a traceback
                await self.lifespan.shutdown()
        finally:
            telling.cancel()
            cutting.cancel()

    def _ended(self) -> None:
        """There will be no answers. Where nobody asked for that, whoever starts the server shall start it again."""
        if isinstance(self._worker.broken, DeviceError):
            self.failed = self.should_exit = True

    def _go_wrong(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What happens behind all requests: that no more files may be open is told in a sentence, now and then."""
        if context["message"] != NO_MORE:
            loop.default_exception_handler(context)
        elif loop.time() >= self._full_until:
            self._full_until = loop.time() + AGAIN_S
            count = len(self.server_state.connections)
            LOG.error("with %d connections no more can be taken (%s); raise ulimit -n", count, context["exception"])

    async def _say_it_works(self, every_s: float) -> None:
        """As long as the engine takes its turns; a step that never ends is for who watches to end."""
        with contextlib.suppress(CoterieError):
            while True:
                await self._worker.turn()
                notify(WORKS)
                await asyncio.sleep(every_s)

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
