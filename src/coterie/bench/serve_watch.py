"""What is looked after while requests run: the most memory that a server holds, and what the page cache keeps.

A file that one server has closed would be read from the page cache when it is opened again: memory that is not in its
budget, and which direct I/O does not use. So files of given folders are dropped from it, all the while. Pages that a
process has mapped stay, as they are its own.
Knows nothing about requests.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from coterie.bench.limits import drop_page_cache
from coterie.bench.serve_processes import ProcessTree

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
