"""Peers that are measured with us: each opened with its best settings for the work, at our precision and coarser ones.

Knows nothing about what the work is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from coterie.bench.peers.best import Chosen, Work, choose, prepared_peer
from coterie.bench.peers.peer import Peer, Session
from coterie.bench.report import Spread, paired_ratio
from coterie.core.resident import resident_bytes
from coterie.core.units import format_bytes, format_seconds
from coterie.models.model import Model

# Our type of weights -> the peers' types to compare: the same precision first, then coarser ones, labelled as such.
PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "bf16": ("bf16", "int8", "int4"),
    "int8": ("int8",),
    "int6": ("int6",),
    "int4": ("int4",),
    "int4z": ("int4z",),
    "own": ("own",),
}


@dataclass(frozen=True, slots=True)
class OpenPeer:
    """An open session of a peer, and how it was chosen. `same` is False for a coarser precision than ours.

    `memory_bytes`: the growth of this process from before opening the session until after its first work.
    """

    name: str
    chosen: Chosen
    session: Session
    same: bool
    memory_bytes: int


def open_peers(
    stack: ExitStack, peers: Sequence[Peer], model: Model, weights: str, cpus: int, max_tokens: int, work: Work
) -> tuple[OpenPeer, ...]:
    """Open each peer until the stack closes; `model` is the unquantised checkpoint that all of them convert."""
    opened = []
    for peer in peers:
        for precision in PRECISIONS[weights]:
            prepared = stack.enter_context(prepared_peer(peer, model.checkpoint.path, precision))
            chosen = choose(peer, prepared, cpus, max_tokens, work)
            if chosen is None:
                continue  # not supported by this engine
            before = resident_bytes()
            session = peer.open(chosen.prepared, chosen.settings, max_tokens)
            stack.callback(session.close)
            work.ready(session)
            work.timed(session)
            same, grown = precision == weights, resident_bytes() - before
            name = peer.name if same else f"{peer.name} {chosen.precision}"
            opened.append(OpenPeer(name, chosen, session, same, grown))
    return tuple(opened)


def peer_row(samples: Mapping[str, list[float]], ours: str, peer: OpenPeer, tokens: int = 1) -> dict[str, Any]:
    """A row from a peer's samples, in seconds for `tokens` tokens; `ratio` is its time over ours within rounds."""
    return {
        "tokens_per_s": tokens / median(samples[peer.name]),
        **paired_ratio(samples[peer.name], samples[ours]).plain("ratio"),
        "precision": peer.chosen.precision,
        "same_precision": peer.same,
        "settings": str(peer.chosen.settings),
        "memory_bytes": peer.memory_bytes,
    }


def add_peer_rows(table: Table, rows: Mapping[str, Mapping[str, Any]], tokens: float = 1) -> None:
    """Add rows of way, time of `tokens` tokens, tokens/s, (empty), ratio; a peer that wins is marked."""
    for name, row in rows.items():
        ratio = f"{Spread.read(row, 'ratio')}{'' if row['ratio'] >= 1 else ': it wins'}"
        label = f"{name} {row['precision']}" if row["same_precision"] else f"{name} (coarser)"
        rate = row["tokens_per_s"]
        table.add_row(label, format_seconds(tokens / rate), f"{rate:.1f}", "", ratio)


def peer_notes(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The settings that each peer was measured with, and its memory."""
    return [
        f"{name} at its best: {row['precision']}, {row['settings']}; memory: {format_bytes(row['memory_bytes'])}"
        for name, row in rows.items()
    ]
