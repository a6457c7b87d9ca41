"""A GPU that is none, of whose calls one fails: any, each in turn, so that no fault is left to chance.

    error    the call raises what CUDA would, nothing of it is done, and the GPU goes on
    late     it is done, and raises all the same: CUDA reports what went wrong earlier whenever it is asked anything
    full     memory is refused, that of the GPU or pinned
    gone     the call raises, and from then on every call does

Knows nothing about devices.
"""

from __future__ import annotations

import threading
from collections import Counter

from tests.device.lazy_gpu import LazyDriver

from coterie.devices.cuda.driver import NoRoomError

MEMORY = ("device_memory", "pinned_memory", "pin")
CALLS = (*MEMORY, "unpin", "trim", "stream", "on", "copy", "copy_words", "copy_pieces")
CALLS += ("mark", "follow", "wait", "seconds", "launch", "capture", "replay")
LOST = "CUDA error: device lost"


class FailingDriver:
    """A lazy GPU whose call number `at` of the method `call` fails in the way of `how`; all calls are counted.

    Everything else is the lazy GPU's own.
    """

    def __init__(self, call="", at=0, how="error", **options):
        self._gpu = LazyDriver(**options)
        self._fault, self._how = (call, at), how
        self._lock = threading.Lock()
        self.counts = Counter()
        self.has_failed = False

    def __getattr__(self, name):
        found = getattr(self._gpu, name)
        return self._counting(name, found) if name in CALLS else found

    @property
    def facts(self):
        return self._gpu.facts

    def _counting(self, name, call):
        def counted(*given, **named):
            with self._lock:
                fails = (name, self.counts[name]) == self._fault
                self.counts[name] += 1
                self.has_failed = self.has_failed or fails
            if not fails:
                return call(*given, **named)
            if self._how == "full":
                raise NoRoomError("out of memory")
            if self._how == "gone":
                self._gpu.broken = LOST
                raise RuntimeError(LOST)
            if self._how == "late":
                call(*given, **named)
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nadvice in many lines")

        return counted

    @property
    def held(self):
        """Memory of the GPU, and pinned memory, that somebody has."""
        with self._gpu._lock:
            for stream in self._gpu._streams:
                stream.queue.clear()  # what is queued behind a device that was closed keeps what it would have used
        return dict(self._gpu._reach)
