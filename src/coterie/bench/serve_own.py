"""Our own server as a child process, with the CPU time that it takes, and the same requests by the engine in process.

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
from coterie.bench.serve_family import own_cpu_s
from coterie.core.errors import DeviceError
from coterie.engine.request import Output, Request

MAIN = "from coterie.cli.main import main; main()"
ADDRESS = re.compile(r" at (http://\S+)$", re.MULTILINE)
START_S, END_S = 120.0, 30.0
WORDS = 2000  # characters of what a server that failed said last


@dataclass(frozen=True, slots=True)
class OwnServer:
    """A server that runs."""

    url: str
    pid: int

    def cpu_s(self) -> tuple[float | None, float | None]:
        """Seconds of CPU so far, of it and of its main thread, which does HTTP. None: not known."""
        own = Path(f"/proc/{self.pid}")
        return own_cpu_s(own / "stat"), own_cpu_s(own / "task" / str(self.pid) / "stat")


@contextmanager
def own_server(composition: str, options: Sequence[str]) -> Iterator[OwnServer]:
    """`coterie serve` on a free port of this machine, ended afterwards. Raises DeviceError where it does not start."""
    words = [sys.executable, "-c", MAIN, "serve", composition, "--port", "0", *options]
    # One that was set for other servers would shut us out.
    environment = {name: value for name, value in os.environ.items() if name != "COTERIE_API_KEY"}
    with TemporaryFile() as said:
        child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=said, text=True, env=environment)
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        # A thread reads what it prints, so that it never waits for us.
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
    """All that it prints; at last nothing."""
    for line in child.stdout or ():
        lines.put(line)
    lines.put("")


def _address(lines: queue.SimpleQueue[str], said: IO[bytes]) -> str:
    """Where it listens, once it says so."""
    try:
        while line := lines.get(timeout=START_S):
            if found := ADDRESS.search(line):
                return found[1]
        why = "it ended"
    except queue.Empty:
        why = f"it said no address for {START_S:.0f} s"
    raise no_start("coterie serve", said, why)


def no_start(where: str, said: IO[bytes], why: str) -> DeviceError:
    """The error for a server that did not start, with what it said last."""
    said.seek(0)
    words = said.read()[-WORDS:].decode(errors="replace").strip()
    fact = f"the server did not start, {why}" + (f": {words}" if words else "")
    return DeviceError(where, fact, "start it by hand to see more")


def in_process(
    coterie: Coterie, requests: Sequence[Request], in_flight: int, at_s: Sequence[float]
) -> tuple[list[Answered], float, float]:
    """The same by the engine alone: what became of each, seconds to the last one's end, and seconds of CPU.

    `in_flight` at once, or where that is 0 each at its time. Raises the CoterieError that ended a request.
    """
    cpu_s = process_time()
    run = _InProcess(coterie, requests, in_flight, at_s)
    answers, elapsed_s = run.to_the_end()
    return answers, elapsed_s, process_time() - cpu_s


class _InProcess:
    """One run's requests. Their ids are their numbers."""

    def __init__(self, coterie: Coterie, requests: Sequence[Request], in_flight: int, at_s: Sequence[float]) -> None:
        self._engine, self._device = coterie.parts.engine, coterie.parts.device
        self._requests, self._in_flight = requests, in_flight
        self._start_s = self._device.now()
        self._due_s = [self._start_s + s for s in at_s] if not in_flight else [self._start_s] * len(requests)
        self._next = self._open = 0
        self._answers: list[Answered] = []
        self._last_s = self._start_s

    def to_the_end(self) -> tuple[list[Answered], float]:
        engine, count = self._engine, len(self._requests)
        while self._next < count or not engine.idle:
            self._arrive()
            until = self._due_s[self._next] if self._next < count and not self._in_flight else None
            if engine.idle:
                self._device.wait_any([], until)
                continue
            for output in engine.step(until, until):
                if output.finish_reason is not None:
                    self._take(output)
        return sorted(self._answers, key=lambda one: one.number), self._last_s - self._start_s

    def _arrive(self) -> None:
        now, count = self._device.now(), len(self._requests)
        while self._next < count and (
            self._open < self._in_flight if self._in_flight else self._due_s[self._next] <= now
        ):
            if self._in_flight:
                self._due_s[self._next] = now
            self._engine.submit(self._requests[self._next])
            self._next, self._open = self._next + 1, self._open + 1

    def _take(self, output: Output) -> None:
        number, timings = int(output.request_id), output.timings
        if output.error is not None:
            raise output.error
        if timings is None or timings.first_token_s is None:
            raise RuntimeError(f"request {number} ended without a token")
        first_s, last_s = timings.first_token_s - self._due_s[number], timings.end_s - self._due_s[number]
        request = self._requests[number]
        self._answers.append(Answered(number, first_s, last_s, request.max_tokens, len(request.prompt_ids)))
        self._last_s = max(self._last_s, timings.end_s)
        self._open -= 1
