"""A module of torch that waits in host memory: one piece of it, pinned on a GPU's host, copied up tensor by tensor.

Knows nothing about what the module computes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from coterie.devices.cuda.driver import Driver, NoRoomError
from coterie.devices.real.host_memory import Bytes, Slab

ALIGN = 256  # bytes, at which tensors of any type may begin


class HostRoom:
    """Memory of the host, pinned where a GPU's driver does that; `is_pinned` is False where the system refuses."""

    def __init__(self, size_bytes: int, driver: Driver | None) -> None:
        self.bytes, self.is_pinned = Slab(size_bytes).bytes, False
        if driver is not None:
            try:
                driver.pin(self.bytes)  # torch's own way would round its size up to a power of two
            except NoRoomError:
                return
            self.is_pinned = True
            weakref.finalize(self, _unpin, driver, self.bytes)


def _unpin(driver: Driver, memory: Bytes) -> None:
    with suppress(Exception):  # at the end of a process CUDA may be gone before
        driver.unpin(memory)


class HostModule:
    """Weights are read-only, so a copy on the device is dropped, never brought back."""

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
        """Queue the copies; what computes on the device's stream afterwards waits for them."""
        for tensor, host in self._held:
            there = self._torch.empty_like(host, device=self._device)
            there.copy_(host, non_blocking=True)
            tensor.data = there

    def leave(self) -> None:
        """Drop what is on the device."""
        for tensor, host in self._held:
            tensor.data = host


def room_bytes(module: Any) -> int:
    """What its tensors take, each from a place where any type may begin."""
    return sum(map(_place_bytes, _tensors(module)))


def _place_bytes(tensor: Any) -> int:
    return -(-int(tensor.nbytes) // ALIGN) * ALIGN


def _tensors(module: Any) -> Iterator[Any]:
    """Parameters and buffers, tied ones once."""
    yield from module.parameters()
    yield from module.buffers()
