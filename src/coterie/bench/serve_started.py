"""Servers to compare: ours, started on a composition; others, started by a command line or already running.

    "llama-server --models-dir gguf --port {port}"   {port} becomes a free port; ready once it lists its models

The models of a server are those that GET /v1/models lists.
Knows nothing about requests.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryFile
from time import perf_counter, sleep
from typing import IO, Any

from coterie.bench.http_stream import Origin, origin_of
from coterie.bench.serve_own import no_start, own_server
from coterie.bench.serve_processes import ProcessTree
from coterie.core.errors import UsageError
from coterie.core.http_get import get_json

PORT = "{port}"
# A server that compiles its models at start takes minutes on a few busy cores.
START_S, END_S, POLL_S = 900.0, 30.0, 0.1


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `processes`: its processes; None if we did not start it."""

    name: str
    origin: Origin
    processes: ProcessTree | None = None


@contextmanager
def ours(composition: str, options: Sequence[str]) -> Iterator[Server]:
    """`coterie serve` on a composition. Raises DeviceError if it does not start."""
    with own_server(composition, options) as server:
        yield Server("coterie", origin_of(server.url, {}), ProcessTree(server.pid))


@contextmanager
def by_command(command: str) -> Iterator[Server]:
    """A server started by a command line; stopped on exit, with all processes that it started.

    Raises UsageError for a command without {port} or with an unknown program, DeviceError if it does not start.
    """
    words = words_of(command)
    port = _free_port()
    origin = Origin("127.0.0.1", port)
    line = [word.replace(PORT, str(port)) for word in words]
    with TemporaryFile() as said:
        child = subprocess.Popen(line, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _await(child, origin, said)
            yield Server(name_of(words), origin, ProcessTree(child.pid))
        finally:
            _end(child)


def words_of(command: str) -> list[str]:
    """A command line, split into words. Raises UsageError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UsageError("--against", f"{command!r} is no command line: {error}", "close its quotes") from error
    if not any(PORT in word for word in words):
        raise UsageError("--against", f"{command!r} does not say where its port goes", f"write --port {PORT} in it")
    if shutil.which(words[0]) is None:
        raise UsageError("--against", f"there is no program {words[0]!r}", "install it, or give the path of one")
    return words


def name_of(words: Sequence[str]) -> str:
    """A name for a command line's server: its program, without `env` and the variables that it sets."""
    program = next((word for word in words if Path(word).name != "env" and "=" not in word), words[0])
    return Path(program).name


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await(child: subprocess.Popen[bytes], origin: Origin, said: IO[bytes]) -> None:
    """Wait until the server lists its models."""
    until_s = perf_counter() + START_S
    while perf_counter() < until_s:
        if child.poll() is not None:
            raise no_start("--against", said, f"it ended with {child.returncode}")
        with suppress(UsageError):
            models_at(origin)
            return
        sleep(POLL_S)
    raise no_start("--against", said, f"it named no models for {START_S:.0f} s")


def _end(child: subprocess.Popen[bytes]) -> None:
    """Stop the server, and kill what it leaves behind in its session."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(END_S)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


_BY_HAND = "say with --url where one is, or name its models with --model"


def models_at(origin: Origin) -> list[str]:
    """The models that a server lists; of ours only experts, whose names bypass the router. Raises UsageError."""
    answer = get_json(origin.url, "/v1/models", origin.headers)
    if answer.status != HTTPStatus.OK:
        remedy = "give --api-key" if answer.status == HTTPStatus.UNAUTHORIZED else _BY_HAND
        raise UsageError(origin.url, f"GET /v1/models is answered with {answer.status} {answer.reason}", remedy)
    body = answer.body
    if body is None:
        raise UsageError(origin.url, "GET /v1/models is answered with what is no JSON", _BY_HAND)
    rows = body.get("data") if isinstance(body, dict) else None
    found = [row for row in rows if isinstance(row, dict) and row.get("id")] if isinstance(rows, list) else []
    if not found:
        raise UsageError(origin.url, "GET /v1/models names no models", _BY_HAND)
    experts = [row for row in found if _kind(row) == "expert"]
    return [str(row["id"]) for row in experts or found]


def _kind(row: dict[str, Any]) -> str:
    about = row.get("coterie")
    return str(about.get("kind")) if isinstance(about, dict) else ""
