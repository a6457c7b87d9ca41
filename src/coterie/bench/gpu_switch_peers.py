"""Switching, compared with transformers on the same GPU in the same rounds: from disk, page cache, host memory, HBM.

    ours     cold: hbm for one of two experts, both in the pinned pool       warm: both in hbm
    theirs   disk: page cache dropped, open, first token    file: the same from the page cache
             host: copy a module from pinned memory, first token             held: both open on the GPU

A way that cannot run gives a reason, and the others continue.
Knows nothing about routers or text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from coterie.bench.gpu_peers import NAME, fastest, graphs, sentence, synchronized
from coterie.bench.peers.best import Work, prepared_peer
from coterie.bench.peers.peer import Session, Settings
from coterie.bench.peers.transformers import HOST, Transformers
from coterie.bench.report import Effort, interleave, paired_ratio
from coterie.bench.step import prompt_ids
from coterie.bench.switch_peers import WARM_PROMPT, Reload, Way, turns
from coterie.bench.switch_serve import ask, settings_for, ttft
from coterie.core.units import format_seconds
from coterie.devices.cuda.gpu import Gpu
from coterie.engine.assembly import plan, warm_up, wire
from coterie.models.model import Model

WARM_TURNS = 2
HELD_TURNS = 6  # 3 turns for each of two models: a compiled one is run, captured as a graph, then replayed
COLD, WARM, OURS = "cold", "warm", "coterie"
DISK, PAGES, HELD, HELD_COMPILED = "disk", "page cache", "held open", "held open, compiled"
# Each of their ways, by its name in the JSON -> which of ours it is compared with.
AGAINST: Mapping[str, str] = {DISK: COLD, PAGES: COLD, HOST: COLD, HELD: WARM, HELD_COMPILED: WARM}


def switch_peers(models: Sequence[Model], prompt_tokens: int, effort: Effort, gpu: Gpu) -> dict[str, Any]:
    """A row for transformers: its `ways`, each with its seconds, ours in the same rounds, and the ratio.

    Raises UsageError for a missing extra, CapacityError if our engine does not fit on the GPU.
    """
    prompt = prompt_ids(models[0], prompt_tokens)
    plain, compiled = Transformers(gpu.torch_device), Transformers(gpu.torch_device, "prefill")
    with ExitStack() as stack:
        stack.callback(plain.forget)
        paths = tuple(
            stack.enter_context(prepared_peer(plain, model.checkpoint.path, "bf16"))["bfloat16"] for model in models
        )
        rounds = _Rounds(effort)
        settings = _settings(plain, paths[0], Work(lambda session: session.prefill(prompt)), len(prompt) + 1)
        if isinstance(settings, str):
            return {NAME: {"ways": {way: {"failed": settings} for way in AGAINST}}}
        other = Reload(plain, settings, paths, prompt)
        # One after the other: each needs the HBM that the previous one frees.
        with ExitStack() as open_now:
            cold = _Ours(open_now, models, 1, prompt_tokens, gpu).asked(prompt_tokens)
            from_host = replace(other, settings=replace(settings, load=HOST)).from_pages  # after its first turns
            rounds.take(cold, {DISK: other.cold, PAGES: other.from_pages, HOST: from_host})
            if "failed" not in rounds.rows[HOST]:
                rounds.rows[HOST]["pinned"] = plain.pins
        plain.forget()
        # Last, since a file that a session has mapped cannot be dropped from the page cache.
        warm = _Ours(stack, models, 2, prompt_tokens, gpu).asked(WARM_PROMPT)
        for name, peer in ((HELD, plain), (HELD_COMPILED, compiled)):
            with ExitStack() as open_now:
                before = peer.graph_skips
                rounds.take(warm, {name: _held_open(other, peer, open_now)}, HELD_TURNS)
                if peer.compiles and "failed" not in rounds.rows[name]:
                    rounds.rows[name]["cuda_graph_skips"] = peer.graph_skips - before
            peer.forget()
    return {NAME: {"settings": str(settings), "ways": rounds.rows}}


class _Rounds:
    """Interleaves ours and theirs; a way that fails is left out, with the reason."""

    def __init__(self, effort: Effort) -> None:
        self._effort = effort
        self.rows: dict[str, dict[str, Any]] = {}

    def take(self, ours: Way, ways: Mapping[str, Way], warm_turns: int = WARM_TURNS) -> None:
        """Warm up each way, which shows whether it works; then interleave those that do."""
        working: dict[str, Callable[[], float]] = {}
        for name, way in ways.items():
            try:
                for turn in range(warm_turns):
                    way(turn)
            except Exception as error:  # a failing way must not end the others
                self.rows[name] = {"failed": sentence(error)}
            else:
                working[name] = turns(way)
        if working:
            samples = interleave({OURS: turns(ours), **working}, self._effort)
            self.rows |= {name: _row(samples[name], samples[OURS]) for name in working}


def _row(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    return {"seconds": median(theirs), "ours_s": median(ours), **paired_ratio(theirs, ours).plain("ratio")}


class _Ours:
    """Our engine with HBM for `residents` experts, asked for the models in turn."""

    def __init__(self, stack: ExitStack, models: Sequence[Model], residents: int, tokens: int, gpu: Gpu) -> None:
        named, settings = {model.name: model for model in models}, settings_for(tuple(models), residents, tokens + 1)
        device = gpu.make()
        stack.callback(device.close)
        self._parts = wire(named, plan(named, device.spec, settings), settings, device)
        self._models, self._ids = models, count()
        warm_up(self._parts, named, named)

    def asked(self, prompt_tokens: int) -> Way:
        """Seconds from the request to the first token; two turns of each model are run first, to compile kernels."""

        def way(turn: int) -> float:
            model = self._models[turn % len(self._models)]
            return ttft(ask(self._parts, model, f"{next(self._ids)}", prompt_tokens))

        for turn in range(2 * len(self._models)):
            way(turn)
        return way


def _held_open(reload: Reload, peer: Transformers, stack: ExitStack) -> Way:
    """Seconds to prefill one token on the other of two models, both open on the GPU until the stack closes."""
    opened: list[Session] = []

    def way(turn: int) -> float:
        if not opened:
            opened.extend(reload.opened(peer, stack))
        session = opened[turn % len(opened)]
        return synchronized(session, lambda one: one.prefill(reload.prompt[:WARM_PROMPT]))

    return way


def _settings(peer: Transformers, path: Path, work: Work, max_tokens: int) -> Settings | str:
    """The settings with the attention that prefills fastest, or the reason why none works."""
    try:
        settings, session = fastest(peer, path, max_tokens, work)
    except Exception as error:  # as in _Rounds
        return sentence(error)
    session.close()
    return settings


def add_rows(table: Table, peers: Mapping[str, Mapping[str, Any]]) -> None:
    """Add a row for the fastest of their cold ways, and one for the fastest with both models in HBM."""
    for name, row in peers.items():
        for ours, what in ((COLD, "to first token"), (WARM, "a resident switch")):
            found = {way: at for way, at in row["ways"].items() if AGAINST[way] == ours and "failed" not in at}
            if found:
                best = min(found, key=lambda way: float(found[way]["seconds"]))
                mine = f"ours {format_seconds(found[best]['ours_s'])}"
                seconds, ratio = format_seconds(found[best]["seconds"]), f"{found[best]['ratio']:.2f}"
                table.add_row(f"{name}, {best}: {what}", seconds, mine, ratio)


def notes(peers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each way."""
    lines = []
    for name, row in peers.items():
        if "settings" in row:
            lines.append(f"{name} at its best: {row['settings']}; ratios are its time over ours")
        for way, at in row["ways"].items():
            if "failed" in at:
                lines.append(f"{name}, {way}: did not run: {at['failed']}")
            else:
                times = f"{format_seconds(at['seconds'])}, ours {format_seconds(at['ours_s'])}"
                pinned = "" if at.get("pinned", True) else "; not pinned"
                lines.append(f"{name}, {way}: {times}, ratio {at['ratio']:.2f}{graphs(at)}{pinned}")
    return lines
