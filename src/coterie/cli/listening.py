"""The socket that a server listens on: TCP, a Unix socket, or one inherited from systemd (socket activation).

Knows nothing about HTTP. Source: sd_listen_fds(3), for the variables of an inherited socket.
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

FIRST_FD = 3  # the file descriptor of an inherited socket
MAX_FILES = 1 << 16


@contextmanager
def listening(host: str, port: int, path: Path | None = None) -> Iterator[socket.socket]:
    """A bound socket: an inherited one if there is one, else at `path` if given, else at the address.

    A socket's file is removed on exit. Raises UsageError if it cannot be bound.
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
    """Bind an address, before models are opened, so that a taken port is noticed at once. Raises UsageError."""
    try:
        family, kind, proto, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio sets TCP_NODELAY only if it sees the protocol number; without it each answer takes 40 ms more.
        listener = socket.socket(family, kind, proto)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        raise UsageError(
            f"{host}:{port}", f"cannot be listened on: {error}", "choose another --host or --port"
        ) from error
    return listener


def listen_at(path: Path) -> socket.socket:
    """Bind a Unix socket, with the umask's permissions; a stale file of a server that has ended is replaced.

    It listens at once, so that clients queue; otherwise another server would take the file for a stale one.
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
    """The socket inherited from systemd, if any. Raises UsageError for several, or one that is not listening."""
    if variables.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = variables.get("LISTEN_FDS", "")
    for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):  # child processes must not see them
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
    """Raise the limit on open files, since each connection and each file being read counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _is_left(path: Path) -> bool:
    """Whether the socket file is stale: no process is listening on it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
