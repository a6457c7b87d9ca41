"""Opening many checkpoints, of which one may lie on a disk that does not answer: then it is said which.

    with Patience(folders) as patience:
        for name in ...: patience.at(name)      "opening NAME (FOLDER), 3 of 200, takes long ..." where one does not end

Nothing is given up: whoever waits for a network's disk knows best how long. Knows nothing about what is opened.
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
    """A pass over what lies in these folders, by name; what has none is passed over quickly."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folders, self._name, self._count = folders, "", 0
        self._ended = threading.Event()

    def at(self, name: str) -> None:
        """This one is being opened now."""
        self._name, self._count = name, self._count + 1

    def __enter__(self) -> Self:
        with suppress(RuntimeError):  # where no thread may be started nothing is told, and others say why
            threading.Thread(target=self._tell, daemon=True).start()
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._ended.set()

    def _tell(self) -> None:
        """Tell of what was being opened at one look and still is at the next."""
        seen, looks = 0, 0
        while not self._ended.wait(PATIENCE_S):
            looks = looks + 1 if self._count == seen else 0
            seen, name = self._count, self._name
            if looks and name in self._folders:
                what = f"{name} ({self._folders[name]}), {seen} of {len(self._folders)},"
                _LOGGER.warning("opening %s takes long: its disk has not answered for %.0f s", what, looks * PATIENCE_S)
