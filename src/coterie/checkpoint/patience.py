"""Warns which checkpoint is being opened if that takes long, for example on a network disk that does not answer.

    with Patience(folders) as patience:
        for name in ...: patience.at(name)      logs "opening NAME (FOLDER), 3 of 200, takes long ..."

There is no timeout: how long to wait is up to the user.
Knows nothing about what is opened.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE_S = 5.0

_LOGGER = logging.getLogger(__name__)


class Patience:
    """A pass over many names; those in `folders` lie on a disk and may take long to open."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders, self._name, self._count = folders, "", 0
        self._ended = threading.Event()

    def at(self, name: str) -> None:
        """Record that this one is being opened now."""
        self._name, self._count = name, self._count + 1

    def __enter__(self) -> Self:
        with suppress(RuntimeError):  # no warnings if no thread can be started; that is reported elsewhere
            threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._ended.set()

    def _tell(self) -> None:
        """Every PATIENCE_S, warn if the same checkpoint as the last time is still being opened."""
        seen, looks = 0, 0
        while not self._ended.wait(PATIENCE_S):
            looks = looks + 1 if self._count == seen else 0
            seen, name = self._count, self._name
            if looks and name in self._folders:
                what = f"{name} ({self._folders[name]}), {seen} of {len(self._folders)},"
                _LOGGER.warning("opening %s takes long: its disk has not answered for %.0f s", what, looks * PATIENCE_S)
