"""Our own server as a child process, with its CPU time; and the same requests through the engine in this process.

Knows nothing about how requests are drawn or what is reported.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from time import process_time
from typing import IO

from coterie.api import Coterie
from coterie.bench.serve_drive import Answered
from coterie.bench.serve_processes import own_cpu_s
from coterie.core.errors import DeviceError
from coterie.engine.request import Output, Request

MAIN = "from coterie.cli.main import main; main()"
ADDRESS = re.compile(r" at (http://\S+)$", re.MULTILINE)
START_S, END_S = 120.0, 30.0
WORDS = 2000  # characters of a failed server's last output


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A running server."""

    url: str
    pid: int

    def cpu_s(self) -> tuple[float | None, float | None]:
        """CPU seconds so far, of the process and of its main thread, which serves HTTP. None: unknown."""
        own = Path(f"/proc/{self.pid}")
        return own_cpu_s(own / "stat"), own_cpu_s(own / "task" / str(self.pid) / "stat")


@contextmanager
def own_server(composition: str, options: Sequence[str]) -> Iterator[OwnServer]:
    """`coterie serve` on a free port of this machine, stopped on exit. Raises DeviceError if it does not start."""
    words = [sys.executable, "-c", MAIN, "serve", composition, "--port", "0", *options]
    # A key in the environment, meant for other servers, would lock us out.
    environment = {name: value for name, value in os.environ.items() if name != "COTERIE_API_KEY"}
    with TemporaryFile() as said:
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        # A thread drains its output, so that it never blocks on a full pipe.
        reader = threading.Thread(target=_read, args=(child, lines), name="coterie-bench-reader", daemon=True)
        reader.start()
        try:
            url = _address(lines, said)
            yield OwnServer(url, child.pid)
        finally:
            child.terminate()
            try:
                child.wait(END_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            reader.join()
            if child.stdout is not None:
                child.stdout.close()


def _read(child: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Queue each line of output, then an empty string at the end."""
    for line in child.stdout or ():
        lines.put(line)
    lines.put("")


def _address(lines: queue.SimpleQueue[str], said: IO[bytes]) -> str:
    """The URL that the server prints once it listens."""
    try:
        while line := lines.get(timeout=START_S):
            if found := ADDRESS.search(line):
                return found[1]
        why = "it ended"
    except queue.Empty:
        why = f"it said no address for {START_S:.0f} s"
    raise no_start("coterie serve", said, why)


def no_start(where: str, said: IO[bytes], why: str) -> DeviceError:
    """The error for a server that did not start, with the end of its output."""
    said.seek(0)
    words = said.read()[-WORDS:].decode(errors="replace").strip()
    fact = f"the server did not start, {why}" + (f": {words}" if words else "")
    return DeviceError(where, fact, "start it by hand to see more")


def in_process(
    coterie: Coterie, requests: Sequence[Request], in_flight: int, at_s: Sequence[float]
) -> tuple[list[Answered], float, float]:
    """The same requests through the engine alone: outcomes, seconds to the end of the last one, and CPU seconds.

    `in_flight` at once or, if that is 0, each at its time. Raises the CoterieError that ended a request.
    """
    cpu_s, engine, device = process_time(), coterie.parts.engine, coterie.parts.device
    start_s = last_s = device.now()
    due_s = [start_s] * len(requests) if in_flight else [start_s + s for s in at_s]
    answers: list[Answered] = []
    num_sent = 0
    while num_sent < len(requests) or not engine.idle:
        now_s = device.now()
        while num_sent < len(requests) and (
            num_sent - len(answers) < in_flight if in_flight else due_s[num_sent] <= now_s
        ):
            due_s[num_sent] = now_s if in_flight else due_s[num_sent]
            engine.submit(requests[num_sent])
            num_sent += 1
        until_s = due_s[num_sent] if num_sent < len(requests) and not in_flight else None
        if engine.idle:
            device.wait_any([], until_s)
            continue
        for output in engine.step(until_s, until_s):
            if output.finish_reason is not None:
                answer, end_s = _answered(output, requests, due_s)
                answers.append(answer)
                last_s = max(last_s, end_s)
    return sorted(answers, key=lambda one: one.number), last_s - start_s, process_time() - cpu_s


def _answered(output: Output, requests: Sequence[Request], due_s: Sequence[float]) -> tuple[Answered, float]:
    """The outcome of a request, whose id is its number, and when it ended. Raises the CoterieError that ended it."""
    number, timings = int(output.request_id), output.timings
    if output.error is not None:
        raise output.error
    if timings is None or timings.first_token_s is None:
        raise RuntimeError(f"request {number} ended without a token")
    first_s, last_s = timings.first_token_s - due_s[number], timings.end_s - due_s[number]
    request = requests[number]
    return Answered(number, first_s, last_s, request.max_tokens, len(request.prompt_ids)), timings.end_s
