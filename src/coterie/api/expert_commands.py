"""What may be asked besides answers: that experts come, go, and stay.

Knows nothing about how the engine does it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager

from coterie.api.types import Chunk
from coterie.core.errors import CoterieError, fresh
from coterie.engine.expert_control import ExpertControl, Told


class ExpertCommands(ABC):
    """The part of what serves that loads, unloads and pins."""

    @abstractmethod
    def _advance_for(self, wanted: set[str]) -> list[Chunk]:
        """One step's chunks of these queries."""

    @abstractmethod
    def load_soon(self, expert: str, tell: Told) -> None:
        """As load, but do not wait: a later `step` calls `tell`, with None or with why it is not there."""

    @abstractmethod
    def unload(self, expert: str) -> None:
        """Forget every copy of an expert. Raises NotFoundError, ConflictError while it is used, loading or pinned."""

    @abstractmethod
    def pin(self, expert: str) -> None:
        """Never evict an expert from the run tier, from now or from when it comes in.

        Raises NotFoundError, and ConflictError where the largest of the others would have no room any more.
        """

    @abstractmethod
    def unpin(self, expert: str) -> None:
        """Let an expert be evicted again. Raises NotFoundError."""

    def load(self, expert: str) -> None:
        """Bring an expert into the run tier and wait until all of it is there. It may be evicted again: see pin.

        Others go on meanwhile, their chunks are kept. Raises NotFoundError, ConflictError where pinned ones leave no
        room, and the failure of the load.
        """
        told: list[CoterieError | None] = []
        self.load_soon(expert, told.append)
        while not told:
            self._advance_for(set())
        if told[0] is not None:
            raise fresh(told[0])


class Controlled(ExpertCommands):
    """The same, by the control of one engine."""

    @abstractmethod
    def _control(self, expert: str) -> AbstractContextManager[tuple[ExpertControl, str]]:
        """Where an expert is controlled, between two steps, and its own name. Raises NotFoundError, ClosedError."""

    def load_soon(self, expert: str, tell: Told) -> None:
        """As load, but do not wait: a later `step` calls `tell`, with None or with why it is not there."""
        with self._control(expert) as (control, name):
            control.load(name, tell)

    def unload(self, expert: str) -> None:
        """Forget every copy of an expert."""
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
