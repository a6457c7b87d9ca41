"""How to open a composition, from the options that several commands share; apart, since most commands open none.

Knows nothing about what the commands do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from coterie.api import Options
from coterie.engine.recording import MAX_WORKS
from coterie.graph.ops import INT16


def options(
    device: str,
    near: int | None,
    kv: int | None,
    threads: int | None,
    trace: Path | None = None,
    activations: str = INT16,
    pool: int | None = None,
    reuse: bool = True,
    speculate: int | None = None,
) -> Options:
    """Gather the shared options."""
    record = MAX_WORKS if trace is not None else 0
    how = Options(device=device, threads=threads, record=record, activations=activations)
    how = replace(how, policy=replace(how.policy, max_guesses=speculate))
    return replace(how, near_bytes=near, kv_bytes=kv, pool_bytes=pool, reuse=reuse)
