"""What a bench may ask of another engine: convert a checkpoint, open it, prefill, decode, close.

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
    """How an engine is run. `load` and `attention` are names of the engine's own."""

    threads: int
    load: str
    attention: str

    def __str__(self) -> str:
        plural = "s" if self.threads > 1 else ""
        return f"{self.threads} thread{plural}, {self.load}, {self.attention}"


class Session(Protocol):
    """One open model with a cache for one sequence, greedy."""

    def prefill(self, prompt_ids: Sequence[int]) -> int:
        """Forget what was before, run the prompt and return the token drawn after it."""

    def decode(self, count: int) -> list[int]:
        """Draw `count` more tokens, one step each, after the last one drawn."""

    def rewind(self, tokens: int) -> None:
        """Keep only the first `tokens` of the cache, so that the next decode steps see the same context again."""

    def synchronize(self) -> None:
        """Wait until nothing is under way; on a CPU nothing ever is."""

    def close(self) -> None:
        """Give everything back."""


class Batch(Protocol):
    """One open model with caches for several sequences, each in a slot of its own, greedy."""

    def step(self, prompts: Mapping[int, Sequence[int]], going: Sequence[int]) -> Mapping[int, int]:
        """Run the prompts of the slots that begin and a token of those that go on: the token that each draws."""

    def leave(self, slot: int) -> None:
        """Empty a slot."""

    def close(self) -> None:
        """Give everything back."""


@runtime_checkable
class InBatches(Protocol):
    """What an engine has beside the rest of a Peer if it runs several sequences of a model at once."""

    def open_batch(self, prepared: Path, settings: Settings, max_tokens: int, slots: int, shared: bool) -> Batch:
        """Load the model with room for so many sequences of `max_tokens` each. Raises DeviceError.

        `shared`: all of them lie in one cache; else each has a part of its own.
        """


class Peer(Protocol):
    """An engine."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def converts(self) -> bool:
        """Whether `prepare` writes the weights again, in a form of the engine's own."""

    def precisions(self, weights: str) -> tuple[str, ...]:
        """The engine's formats that store `weights` (bf16, int8, int6, int4, int4z) as precisely, tried in turn."""

    def candidates(self, threads: int) -> tuple[Settings, ...]:
        """Settings worth a trial where ours has so many threads, those of the most threads first."""

    def prepare(self, folder: Path, out: Path, precision: str) -> Path:
        """Convert a Hugging Face folder into what `open` takes, under `out`. Raises UnsupportedError."""

    def files(self, prepared: Path) -> tuple[Path, ...]:
        """The files that an open reads, so that the page cache can be told to forget them."""

    def open(self, prepared: Path, settings: Settings, max_tokens: int) -> Session:
        """Load the model with room for `max_tokens` of one sequence. Raises DeviceError when the engine refuses."""

    def reserve(self, prepared: Iterable[Path], settings: Settings) -> None:
        """Take the memory in which it will keep closed models, so that opening them does not take it."""

    def forget(self) -> None:
        """Give back what it keeps of closed models."""


class KeepsNothing:
    """The part of a Peer that keeps nothing of closed models."""

    def reserve(self, prepared: Iterable[Path], settings: Settings) -> None:
        """It keeps nothing."""

    def forget(self) -> None:
        """It keeps nothing."""


class TokenByToken(ABC):
    """The part of a Session on a CPU that decodes one call a token, by `_step`, and remembers the last one drawn."""

    _last = 0

    def decode(self, count: int) -> list[int]:
        """One call a token."""
        drawn = []
        for _ in range(count):
            self._last = self._step((self._last,))
            drawn.append(self._last)
        return drawn

    def synchronize(self) -> None:  # noqa: B027
        """A call returns when it is done."""

    @abstractmethod
    def _step(self, ids: Sequence[int]) -> int:
        """Run these tokens; the one drawn behind them."""


def thread_counts(threads: int) -> list[int]:
    """How many threads of a peer are worth a trial on a CPU, the most first: as many as ours has, and one.

    Where ours has all cores that it takes by itself, also one for each CPU: hyperthreads and slow cores.
    """
    return sorted({1, threads, allowed_cpus()[0] if threads >= allowed_cores()[0] else 1}, reverse=True)


def missing_extra(name: str, package: str, extra: str = "peers") -> UsageError:
    """What is said when an engine's package is not installed."""
    fact = f"{name} needs the package {package}, which is not installed"
    return UsageError("--peer", fact, install_extra(extra))
