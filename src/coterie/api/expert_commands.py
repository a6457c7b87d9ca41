"""Commands besides queries: loading, unloading and pinning experts.

Knows nothing about how the engine does it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from coterie.api.types import Chunk
from coterie.core.errors import CoterieError, fresh
from coterie.engine.expert_control import ExpertControl, LoadCallback


class ExpertCommands(ABC):
    """The part of a server that loads, unloads and pins."""

    @abstractmethod
    def _advance_for(self, wanted: set[str]) -> list[Chunk]:
        """One step's chunks of these queries."""

    @abstractmethod
    def load_soon(self, expert: str, callback: LoadCallback) -> None:
        """As load, without waiting: a later `step` calls `callback`, with None or the error."""

    @abstractmethod
    def unload(self, expert: str) -> None:
        """Drop every copy of an expert. Raises NotFoundError; ConflictError while it is in use, loading or pinned."""

    @abstractmethod
    def pin(self, expert: str) -> None:
        """Never evict an expert from the run tier, from now on or once it is loaded.

        Raises NotFoundError, and ConflictError if that would leave no room for the largest other expert.
        """

    @abstractmethod
    def unpin(self, expert: str) -> None:
        """Let an expert be evicted again. Raises NotFoundError."""

    def load(self, expert: str) -> None:
        """Load an expert into the run tier and wait for all of it. It may be evicted later: see pin.

        Other queries continue meanwhile; their chunks are kept. Raises NotFoundError, ConflictError if pinned experts
        leave no room, and the failure of the load.
        """
        results: list[CoterieError | None] = []
        self.load_soon(expert, results.append)
        while not results:
            self._advance_for(set())
        if results[0] is not None:
            raise fresh(results[0])


class Controlled(ExpertCommands):
    """These commands, on one engine."""

    @abstractmethod
    def _control(self, expert: str) -> AbstractContextManager[tuple[ExpertControl, str]]:
        """The expert control, held between two steps, and the expert's own name. Raises NotFoundError, ClosedError."""

    def load_soon(self, expert: str, callback: LoadCallback) -> None:
        """As load, without waiting: a later `step` calls `callback`, with None or the error."""
        with self._control(expert) as (control, name):
            control.load(name, callback)

    def unload(self, expert: str) -> None:
        """Drop every copy of an expert."""
        with self._control(expert) as (control, name):
            control.unload(name)

    def pin(self, expert: str) -> None:
        """Never evict an expert from the run tier."""
        with self._control(expert) as (control, name):
            control.pin(name)

    def unpin(self, expert: str) -> None:
        """Let an expert be evicted again."""
        with self._control(expert) as (control, name):
            control.unpin(name)
