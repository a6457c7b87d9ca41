"""The same mix on another engine: first come first served, open models in the same bytes, least recently used closed.

    request -> open? no: close the least recently used until it fits, open -> prefill -> decode, one sequence at a time

On a CPU what is closed leaves the page cache too, or its bytes would not be in the budget; on a GPU the budget is of
HBM, and files stay in memory, as our pool does. Conversion, the choice of settings and, as of our pool, the pinning of
host memory are not timed; the first open of each is, as is our first read of each. From the file, a model comes to a
GPU through memory that is not pinned.
Knows nothing about our own engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np

from coterie.bench.coe_run import Workload, percentile
from coterie.bench.peers.peer import Peer, Session, Settings
from coterie.bench.sticks import drop_page_cache
from coterie.core.errors import CapacityError
from coterie.models.model import Model

SAME_BYTES = ("BF16", "F16", "bfloat16")  # the formats of a peer that store bf16 weights in as many bytes as we do
TRIALS = 2


class OpenModels:
    """Sessions within a budget in bytes, as files count them; the least recently used is closed first."""

    def __init__(self, made: Converted, budget_bytes: int, tokens: int) -> None:
        self._peer, self._settings, self._files, self._tokens = made.peer, made.settings, made.files, tokens
        self._drops_pages = made.drops_pages
        self._budget_bytes, self._used_bytes = budget_bytes, 0
        self._open: dict[str, Session] = {}
        self.opened = self.moved_bytes = 0

    def get(self, name: str) -> Session:
        """The session of an expert, opened if need be. Raises CapacityError when it alone is above the budget."""
        session = self._open.pop(name, None)
        if session is None:
            size = self._size(name)
            if size > self._budget_bytes:
                raise CapacityError("--near", f"{name} in the peer's form", size, self._budget_bytes, ["raise --near"])
            while self._used_bytes + size > self._budget_bytes:
                self._close(next(iter(self._open)))
            session = self._peer.open(self._files[name], self._settings, self._tokens)
            self._used_bytes += size
            self.opened += 1
            self.moved_bytes += size
        self._open[name] = session  # the last is the one used most recently
        return session

    def close(self) -> None:
        """Close everything."""
        for name in list(self._open):
            self._close(name)

    def _close(self, name: str) -> None:
        self._open.pop(name).close()
        self._used_bytes -= self._size(name)
        if self._drops_pages:
            _drop(self._peer, self._files[name])

    def _size(self, name: str) -> int:
        return sum(file.stat().st_size for file in self._peer.files(self._files[name]))


@dataclass(frozen=True, slots=True)
class Converted:
    """A peer's form of every expert, and the settings that won its trial.

    `drops_pages`: what is closed leaves the page cache.
    """

    peer: Peer
    files: Mapping[str, Path]
    precision: str
    settings: Settings
    drops_pages: bool = True

    def __str__(self) -> str:
        return f"{self.precision}, {self.settings}"


@contextmanager
def converted(
    peer: Peer, models: Mapping[str, Model], load: Workload, cpus: int, drops_pages: bool = True
) -> Iterator[Converted]:
    """Every expert as the peer reads it, in a temporary folder, once for all workloads like `load`."""
    with TemporaryDirectory(prefix="coterie-peer-") as folder:
        ask = partial(_once, peer, prompt=_prompts(models, load)[0], load=load, drops_pages=drops_pages)
        precision, settings = _best(peer, models[load.asked[0]], Path(folder) / "trial", cpus, ask)
        peer.forget()
        files = {name: _prepare(peer, model, Path(folder) / name, precision) for name, model in models.items()}
        os.sync()  # pages that wait to be written cannot be dropped from the page cache
        if drops_pages:
            for file in files.values():
                _drop(peer, file)
        yield Converted(peer, files, precision, settings, drops_pages)


def serve_peer(made: Converted, models: Mapping[str, Model], load: Workload, near_bytes: int) -> dict[str, Any]:
    """A row as our policies have, without what the engine does not tell. Raises CapacityError."""
    held = OpenModels(made, near_bytes, load.prompt_tokens + load.new_tokens)
    try:
        made.peer.reserve(made.files.values(), made.settings)
        ends, ttfts = _serve(held, load, _prompts(models, load))
    finally:
        held.close()
        made.peer.forget()
    ordered = sorted(ttfts)
    return {
        "mix": load.mix,
        "in_flight": load.in_flight,
        "policy": made.peer.name,
        "requests": len(ends),
        "switches": held.opened,
        "hit_rate": 1 - held.opened / len(ends),
        "tokens_per_s": len(ends) * load.new_tokens / ends[-1],
        "ttft_p50_s": percentile(ordered, 0.50),
        "ttft_p95_s": percentile(ordered, 0.95),
        "ttft_p99_s": percentile(ordered, 0.99),
        "moved_bytes": held.moved_bytes,
        "elapsed_s": ends[-1],
    }


def _prompts(models: Mapping[str, Model], load: Workload) -> list[list[int]]:
    rng = np.random.default_rng(len(load.asked))
    words = min(model.config.vocab_size for model in models.values())
    prompts: list[list[int]] = rng.integers(0, words, (len(load.asked), load.prompt_tokens)).tolist()
    return prompts


def _serve(held: OpenModels, load: Workload, prompts: Sequence[Sequence[int]]) -> tuple[list[float], list[float]]:
    """When each request ended, and its time to first token since there was a place for it in flight."""
    begun = perf_counter()
    ends: list[float] = []
    ttfts: list[float] = []
    for number, (name, prompt) in enumerate(zip(load.asked, prompts, strict=True)):
        arrived_s = ends[number - load.in_flight] if number >= load.in_flight else 0.0
        session = held.get(name)
        session.prefill(prompt)
        ttfts.append(perf_counter() - begun - arrived_s)
        session.decode(load.new_tokens - 1)
        ends.append(perf_counter() - begun)
    return ends, ttfts


def _best(
    peer: Peer, model: Model, folder: Path, cpus: int, ask: Callable[[Path, Settings], float]
) -> tuple[str, Settings]:
    """What serves one request of a closed model fastest: open, prefill, decode, close."""
    found: list[tuple[float, str, Settings]] = []
    for precision in (name for name in peer.precisions("bf16") if name in SAME_BYTES):
        file = _prepare(peer, model, folder / precision, precision)
        for settings in peer.candidates(cpus):
            found += [(min(ask(file, settings) for _ in range(TRIALS)), precision, settings)]
    _, precision, settings = min(found, key=lambda trial: trial[0])
    return precision, settings


def _once(
    peer: Peer, file: Path, settings: Settings, prompt: Sequence[int], load: Workload, drops_pages: bool
) -> float:
    if drops_pages:
        _drop(peer, file)
    start = perf_counter()
    session = peer.open(file, settings, load.prompt_tokens + load.new_tokens)
    try:
        session.prefill(prompt)
        session.decode(load.new_tokens - 1)
    finally:
        session.close()
    return perf_counter() - start


def _drop(peer: Peer, prepared: Path) -> None:
    for file in peer.files(prepared):
        drop_page_cache(file)


def _prepare(peer: Peer, model: Model, out: Path, precision: str) -> Path:
    return peer.prepare(model.checkpoint.path, out, precision)
