"""The interface of another engine to a bench: convert a checkpoint, open it, prefill, decode, close.

    prepare (not timed) -> prepared checkpoint -> open (a load) -> Session: prefill, decode ... -> close

Knows nothing about any engine in particular.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from coterie.core.errors import UsageError, install_extra
from coterie.spec.this_machine import allowed_cores, allowed_cpus


@dataclass(frozen=True, slots=True)
class Settings:
    """How an engine is run. `load` and `attention` are engine-specific names."""

    threads: int
    load: str
    attention: str

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        return f"{self.threads} thread{plural}, {self.load}, {self.attention}"


class Session(Protocol):
    """One open model with a KV cache for one sequence; greedy decoding."""

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Empty the cache, run the prompt and return the token sampled after it."""

    def decode(self, count: int) -> list[int]:
        """Sample `count` more tokens, one step each, after the last one."""

    def rewind(self, tokens: int) -> None:
        """Keep only the first `tokens` of the cache, so that the next decode steps see the same context again."""

    def synchronize(self) -> None:
        """Wait until all queued work is done; on a CPU there is none."""

    def close(self) -> None:
        """Release everything."""


class Batch(Protocol):
    """One open model with KV caches for several sequences, each in its own slot; greedy decoding."""

    def step(self, prompts: Mapping[int, Sequence[int]], going: Sequence[int]) -> Mapping[int, int]:
        """Run the prompts of new slots and one token of the continuing ones: slot -> the token sampled."""

    def leave(self, slot: int) -> None:
        """Empty a slot."""

    def close(self) -> None:
        """Release everything."""


@runtime_checkable
class InBatches(Protocol):
    """What a Peer also implements if it can run several sequences of a model at once."""

    def open_batch(self, prepared: Path, settings: Settings, max_tokens: int, slots: int, shared: bool) -> Batch:
        """Load the model with room for `slots` sequences of `max_tokens` each. Raises DeviceError.

        `shared`: they share one KV cache; otherwise each has its own part.
        """


class Peer(Protocol):
    """An engine to compare with."""

    @property
    def name(self) -> str:
        """The name shown in reports."""

    @property
    def converts(self) -> bool:
        """Whether `prepare` writes a copy of the weights, in the engine's own format."""

    def precisions(self, weights: str) -> tuple[str, ...]:
        """The engine's formats that are as precise as `weights` (bf16, int8, int6, int4, int4z); all are tried."""

    def candidates(self, threads: int) -> tuple[Settings, ...]:
        """Settings worth a trial if our engine has this many threads; those with the most threads first."""

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """Convert a Hugging Face folder into what `open` takes, under `out`. Raises UnsupportedError."""

    def files(self, prepared: Path) -> tuple[Path, ...]:
        """The files that an open reads, so that they can be dropped from the page cache."""

    def open(self, prepared: Path, settings: Settings, max_tokens: int) -> Session:
        """Load the model with room for one sequence of `max_tokens`. Raises DeviceError if the engine refuses."""

    def reserve(self, prepared: Iterable[Path], settings: Settings) -> None:
        """Allocate the memory that closed models will be kept in, so that opening them does not."""

    def forget(self) -> None:
        """Free what is kept of closed models."""


class KeepsNothing:
    """Mixin for a Peer that keeps nothing of closed models."""

    def reserve(self, prepared: Iterable[Path], settings: Settings) -> None:
        """Nothing to allocate."""

    def forget(self) -> None:
        """Nothing to free."""


class TokenByToken(ABC):
    """Base of a Session on a CPU that decodes with one call of `_step` per token, and keeps the last one sampled."""

    _last = 0

    def decode(self, count: int) -> list[int]:
        """One call per token."""
        drawn = []
        for _ in range(count):
            self._last = self._step((self._last,))
            drawn.append(self._last)
        return drawn

    def synchronize(self) -> None:  # noqa: B027
        """Nothing to wait for: calls are synchronous."""

    @abstractmethod
    def _step(self, ids: Sequence[int]) -> int:
        """Run these tokens and return the one sampled after them."""


def thread_counts(threads: int) -> list[int]:
    """Numbers of threads worth a trial for a peer on a CPU, the largest first: as many as ours, and one.

    If ours uses all cores that it would by default, also one per logical CPU (hyperthreads and efficiency cores).
    """
    return sorted({1, threads, allowed_cpus()[0] if threads >= allowed_cores()[0] else 1}, reverse=True)


def missing_extra(name: str, package: str, extra: str = "peers") -> UsageError:
    """The error for an engine whose package is not installed."""
    fact = f"{name} needs the package {package}, which is not installed"
    return UsageError("--peer", fact, install_extra(extra))
