"""A torch module parked in one block of host memory (pinned for a GPU), and copied to the device tensor by tensor.

Knows nothing about what the module computes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from coterie.devices.cuda.driver import Driver, NoRoomError
from coterie.devices.real.host_memory import Bytes, Slab

ALIGN = 256  # bytes; suits tensors of any type


class HostRoom:
    """A block of host memory, pinned if a GPU's driver is given; `is_pinned` is False if the system refuses that."""

    def __init__(self, size_bytes: int, driver: Driver | None) -> None:
        self.bytes, self.is_pinned = Slab(size_bytes).bytes, False
        if driver is not None:
            try:
                driver.pin(self.bytes)  # torch's pinned allocator would round the size up to a power of two
            except NoRoomError:
                return
            self.is_pinned = True
            weakref.finalize(self, _unpin, driver, self.bytes)


def _unpin(driver: Driver, memory: Bytes) -> None:
    with suppress(Exception):  # at interpreter exit, CUDA may be gone already
        driver.unpin(memory)


class HostModule:
    """A module with its tensors in host memory. Weights are read-only, so the device's copy is simply dropped."""

    def __init__(self, torch: Any, module: Any, device: str, room: HostRoom) -> None:
        self._torch, self.module, self._device, self.room = torch, module, device, room
        memory = torch.from_numpy(room.bytes)
        self._held: list[tuple[Any, Any]] = []
        start = 0
        for tensor in _tensors(module):
            host = memory[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            host.copy_(tensor)
            self._held.append((tensor, host))
            start += _place_bytes(tensor)
        self.leave()

    def move(self) -> None:
        """Queue the copies on the device's stream; later work on it waits for them."""
        for tensor, host in self._held:
            there = self._torch.empty_like(host, device=self._device)
            there.copy_(host, non_blocking=True)
            tensor.data = there

    def leave(self) -> None:
        """Drop the copies on the device."""
        for tensor, host in self._held:
            tensor.data = host


def room_bytes(module: Any) -> int:
    """The bytes of a module's tensors, each aligned to ALIGN."""
    return sum(map(_place_bytes, _tensors(module)))


def _place_bytes(tensor: Any) -> int:
    return -(-int(tensor.nbytes) // ALIGN) * ALIGN


def _tensors(module: Any) -> Iterator[Any]:
    """Parameters and buffers; tied ones are yielded once."""
    yield from module.parameters()
    yield from module.buffers()
