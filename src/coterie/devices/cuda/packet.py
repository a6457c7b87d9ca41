"""Packets: pinned memory that carries a run's words down and its tokens up, reused by later runs of that size.

Knows nothing about what is in them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from coterie.devices.cuda.driver import Driver, Stream, take_pinned
from coterie.devices.real.host_memory import Bytes
from coterie.kernels.triton.tiles import power_of_two

ALIGN_BYTES = 16
MIN_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a block of memory."""

    start: int
    size_bytes: int


def parts_of(sizes: Mapping[str, int]) -> tuple[dict[str, Part], int]:
    """Consecutive aligned parts of these sizes, and their total size."""
    parts, end = {}, 0
    for name, size in sizes.items():
        parts[name] = Part(end, size)
        end += -(-size // ALIGN_BYTES) * ALIGN_BYTES
    return parts, end


@dataclass(frozen=True, slots=True)
class Packet:
    """Memory for the way down to the GPU, and for the way up."""

    down: torch.Tensor
    up: torch.Tensor
    sent: Bytes  # the bytes of `down` (`came`: of `up`): asking a tensor for them takes longer than writing a few
    came: Bytes

    @staticmethod
    def of(down: torch.Tensor, up: torch.Tensor) -> Packet:
        """A packet in this memory."""
        return Packet(down, up, down.numpy(), up.numpy())

    def put(self, start: int, values: npt.NDArray[np.generic]) -> None:
        """Write numbers to the way down."""
        if values.size == 0:
            return
        bits = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
        self.sent[start : start + len(bits)] = bits


class Packets:
    """Owns the packets that no run is using. Any thread may take and give back."""

    def __init__(self, driver: Driver) -> None:
        self._driver, self._lock = driver, threading.Lock()
        self._free: dict[tuple[int, int], list[Packet]] = {}

    def take(self, down_bytes: int, up_bytes: int) -> Packet:
        """A packet with room for this many bytes each way. Raises DeviceError when the system refuses to pin more."""
        size = max(power_of_two(down_bytes), MIN_BYTES), max(power_of_two(up_bytes), MIN_BYTES)
        with self._lock:
            free = self._free.get(size)
            if free:
                return free.pop()
        memory = take_pinned(self._driver, "a step", sum(size))
        return Packet.of(memory[: size[0]], memory[size[0] :])

    def give_back(self, packet: Packet) -> None:
        """Return a packet after its run: no stream may read or write it any more."""
        with self._lock:
            self._free.setdefault((packet.down.numel(), packet.up.numel()), []).append(packet)

    def abandon(self, packet: Packet, stream: Stream) -> None:
        """Return a packet of work that could not be queued completely, once the queued part has ended."""
        with suppress(Exception):  # a lost GPU no longer reads the packet
            self._driver.wait(self._driver.mark(stream))
        self.give_back(packet)
