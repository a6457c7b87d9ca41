"""Other engines on the same GPU, in the same rounds: transformers eager and compiled, each with its best attention.

    eager       a growing KV cache, every kernel launched from Python
    compiled    a static KV cache, torch.compile(mode="reduce-overhead"): a CUDA graph for each step

The table shows the fastest way, the JSON all of them; one that cannot run gives a reason, and the others continue.
Knows nothing about what the work is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from coterie.bench.peers.best import PEERS, Chosen, Work, prepared_peer, seconds_of, trial_of
from coterie.bench.peers.open_peers import OpenPeer, add_peer_rows, peer_row
from coterie.bench.peers.peer import Session, Settings
from coterie.bench.peers.transformers import FILE, Phase, Transformers
from coterie.core.errors import UsageError
from coterie.models.model import Model
from coterie.spec.this_machine import allowed_cpus

NAME = "transformers"


@dataclass(frozen=True, slots=True)
class OnGpu:
    """Ways that are open and measured, and those that failed, with the reason.

    `graph_skips`: for compiled ways, how often the compiler gave up on a CUDA graph.
    """

    open: tuple[OpenPeer, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    graph_skips: Mapping[str, int] = field(default_factory=dict)

    def ways(self, timed: Callable[[Session], float]) -> dict[str, Callable[[], float]]:
        """What to interleave: name -> a function that runs once and returns seconds."""
        return {other.name: partial(timed, other.session) for other in self.open}


def check_peers(names: Sequence[str]) -> tuple[str, ...]:
    """The distinct names. Raises UsageError for one that is not a peer on a GPU."""
    for name in names:
        if name != NAME:
            fact = f"{name!r} is not compared on a GPU" if name in PEERS else f"{name!r} is not a peer"
            raise UsageError("--peer", fact, f"use {NAME}")
    return tuple(dict.fromkeys(names))


def engines(names: Sequence[str], device: str, phase: Phase) -> tuple[Transformers, ...]:
    """Both ways of each peer on torch's `device`. Raises UsageError for an unknown name or a missing extra."""
    return (Transformers(device), Transformers(device, phase)) if check_peers(names) else ()


def open_on_gpu(
    stack: ExitStack, peers: Sequence[Transformers], model: Model, weights: str, max_tokens: int, work: Work
) -> OnGpu:
    """Open each way with the attention that is fastest for the work, until the stack closes."""
    opened: list[OpenPeer] = []
    failed: dict[str, str] = {}
    skips: dict[str, int] = {}
    for peer in peers:
        prepared = stack.enter_context(prepared_peer(peer, model.checkpoint.path, weights))
        if not prepared:
            failed[peer.name] = f"it has no {weights} weights of its own"
        for precision, path in prepared.items():
            before = peer.graph_skips
            try:
                settings, session = fastest(peer, path, max_tokens, work)
            except Exception as error:  # a failing peer must not end the bench
                failed[peer.name] = sentence(error)
                continue
            if peer.compiles:
                skips[peer.name] = peer.graph_skips - before
            stack.callback(session.close)
            opened.append(
                OpenPeer(peer.name, Chosen(peer, precision, settings, path), session, same=True, memory_bytes=0)
            )
    return OnGpu(tuple(opened), failed, skips)


def fastest(peer: Transformers, path: Path, max_tokens: int, work: Work) -> tuple[Settings, Session]:
    """The fastest setting that works, and its session, left open so that it is compiled only once.

    A peer that compiles takes minutes per setting, so the first one that works is used. If none works, raises the first
    one's error. Sessions that were closed or failed hold no memory afterwards.
    """
    best: tuple[float, Settings, Session] | None = None
    failure: Exception | None = None
    for settings in (one for one in peer.candidates(allowed_cpus()[0]) if one.load == FILE):
        try:
            session = peer.open(path, settings, max_tokens)
        except Exception as error:  # for example an attention that is not available
            failure = failure or _forgetful(error)
            peer.forget()
            continue
        try:
            took = trial_of(session, work)
        except Exception as error:  # for example a missing compiler, or too little memory
            failure = failure or _forgetful(error)
            session.close()
            del session
            peer.forget()
            continue
        if best is None or took < best[0]:
            if best is not None:
                best[2].close()
            best = took, settings, session
        else:
            session.close()
        del session
        peer.forget()
        if peer.compiles:
            break
    if best is None:
        raise failure or RuntimeError(f"{peer.name} has no setting to try")
    return best[1:]


def _forgetful(error: Exception) -> Exception:
    """The error without its tracebacks, whose frames keep a model alive."""
    before: BaseException | None = error
    while before is not None:
        before.__traceback__ = None
        before = before.__cause__ or before.__context__
    return error


def sentence(error: Exception) -> str:
    """The error's type and the first line of its message that is not blank."""
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    return f"{type(error).__name__}: {said}"


def synchronized(session: Session, work: Callable[[Session], object]) -> float:
    """Seconds of the work, with the device idle before it and synchronized after it."""
    session.synchronize()

    def all_of_it() -> None:
        work(session)
        session.synchronize()

    return seconds_of(all_of_it)


def peer_rows(samples: Mapping[str, list[float]], ours: str, found: OnGpu, tokens: int = 1) -> dict[str, Any]:
    """The fastest way's row under the peer's name, plus all `ways`; only `ways` if none could run."""
    rows = {other.name: peer_row(samples, ours, other, tokens) for other in found.open}
    for name, skips in found.graph_skips.items():
        rows[name]["cuda_graph_skips"] = skips
    if not rows and not found.failed:
        return {}
    ways = {**rows, **{name: {"failed": why} for name, why in found.failed.items()}}
    best = min(rows, key=lambda name: rows[name]["ratio"], default=None)
    shown: dict[str, Any] = {} if best is None else {**rows[best], "way": best}
    return {NAME: {**shown, "ways": ways}}


def add_rows(table: Table, peers: Mapping[str, Mapping[str, Any]], tokens: float = 1) -> None:
    """Add a row for each peer's fastest way: way, time of `tokens` tokens, tokens/s, (empty), ratio."""
    add_peer_rows(table, {row["way"]: row for row in peers.values() if "way" in row}, tokens)


def notes(peers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each way: its setting and rate, or why it did not run."""
    lines = []
    for row in peers.values():
        for name, way in row["ways"].items():
            if "failed" in way:
                lines.append(f"{name} did not run: {way['failed']}")
            else:
                rate = f"{way['tokens_per_s']:.1f} tokens/s, {way['ratio']:.2f} x our time"
                lines.append(f"{name}: {rate}; {way['precision']}, {way['settings']}{graphs(way)}")
    return lines


def graphs(way: Mapping[str, Any]) -> str:
    """A remark on a way whose compiler gave up on CUDA graphs; empty for others."""
    skips = way.get("cuda_graph_skips")
    return f"; its compiler gave up on {skips} CUDA graphs, so it is not at its best" if skips else ""
