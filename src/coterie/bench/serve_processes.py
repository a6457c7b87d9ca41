"""A process and all that descend from it: the CPU time that they took, and the memory that they hold.

    llama-server            a router, which starts a process for each model and ends it again
      |- llama-server       what it took is the router's, once it has ended and was waited for
      `- llama-server

And what is looked after while requests run: the most memory that was held, and what the page cache keeps. A file that
one server has closed would be read from the page cache when it is opened again: memory that is not in its budget, and
which direct I/O does not use. So files of given folders are dropped from it, all the while. Pages that a process has
mapped stay, as they are its own.
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
_PARENT, _OWN, _WITH_ENDED = 1, slice(11, 13), slice(11, 15)  # of the fields behind a process's name


@dataclass(frozen=True, slots=True)
class ProcessTree:
    """The processes that descend from `pid`, and it."""

    pid: int

    def cpu_s(self) -> float | None:
        """Seconds of CPU of those that run and of those that have ended. None: not known."""
        found = [fields for pid in self._pids() if (fields := stat_fields(_PROC / str(pid) / "stat"))]
        return seconds_of(found, _WITH_ENDED) if found else None

    def held_bytes(self) -> int | None:
        """Memory that they hold now, mapped files included; what several share counts once. None: not known."""
        found = [held for pid in self._pids() if (held := _held_bytes(pid)) is not None]
        return sum(found) if found else None

    def _pids(self) -> list[int]:
        children = grouped((int(fields[_PARENT]), pid) for pid, fields in _processes())
        pids = [self.pid]
        for pid in pids:  # it grows meanwhile
            pids += children.get(pid, ())
        return pids


def own_cpu_s(file: Path) -> float | None:
    """Seconds of CPU of the process, or of the thread, that a `stat` is of. None: not known."""
    fields = stat_fields(file)
    return seconds_of([fields], _OWN) if fields else None


def stat_fields(file: Path) -> list[str]:
    """The fields of a `stat` behind the name, which may hold anything; none where the process is gone."""
    try:
        return file.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:  # not Linux, or gone
        return []


def seconds_of(found: list[list[str]], which: slice) -> float:
    """The sum of some fields, which are ticks."""
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
    """What was seen. `peak_bytes`: the most that was held at once, None where it is not known."""

    peak_bytes: int | None = None


@contextmanager
def watched(processes: ProcessTree | None, files: Sequence[Path]) -> Iterator[Watch]:
    """Look every half second for as long as the context lasts; what was seen is whole afterwards."""
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
