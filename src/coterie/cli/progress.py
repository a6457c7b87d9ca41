"""A transient progress bar on a terminal.

Knows nothing about what is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from coterie.cli.options import err

REFRESH_S = 0.2


@contextmanager
def counted(what: str, count: int, *, shown: bool = True) -> Iterator[Callable[[int], None] | None]:
    """Yields a function to report how many of `count` are done; None if stderr is no terminal or `shown` is False."""
    if not (shown and err.is_terminal):
        yield None
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, auto_refresh=False) as bar:
        task, last_s = bar.add_task(what, total=count), perf_counter()

        def tell(done: int) -> None:
            nonlocal last_s
            if perf_counter() - last_s >= REFRESH_S:
                last_s = perf_counter()
                bar.update(task, completed=done, refresh=True)

        yield tell
