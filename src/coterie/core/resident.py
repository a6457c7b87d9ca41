"""What this process holds of the machine's memory, and what of it goes back to the system once it was freed.

Knows nothing about what took it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def resident_bytes() -> int:
    """Bytes of memory that this process holds now, mapped files included; 0 where the system does not say.

    Source: proc(5), /proc/pid/statm, the second number, in pages.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Give the system what was freed: glibc keeps that for whoever may want it again, without bound.

    Takes up to tens of milliseconds, in which other threads go on, and microseconds where there is little. Where there
    is no `malloc_trim` nothing is done. Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # Python lets other threads go on while it runs
    if trim is not None:
        trim(0)
