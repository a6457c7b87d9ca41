"""A server that shuts down in order, even while clients wait.

    signal --> no new connections --> grace period --> waiting requests fail --> the engine stops, the device closes
    again  ------------------------> at once -----------^
    the engine fails ---> all requests fail ------------^  and `failed` is set

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

GRACE_S = 5.0  # grace period for answers in flight
LAST_S = 3.0  # further time for clients to read their last bytes, before connections are cut
LOOK_S = 0.05
PROXIES = "FORWARDED_ALLOW_IPS"  # uvicorn's variable: proxies whose X-Forwarded-For is trusted; by default 127.0.0.1
# Idle limit of a connection: longer than those of clients (httpx: 5 seconds) and reverse proxies (60). If the server
# closed first, it would now and then do so just when a request is on its way.
IDLE_S = 75
TAKE_S = 0.5  # time for readers of /v1/events to take what is left
WAITING = 2048  # listen backlog, uvicorn's default
# When file descriptors run out, asyncio (of Python 3.11 to 3.13) tries as many accepts as its backlog, logs each
# failure and schedules a retry for each one second later: within seconds it does nothing else. So accept one at a time.
ONE = 1
NO_MORE, AGAIN_S = "socket.accept() out of system resource", 60.0
# By default uvicorn uses httptools if installed, which buffers request heads without a limit and drops the body of
# clients that offer an upgrade to HTTP/2, such as Java's.
HTTP: type[asyncio.Protocol] = Connection  # h11
_LOG = logging.getLogger("uvicorn.error")


class Server(uvicorn.Server):
    """Serves an application of `make_app` until SIGINT or SIGTERM.

    A second signal ends the grace period, a third cuts connections, a fourth kills.
    SIGHUP, which a closing terminal sends twice, counts once. If it is ignored (nohup), it stays ignored.
    """

    def __init__(self, app: Starlette, grace_s: float = GRACE_S) -> None:
        cut_s = max(1, round(grace_s + LAST_S))
        # uvicorn logs through our handlers.
        config = uvicorn.Config(app, http=HTTP, log_level="warning", log_config=None, access_log=False, backlog=ONE)
        config.timeout_keep_alive, config.timeout_graceful_shutdown = IDLE_S, cut_s
        super().__init__(config)
        _LOG.addFilter(_is_no_cut)
        self._worker: Worker = app.state.worker
        self._hub: Hub = app.state.hub
        self._grace_s, self._asked_again, self.failed = grace_s, False, False
        self._full_until = 0.0
        self._worker.on_end(self._ended)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start serving, and notify the service manager."""
        if PROXIES not in os.environ and sockets and all(one.family == socket.AF_UNIX for one in sockets):
            self.config.forwarded_allow_ips = "*"  # on a Unix socket only a reverse proxy connects
        asyncio.get_running_loop().set_exception_handler(self._go_wrong)
        await super().startup(sockets)
        for one in sockets or ():
            one.listen(WAITING)
        if every_s := watched_s():
            self._watching = asyncio.create_task(self._say_it_works(every_s))
        notify(READY)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Also handle SIGHUP while serving, and re-raise what was received."""
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
        """Handle a signal."""
        if sig == signal.SIGHUP and self.should_exit:
            return
        if self._asked_again:
            self.force_exit = True
            if threading.current_thread() is threading.main_thread():
                # The shutdown waits for the present step, which may hang; the next signal must kill.
                signal.signal(sig, signal.SIG_DFL)
        elif self.should_exit:
            self._asked_again = True
        else:
            super().handle_exit(sig, frame)
            LOG.info("told to end by %s: answers in flight may go on for %g s", signal.Signals(sig).name, self._grace_s)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the answers in flight, within limits; readers of events are released at once."""
        notify(ENDS)
        self._hub.close()
        telling, cutting = asyncio.create_task(self._tell()), asyncio.create_task(self._cut_readers())
        try:
            await super().shutdown(sockets)
            if self.force_exit:  # else the application would be torn down with a traceback
                await self.lifespan.shutdown()
        finally:
            telling.cancel()
            cutting.cancel()

    def _ended(self) -> None:
        """There will be no more answers. If the engine failed, exit with an error, so that the server is restarted."""
        if isinstance(self._worker.broken, DeviceError):
            self.failed = self.should_exit = True

    def _go_wrong(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Errors outside requests: running out of file descriptors is logged as one line per AGAIN_S."""
        if context["message"] != NO_MORE:
            loop.default_exception_handler(context)
        elif loop.time() >= self._full_until:
            self._full_until = loop.time() + AGAIN_S
            count = len(self.server_state.connections)
            LOG.error("with %d connections no more can be taken (%s); raise ulimit -n", count, context["exception"])

    async def _say_it_works(self, every_s: float) -> None:
        """Feed the watchdog while the engine takes its turns; if a step hangs, the service manager ends the server."""
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
        """Do not wait for readers of events that take nothing, like a sleeping laptop."""
        await asyncio.sleep(TAKE_S)
        for connection in tuple(self.server_state.connections):
            scope = getattr(connection, "scope", None)  # set once it had a request
            if scope and scope.get("path") == PATH:
                connection.transport.abort()


def _is_no_cut(record: logging.LogRecord) -> bool:
    """False for the traceback of a request that was cut, which is expected."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
