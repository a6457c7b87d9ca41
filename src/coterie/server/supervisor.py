"""What is told to who started the server and watches it: that it is ready, that it still works, that it ends.

Does nothing where nobody asked. Knows nothing about requests. Source: sd_notify(3), for the datagrams and variables.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

READY, WORKS, ENDS = "READY=1", "WATCHDOG=1", "STOPPING=1"


def notify(state: str, variables: Mapping[str, str] = os.environ) -> None:
    """Send a state to NOTIFY_SOCKET, if there is one; who does not listen is not waited for."""
    address = variables.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)
            to.connect(address if address[0] == "/" else "\0" + address[1:])
            to.send(state.encode())


def watched_s(variables: Mapping[str, str] = os.environ) -> float | None:
    """How often WORKS is to be sent, in seconds: twice in WATCHDOG_USEC; None: never, as nobody watches."""
    usec, pid = variables.get("WATCHDOG_USEC", ""), variables.get("WATCHDOG_PID", "")
    meant = pid in ("", str(os.getpid()))
    return int(usec) / 2e6 if usec.isdigit() and int(usec) and meant else None
