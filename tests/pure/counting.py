"""Work, counted: a test that times what it does fails on a machine that is busy."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


def calls_of(do: Callable[[], object]) -> int:
    """Calls of functions, Python's and C's, that it makes in this thread."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(before)
    return calls
