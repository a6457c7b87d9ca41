"""StopText: turns text pieces into text that stops before the first stop string, never showing any part of it.

    pieces   "the an" "swer is" " 4\nQ"  ":"       stop string "\nQ:"
    given    "the an" "swer is" " 4"     ""        "\nQ" is held back until it is decided

Knows nothing about tokens.
"""

from __future__ import annotations

from coterie.core.text import overlap


class StopText:
    """Holds back text that may be the beginning of a stop string."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """Take the next piece and return what can be shown now. After a stop string everything is dropped."""
        if self.stopped:
            return ""
        if not self._stop:
            return piece
        text = self._held + piece
        found = _first_complete(text, self._stop)
        if found is not None:
            self.stopped, self._held = True, ""
            return text[:found]
        keep = max((overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """Return what was held back; no more text will come."""
        held, self._held = self._held, ""
        return held


def _first_complete(text: str, stops: tuple[str, ...]) -> int | None:
    """Where the stop string that is completed first begins; the earliest beginning where several end at one character.

    Deciding by the end, not the beginning, makes the answer independent of how the text was cut into pieces.
    """
    ends = [(start + len(stop), start) for stop in stops if (start := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None
