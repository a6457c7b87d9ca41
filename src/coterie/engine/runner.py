"""Runner: starts a step on the device and says what it keeps busy until it is done.

Knows nothing about why this batch was chosen.
"""

from __future__ import annotations

from coterie.device import Binding, Device, Event
from coterie.engine.batch import Batch
from coterie.engine.kv import KVPool
from coterie.engine.served import Places, ServedExpert
from coterie.memory.residency import Residency
from coterie.memory.split import Cache


class Runner:
    """Turns a batch of an expert into work on the compute lane."""

    def __init__(self, device: Device, cache: Cache, kv: KVPool) -> None:
        self._device, self._cache, self._kv = device, cache, kv
        self._places: dict[str, Places] = {}

    def start(self, expert: ServedExpert, residency: Residency, batch: Batch) -> Event:
        """Issue the steps of a batch; layers run as gates open. Weights and KV stay until the event is done."""
        expert_id, kv, rows, steps = expert.expert_id, self._kv, batch.rows, batch.steps
        places = self._places.get(expert_id)
        if places is None:
            places = self._places[expert_id] = expert.places
        offsets, shared = places
        binding = Binding(residency.weights, offsets, kv.buffer, kv.block_bytes, rows, shared)
        event = self._device.run(expert.exe, binding, residency.gates_of(rows.tokens_T, steps), steps)
        self._cache.hold(expert_id, event)
        kv.use(batch.owners, event)
        return event

    def finished(self, expert_id: str, event: Event) -> None:
        """Say that what was started is done: nothing is kept for it any longer."""
        self._cache.release(expert_id, event)
        self._kv.finished(event)
