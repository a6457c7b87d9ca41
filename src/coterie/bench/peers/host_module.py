"""A module of torch that waits in host memory: one piece of it, pinned on a GPU's host, copied up tensor by tensor.

Knows nothing about what the module computes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

ALIGN = 256  # bytes, at which tensors of any type may begin
PORTABLE = 1  # cudaHostRegisterPortable: pinned for every GPU. Source: CUDA runtime API, memory management


class HostModule:
    """Weights are read-only, so a copy on the device is dropped, never brought back."""

    def __init__(self, torch: Any, module: Any, device: str) -> None:
        self._torch, self.module, self._device = torch, module, device
        found = list(_tensors(module))
        sizes = [tensor.numel() * tensor.element_size() for tensor in found]
        places = [-(-size // ALIGN) * ALIGN for size in sizes]
        memory = torch.empty(sum(places), dtype=torch.uint8)
        self.is_pinned = device.startswith("cuda") and _pin(torch, memory, self)
        self._held: list[tuple[Any, Any]] = []
        start = 0
        for tensor, size, place in zip(found, sizes, places, strict=True):
            host = memory[start : start + size].view(tensor.dtype).view(tensor.shape)
            host.copy_(tensor)
            tensor.data = host
            self._held.append((tensor, host))
            start += place

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


def _tensors(module: Any) -> Iterator[Any]:
    """Parameters and buffers, tied ones once."""
    yield from module.parameters()
    yield from module.buffers()


def _pin(torch: Any, memory: Any, owner: object) -> bool:
    """Pin what torch would round up to a power of two; undone with its owner. False where the system refuses."""
    runtime, address = torch.cuda.cudart(), memory.data_ptr()
    if int(runtime.cudaHostRegister(address, memory.numel(), PORTABLE)):
        return False
    weakref.finalize(owner, _unpin, runtime, memory)
    return True


def _unpin(runtime: Any, memory: Any) -> None:
    runtime.cudaHostUnregister(memory.data_ptr())
