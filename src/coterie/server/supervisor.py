"""Notifies the service manager: that the server is ready, still works, or is stopping.

No effect unless the manager asked for it. Knows nothing about requests. Source: sd_notify(3), for the datagrams and
variables.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress

READY, WORKS, ENDS = "READY=1", "WATCHDOG=1", "STOPPING=1"


def notify(state: str, variables: Mapping[str, str] = os.environ) -> None:
    """Send a state to NOTIFY_SOCKET, if set; never blocks."""
    address = variables.get("NOTIFY_SOCKET", "")
    if address.startswith(("/", "@")):
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.setblocking(False)
            to.connect(address if address[0] == "/" else "\0" + address[1:])
            to.send(state.encode())


def watched_s(variables: Mapping[str, str] = os.environ) -> float | None:
    """The interval for sending WORKS, in seconds: half of WATCHDOG_USEC; None: no watchdog."""
    usec, pid = variables.get("WATCHDOG_USEC", ""), variables.get("WATCHDOG_PID", "")
    meant = pid in ("", str(os.getpid()))
    return int(usec) / 2e6 if usec.isdigit() and int(usec) and meant else None
