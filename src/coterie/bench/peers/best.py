"""Finds each peer's best settings by a short trial on the workload itself, for a fair comparison.

Knows nothing about any engine in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep

from coterie.bench.peers.llama_cpp import LlamaCpp
from coterie.bench.peers.openvino import OpenVino
from coterie.bench.peers.peer import Peer, Session, Settings
from coterie.bench.peers.transformers import Transformers
from coterie.core.errors import UsageError

PEERS: dict[str, Callable[[], Peer]] = {"llama.cpp": LlamaCpp, "transformers": Transformers, "openvino": OpenVino}
TRIALS = 3  # per setting; the fastest counts
# Threads of llama.cpp and PyTorch keep spinning for 10 to 14 ms after a call, waiting for more work.
RESTING_S = 0.05


@dataclass(frozen=True, slots=True)
class Chosen:
    """A peer with the precision and settings that won its trial, and the prepared checkpoint."""

    peer: Peer
    precision: str
    settings: Settings
    prepared: Path

    @property
    def described(self) -> str:
        """Precision and settings, for people."""
        return f"{self.precision}, {self.settings}"


def peers_named(names: Sequence[str]) -> tuple[Peer, ...]:
    """The engines with these names, without duplicates. Raises UsageError for an unknown name or a missing extra."""
    for name in names:
        if name not in PEERS:
            raise UsageError("--peer", f"{name!r} is not a peer", f"use one of {', '.join(PEERS)}")
    return tuple(PEERS[name]() for name in dict.fromkeys(names))


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of a peer's work. Returns only once its threads are idle, so that the next measurement has all cores."""
    start = perf_counter()
    work()
    took = perf_counter() - start
    sleep(RESTING_S)
    return took


@contextmanager
def prepared_peer(peer: Peer, folder: Path, weights: str) -> Iterator[dict[str, Path]]:
    """The checkpoint in each of the peer's formats for `weights`: precision -> what to open. Removed on exit."""
    with TemporaryDirectory(prefix="coterie-peer-") as temporary:
        yield {name: peer.prepare(folder, Path(temporary) / name, name) for name in peer.precisions(weights)}


@dataclass(frozen=True, slots=True)
class Work:
    """The work that a peer is chosen for: `ready` prepares an open session, then `timed` is measured."""

    timed: Callable[[Session], object]
    ready: Callable[[Session], object] = lambda session: None


def choose(peer: Peer, prepared: Mapping[str, Path], cpus: int, max_tokens: int, work: Work) -> Chosen | None:
    """The fastest precision and settings for `work`; None if the peer has no such precision.

    Each precision is tried with each number of threads, then the best pair with the other settings, to avoid opening a
    large model for every combination.
    """
    first, candidates = peer.candidates(cpus)[0], peer.candidates(cpus)
    counts = [s for s in candidates if (s.load, s.attention) == (first.load, first.attention)]
    trials = [
        (_trial(peer, path, settings, max_tokens, work), name, settings)
        for name, path in prepared.items()
        for settings in counts
    ]
    if not trials:
        return None
    best = min(trials, key=lambda trial: trial[0])
    for settings in (s for s in candidates if s.threads == best[2].threads and s not in counts):
        took = _trial(peer, prepared[best[1]], settings, max_tokens, work)
        best = min(best, (took, best[1], settings), key=lambda trial: trial[0])
    _, precision, settings = best
    return Chosen(peer, precision, settings, prepared[precision])


def trial_of(session: Session, work: Work) -> float:
    """Seconds of the fastest of a few rounds of the work, on an open session."""
    return min(_timed(session, work) for _ in range(TRIALS))


def _trial(peer: Peer, path: Path, settings: Settings, max_tokens: int, work: Work) -> float:
    session = peer.open(path, settings, max_tokens)
    try:
        return trial_of(session, work)
    finally:
        session.close()


def _timed(session: Session, work: Work) -> float:
    work.ready(session)
    session.synchronize()
    return seconds_of(lambda: work.timed(session))
