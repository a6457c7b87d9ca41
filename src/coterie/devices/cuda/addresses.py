"""GPU addresses of a run's weights and pages, cached as long as nothing moves.

Knows nothing about runs, or about what is in which extent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from coterie.checkpoint.layout import ALIGN_BYTES
from coterie.device import Binding, Buffer
from coterie.devices.cuda.inputs import Addresses, PerExpertWeights
from coterie.devices.cuda.memory import Memory
from coterie.devices.real.step import MAX_CACHED, LoweredExecutable, Offsets
from coterie.kernels.cpu import I64


class AddressCache:
    """Finds addresses, and caches recent ones."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._found: dict[tuple[object, ...], tuple[tuple[object, ...], Addresses]] = {}

    def of(self, exe: LoweredExecutable, binding: Binding) -> Addresses:
        """Addresses of weights and pages; the same object until something moves. Raises ValueError if unaligned."""
        weights, shared, kv, variants = binding.weights, binding.shared, binding.kv, binding.variants
        extents = (weights, kv, *([shared.weights] if shared else []), *(variants.weights if variants else ()))
        versions = tuple([self._memory.version(at) for at in extents])
        variant_key = variants and (variants.weights, variants.offsets)
        key = id(exe), weights, binding.offsets, shared, kv, binding.block_bytes, variant_key
        found = self._found.get(key)
        if found is None or any(was is not now for was, now in zip(found[0], versions, strict=True)):
            if len(self._found) >= MAX_CACHED:
                self._found.clear()
            found = self._found[key] = versions, self._find(exe, binding)
        return found[1]

    def _find(self, exe: LoweredExecutable, binding: Binding) -> Addresses:
        variants, own = exe.variants(binding), exe.offsets(binding)
        shared = binding.shared
        extents = (binding.weights, *(binding.variants.weights if binding.variants else ()))
        at = [
            self._weights(exe.program.weights, extent, shared.weights if shared else None, offsets)
            for extent, offsets in zip(extents, (own, *variants), strict=True)
        ]
        kv = self._memory.tensor(binding.kv).data_ptr()
        if kv % ALIGN_BYTES:
            raise ValueError(f"KV pages are at {kv}, no multiple of {ALIGN_BYTES}")
        per_expert = None
        if binding.variants is not None:
            per_expert = PerExpertWeights(np.stack(at), own.is_shared, shared.indices if shared else ())
        return Addresses(at[0], kv, binding.block_bytes, per_expert)

    def _weights(self, names: Sequence[str], extent: Buffer, shared: Buffer | None, offsets: Offsets) -> I64:
        """Addresses of weights. Raises ValueError for one that kernels could not load."""
        weights = self._memory.weights_at(extent, offsets.array)
        if shared is not None:
            weights = np.where(offsets.is_shared, self._memory.weights_at(shared, offsets.array), weights)
        odd = np.flatnonzero(weights % ALIGN_BYTES)
        if len(odd):
            fact = f"{names[int(odd[0])]} is at {int(weights[odd[0]])}, no multiple of {ALIGN_BYTES}"
            raise ValueError(f"{fact}: place tensors before they are filled")
        return weights
