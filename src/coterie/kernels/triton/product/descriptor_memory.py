"""Where launches make their tensor descriptors: in one piece of memory, in turn, each always in the same place.

Launches overlap (see arithmetic.py), so one makes its own while others before it still use theirs. A launch begins when
all programs of the one before it have begun, and those wait: they are on the GPU. So behind the places of as many
programs as a GPU has room for, nobody uses the first any more.

    | k in use | k+1 waits | ... | k+n waits | k+n+1 makes its own |  ->  from the front again
               |<--- at most MAX_PROGRAMS --->|

Knows nothing about kernels.
"""

from __future__ import annotations

import torch

PROGRAM_BYTES = 1024  # of descriptors of 128 bytes that a program makes, at most
# On a multiprocessor at once: 2048 threads (CUDA C++ Programming Guide, technical specifications), 128 for a program.
MAX_PROGRAMS = 16


class DescriptorMemory:
    """Places for the launches of one GPU. Taken in the order in which a step launches."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None
        self._at = 0

    def take(self, programs: int, multiprocessors: int, device: torch.device) -> torch.Tensor:
        """A place for a launch of up to a program for each multiprocessor."""
        if self._memory is None:
            # The one in use, those that wait, the new one, and what is left at the end where the new one finds no room.
            size = (MAX_PROGRAMS + 3) * multiprocessors * PROGRAM_BYTES
            self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        size = programs * PROGRAM_BYTES
        if self._at + size > self._memory.numel():
            self._at = 0
        self._at += size
        return self._memory[self._at - size : self._at]
