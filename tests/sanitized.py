"""A pytest plugin for `make sanitize`: native modules of a build folder in place of the installed ones.

    LD_PRELOAD=libtsan.so COTERIE_SANITIZED=build/tsan python -m pytest -p tests.sanitized tests/device/test_fetch.py

Knows nothing about what they compute.
"""

from __future__ import annotations

import mmap
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

MODULES = {"coterie.kernels._cpu": "_cpu.*.so", "coterie.devices._clock": "_clock.*.so"}
READ = os.preadv


def stand_in(folder: Path) -> None:
    """Load the modules under their own names, before anybody imports them."""
    for name, pattern in MODULES.items():
        assert name not in sys.modules, f"{name} is loaded already"
        [library] = folder.glob(pattern)
        spec = spec_from_file_location(name, library)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(module)


def seen_preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
    """os.preadv by a copy: ThreadSanitizer knows what memcpy writes, but not what the system call preadv2 does."""
    done = 0
    for buffer in buffers:
        target = memoryview(buffer).cast("B")
        with mmap.mmap(-1, max(len(target), 1)) as pages:  # aligned, as direct reads want it
            count = READ(descriptor, [memoryview(pages)[: len(target)]], offset + done)
            target[:count] = pages[:count]
        done += count
        if count < len(target):
            break
    return done


def unseen_reads(*_sizes: int) -> None:
    """ThreadSanitizer knows nothing of what the system writes by itself; tests/native/reads.cpp tests those reads."""
    raise RuntimeError("reads that are not seen")


stand_in(Path(os.environ["COTERIE_SANITIZED"]))
sys.modules["coterie.kernels._cpu"].Reads = unseen_reads  # type: ignore[attr-defined]
os.preadv = seen_preadv
