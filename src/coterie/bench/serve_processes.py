"""The CPU time and memory of a process and all its descendants.

    llama-server            a router, which starts and stops a process for each model
      |- llama-server       its CPU time counts as the router's once it has ended and been reaped
      `- llama-server

While requests run, a thread also records the peak memory and keeps files of given folders out of the page cache. A
server that reopens a closed file would otherwise read it from there: memory outside its budget, which direct I/O does
not use. Pages that a process has mapped stay, since they are counted as its own.
Knows nothing about servers or requests. Source: proc(5): `stat`, fields 4 and 14 to 17, and `smaps_rollup`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coterie.bench.limits import drop_page_cache
from coterie.core.grouped import grouped

_PROC = Path("/proc")
_PARENT, _OWN, _WITH_ENDED = 1, slice(11, 13), slice(11, 15)  # indices of `stat` fields after the process's name


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """The process `pid` and its descendants."""

    pid: int

    def cpu_s(self) -> float | None:
        """CPU seconds of the running processes and of those that have ended. None: unknown."""
        found = [fields for pid in self._pids() if (fields := stat_fields(_PROC / str(pid) / "stat"))]
        return seconds_of(found, _WITH_ENDED) if found else None

    def held_bytes(self) -> int | None:
        """Their current memory, mapped files included; shared pages count once. None: unknown."""
        found = [held for pid in self._pids() if (held := _held_bytes(pid)) is not None]
        return sum(found) if found else None

    def _pids(self) -> list[int]:
        children = grouped((int(fields[_PARENT]), pid) for pid, fields in _processes())
        pids = [self.pid]
        for pid in pids:  # the list grows during the loop
            pids += children.get(pid, ())
        return pids


def own_cpu_s(file: Path) -> float | None:
    """CPU seconds of the process or thread with this `stat` file. None: unknown."""
    fields = stat_fields(file)
    return seconds_of([fields], _OWN) if fields else None


def stat_fields(file: Path) -> list[str]:
    """The fields of a `stat` file after the name, which may contain anything; empty if the process is gone."""
    try:
        return file.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:  # not Linux, or gone
        return []


def seconds_of(found: list[list[str]], which: slice) -> float:
    """The sum of some fields, converted from clock ticks to seconds."""
    return sum(int(field) for fields in found for field in fields[which]) / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[tuple[int, list[str]]]:
    for folder in _PROC.glob("[0-9]*"):
        if fields := stat_fields(folder / "stat"):
            yield int(folder.name), fields


def _held_bytes(pid: int) -> int | None:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    held = next((line.split()[1] for line in lines if line.startswith("Pss:")), None)
    return None if held is None else int(held) << 10


EVERY_S = 0.5


@dataclass(slots=True)
class Watch:
    """What was observed. `peak_bytes`: the peak memory, None if unknown."""

    peak_bytes: int | None = None


@contextmanager
def watched(processes: ProcessTree | None, files: Sequence[Path]) -> Iterator[Watch]:
    """Sample every half second during the context; the Watch is final once it exits."""
    watch, over = Watch(), threading.Event()

    def look() -> None:
        held = None if processes is None else processes.held_bytes()
        if held is not None:
            watch.peak_bytes = max(held, watch.peak_bytes or 0)
        for file in files:
            with suppress(OSError):  # gone meanwhile
                drop_page_cache(file)

    def run() -> None:
        while not over.wait(EVERY_S):
            look()
        look()

    look()
    thread = threading.Thread(target=run, name="coterie-bench-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()
