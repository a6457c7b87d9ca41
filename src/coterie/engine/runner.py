"""Runner: starts a step on the device and says what it keeps busy until it is done.

Knows nothing about why this batch was chosen.
"""

from __future__ import annotations

from coterie.device import Binding, Device, Event
from coterie.engine.batch import Batch
from coterie.engine.kv import KVPool
from coterie.engine.served import ServedExpert
from coterie.memory.residency import Residency
from coterie.memory.split import Cache


class Runner:
    """Turns a batch of an expert into work on the compute lane."""

    def __init__(self, device: Device, cache: Cache, kv: KVPool) -> None:
        self._device, self._cache, self._kv = device, cache, kv
        self._offsets: dict[str, tuple[int, ...]] = {}

    def start(self, expert: ServedExpert, residency: Residency, batch: Batch) -> Event:
        """Issue the steps of a batch; layers run as gates open. Weights and KV stay until the event is done."""
        if expert.expert_id not in self._offsets:
            self._offsets[expert.expert_id] = expert.offsets
        offsets = self._offsets[expert.expert_id]
        binding = Binding(residency.weights, offsets, self._kv.buffer, self._kv.block_bytes, batch.rows)
        gates = residency.gates_of(batch.rows.tokens_T, batch.steps)
        event = self._device.run(expert.exe, binding, gates=gates, steps=batch.steps)
        self._cache.hold(expert.expert_id, event)
        self._kv.use(batch.owners, event)
        return event

    def finished(self, expert_id: str, event: Event) -> None:
        """Say that what was started is done: nothing is kept for it any longer."""
        self._cache.release(expert_id, event)
        self._kv.finished(event)
