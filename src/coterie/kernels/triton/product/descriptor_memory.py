"""Memory for tensor descriptors: a ring buffer per GPU, in which each launch always uses the same place.

Launches overlap (arithmetic.py), so one writes its descriptors while earlier ones still use theirs. A launch begins
when all programs of the previous one have begun, and these are resident on the GPU while they wait. So a place is free
again once there are as many later places as the GPU has room for programs.

    | k in use | k+1 waits | ... | k+n waits | k+n+1 makes its own |  ->  from the front again
               |<--------- resident -------->|     at most MAX_PROGRAMS programs per multiprocessor

Knows nothing about kernels.
"""

from __future__ import annotations

import torch

PROGRAM_BYTES = 1024  # limit per program: eight descriptors of 128 bytes
# Resident per multiprocessor: 2048 threads (CUDA C++ Programming Guide, technical specifications), 128 per program.
MAX_PROGRAMS = 16


class DescriptorMemory:
    """Places for the launches of one GPU, taken in launch order."""

    def __init__(self) -> None:
        self._memory: torch.Tensor | None = None
        self._at = 0

    def take(self, programs: int, multiprocessors: int, device: torch.device) -> torch.Tensor:
        """A place for a launch of `programs` programs, at most one per multiprocessor."""
        if self._memory is None:
            # The place in use, those waiting, the new one, and the end of the buffer where a new one does not fit.
            size = (MAX_PROGRAMS + 3) * multiprocessors * PROGRAM_BYTES
            self._memory = torch.empty(size, dtype=torch.uint8, device=device)
        size = programs * PROGRAM_BYTES
        if self._at + size > self._memory.numel():
            self._at = 0
        self._at += size
        return self._memory[self._at - size : self._at]
