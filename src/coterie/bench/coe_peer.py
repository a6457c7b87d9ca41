"""The same mix on another engine with its best settings: models are kept open in the same budget, and closed by LRU.

    request -> open? no: close the least recently used until it fits, open -> prefill -> decode

An engine that can batch several sequences of a model does so, and alternates between models in the way that was fastest
in a trial on the first requests (coe_turns.py).

On a CPU, closed models are also dropped from the page cache, which would otherwise hold them outside the budget. On a
GPU the budget is HBM, and files stay in host memory, like our pool. Not timed: conversion, the choice of settings and,
as for our pool, pinning host memory. Timed: the first open of each model, like our first read of each. A peer that
reads from the file copies to the GPU through unpinned memory.
Knows nothing about our own engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from coterie.bench.coe_peer_run import Files, Pool, Ran, in_batches, one_at_a_time
from coterie.bench.coe_run import Workload, percentiles, prompts_of
from coterie.bench.coe_turns import Turns
from coterie.bench.limits import drop_page_cache
from coterie.bench.peers.peer import InBatches, Peer, Settings
from coterie.models.model import Model
from coterie.plan.setups import OURS

SAME_BYTES = ("BF16", "F16", "bfloat16")  # peers' formats that store bf16 weights in as many bytes as ours
TRIALS = 2
SLOTS = (8, 32)  # batch sizes that are tried; each slot costs memory that every open has to allocate
TRIAL_ROUNDS, TRIAL_MORE = 2, 16  # a trial has TRIAL_ROUNDS x in_flight + TRIAL_MORE requests
AGE_BOUND = OURS.policy.age_bound


@dataclass(frozen=True, slots=True)
class Converted:
    """All experts converted for a peer, and the settings that won its trial.

    `drops_pages`: closed models are dropped from the page cache.
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
    """All experts in the peer's format, in a temporary folder, for all workloads with the token counts of `load`."""
    with TemporaryDirectory(prefix="coterie-peer-") as folder:
        ask = partial(_once, peer, prompt=prompts_of(models, load)[0], load=load, drops_pages=drops_pages)
        precision, settings = _best(peer, models[load.experts[0]], Path(folder) / "trial", cpus, ask)
        peer.forget()
        files = {name: _prepare(peer, model, Path(folder) / name, precision) for name, model in models.items()}
        os.sync()  # dirty pages cannot be dropped from the page cache
        if drops_pages:
            drop_page_cache(*(file for prepared in files.values() for file in peer.files(prepared)))
        yield Converted(peer, files, precision, settings, drops_pages)


def serve_peer(made: Converted, models: Mapping[str, Model], load: Workload, near_bytes: int) -> dict[str, Any]:
    """A row like those of our policies, without the numbers that the engine does not report. Raises CapacityError."""
    turns, settings = _best_turns(made, models, load, near_bytes)
    ran, opened, moved_bytes = _serve(replace(made, settings=settings), models, load, near_bytes, turns)
    elapsed_s = ran.ends_s[-1]
    return {
        "mix": load.mix,
        "in_flight": load.in_flight,
        "policy": made.peer.name,
        "turns": str(turns),
        "settings": str(settings),
        "requests": len(ran.ends_s),
        "switches": opened,
        "hit_rate": 1 - opened / len(ran.ends_s),
        "tokens_per_s": len(ran.ends_s) * load.new_tokens / elapsed_s,
        **percentiles("ttft", ran.ttfts_s, (50, 95, 99)),
        "moved_bytes": moved_bytes,
        "longest_overtaken": ran.max_overtaken,
        "elapsed_s": elapsed_s,
    }


def _serve(
    made: Converted, models: Mapping[str, Model], load: Workload, near_bytes: int, turns: Turns
) -> tuple[Ran, int, int]:
    """Serve a whole load: its times, the number of opens, and the bytes that they read."""
    peer, tokens, prompts = made.peer, load.prompt_tokens + load.new_tokens, prompts_of(models, load)
    files = Files(peer, made.files, made.drops_pages)
    try:
        peer.reserve(made.files.values(), made.settings)
        if turns.slots and isinstance(peer, InBatches):
            opened = partial(
                peer.open_batch, settings=made.settings, max_tokens=tokens, slots=turns.slots, shared=turns.shared
            )
            with Pool(files, near_bytes, opened) as batches:
                ran = in_batches(batches, load, prompts, turns, AGE_BOUND)
                return ran, batches.opened, batches.moved_bytes
        with Pool(files, near_bytes, partial(peer.open, settings=made.settings, max_tokens=tokens)) as sessions:
            ran = one_at_a_time(sessions, load, prompts)
            return ran, sessions.opened, sessions.moved_bytes
    finally:
        peer.forget()


def _best_turns(
    made: Converted, models: Mapping[str, Model], load: Workload, near_bytes: int
) -> tuple[Turns, Settings]:
    """The way to alternate that is fastest on the first requests, and its settings."""
    alone = Turns(), made.settings
    if not isinstance(made.peer, InBatches):
        return alone
    first = replace(load, experts=load.experts[: TRIAL_ROUNDS * load.in_flight + TRIAL_MORE])
    took: dict[tuple[Turns, Settings], float] = {}

    def fastest(ways: Iterable[tuple[Turns, Settings]]) -> tuple[Turns, Settings]:
        for turns, settings in ways:
            if (turns, settings) not in took:
                ran, _, _ = _serve(replace(made, settings=settings), models, first, near_bytes, turns)
                took[turns, settings] = ran.ends_s[-1]
        return min(took, key=lambda way: took[way])

    kinds = {made.settings.attention: made.settings}
    for settings in made.peer.candidates(made.settings.threads):
        if (settings.threads, settings.load) == (made.settings.threads, made.settings.load):
            kinds.setdefault(settings.attention, settings)
    slots = min(SLOTS[0], load.in_flight)
    fastest([alone])
    fastest((Turns(slots, True, shared), settings) for shared in (False, True) for settings in kinds.values())
    turns, settings = fastest([])
    if turns.slots:
        more = (min(slots, load.in_flight) for slots in SLOTS[1:])
        fastest((replace(turns, slots=slots), settings) for slots in more)
        turns, settings = fastest([])
        fastest([(replace(turns, grouped=False), settings)])
    return fastest([])


def _best(
    peer: Peer, model: Model, folder: Path, cpus: int, ask: Callable[[Path, Settings], float]
) -> tuple[str, Settings]:
    """The precision and settings that serve one request to a closed model fastest: open, prefill, decode."""
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
        drop_page_cache(*peer.files(file))
    start = perf_counter()
    session = peer.open(file, settings, load.prompt_tokens + load.new_tokens)
    try:
        session.prefill(prompt)
        session.decode(load.new_tokens - 1)
    finally:
        session.close()
    return perf_counter() - start


def _prepare(peer: Peer, model: Model, out: Path, precision: str) -> Path:
    return peer.prepare(model.checkpoint.path, out, precision)
