"""The process's resident memory, and returning freed memory to the system.

Knows nothing about what allocated it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path


def resident_bytes() -> int:
    """Resident set size of this process in bytes, including mapped files; 0 if the system does not report it.

    Source: proc(5), /proc/pid/statm, the second number, in pages.
    """
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def give_back() -> None:
    """Return freed heap memory to the system, which glibc otherwise keeps without bound.

    Takes microseconds to tens of milliseconds, depending on how much there is; other threads keep running. No effect
    without `malloc_trim`. Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # ctypes releases the GIL during the call
    if trim is not None:
        trim(0)
