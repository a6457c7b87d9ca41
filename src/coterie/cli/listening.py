"""The socket that a server listens on: an address, a file (a Unix socket), or one that was opened by who started it.

Knows nothing about HTTP. Source: sd_listen_fds(3), for the variables of a socket that is inherited.
"""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

from coterie.core.errors import UsageError

FIRST_FD = 3  # that an inherited socket has
MAX_FILES = 1 << 16


@contextmanager
def listening(host: str, port: int, path: Path | None = None) -> Iterator[socket.socket]:
    """A bound socket: one that was handed over goes before `path`, and that before an address; its file goes with it.

    Raises UsageError where it cannot be had.
    """
    inherited = handed_over()
    listener = inherited or (listen(host, port) if path is None else listen_at(path))
    try:
        with listener:
            yield listener
    finally:
        if path is not None and inherited is None:
            path.unlink(missing_ok=True)


def listen(host: str, port: int) -> socket.socket:
    """Bind before the models are opened, so that a taken port is known at once. Raises UsageError."""
    try:
        family, kind, proto, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # By the protocol's number asyncio knows TCP and sends at once; without it each answer takes 40 ms more.
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UsageError(
            f"{host}:{port}", f"cannot be listened on: {error}", "choose another --host or --port"
        ) from error
    return listener


def listen_at(path: Path) -> socket.socket:
    """The same at a file, whose rights are those of the umask; one that a server left behind is replaced.

    Who connects waits from now on: as long as nobody listens, another server would take the file for one left behind.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and _is_left(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen()
    except OSError as error:
        listener.close()
        remedy = "choose another --uds, in a folder where files may be made"
        raise UsageError(str(path), f"cannot be listened on: {error}", remedy) from error
    return listener


def handed_over(variables: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The socket that systemd listens on for this process, if it does. Raises UsageError for several or others."""
    if variables.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = variables.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # not for processes that this one starts
        variables.pop(name, None)
    if count != "1":
        raise UsageError("LISTEN_FDS", f"is {count or 'empty'}", "give a .socket unit with one ListenStream=")
    try:
        found = socket.socket(fileno=FIRST_FD)
    except OSError as error:
        raise UsageError("LISTEN_FDS", f"is no socket: {error}", "give a .socket unit with a ListenStream=") from error
    if found.type != socket.SOCK_STREAM or not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        found.close()
        raise UsageError("LISTEN_FDS", "is no stream that is listened on", "give ListenStream=, and Accept=no")
    return found


def more_files() -> None:
    """Let this process have as many files open as it may: each connection is one, and each file that is read."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _is_left(path: Path) -> bool:
    """Whether nobody listens at this file any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
