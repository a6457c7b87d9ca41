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
from pathlib import Path

from coterie.bench.limits import drop_page_cache
from coterie.bench.serve_family import Family

EVERY_S = 0.5


class Watch:
    """Looks every half second. `peak_bytes`: the most that was held at once, None where it is not known."""

    def __init__(self, family: Family | None, files: Sequence[Path]) -> None:
        self._family, self._files = family, files
        self._over = threading.Event()
        self.peak_bytes: int | None = None

    def look(self) -> None:
        """Once."""
        held = None if self._family is None else self._family.held_bytes()
        if held is not None:
            self.peak_bytes = max(held, self.peak_bytes or 0)
        for file in self._files:
            with suppress(OSError):  # gone meanwhile
                drop_page_cache(file)

    def run(self) -> None:
        """Until it is over, and once more."""
        while not self._over.wait(EVERY_S):
            self.look()
        self.look()

    def end(self) -> None:
        """It is over."""
        self._over.set()


@contextmanager
def watched(family: Family | None, files: Sequence[Path]) -> Iterator[Watch]:
    """A watch for as long as the context lasts; what it saw is whole afterwards."""
    watch = Watch(family, files)
    watch.look()
    thread = threading.Thread(target=watch.run, name="coterie-bench-watch", daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()
