"""Runner: runs batches on the device, and holds the weights and KV blocks that they use until they are done.

Knows nothing about why this batch was chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from coterie.device import Binding, Device, Event, Variants
from coterie.engine.batch import Batch
from coterie.engine.choice import check_choice
from coterie.engine.kv import KVPool
from coterie.engine.recording import Recording
from coterie.engine.request import Request
from coterie.engine.served import Places, ServedExpert
from coterie.engine.vectors import Headless
from coterie.memory.residency import Residency
from coterie.memory.split import Cache


class Runner:
    """Turns a batch of an expert into work on the compute lane."""

    def __init__(self, device: Device, cache: Cache, kv: KVPool, recording: Recording | None = None) -> None:
        self._device, self._cache, self._kv, self._recording = device, cache, kv, recording
        self._places: dict[str, tuple[ServedExpert, Places]] = {}
        self._headless = Headless(device)

    def renewed(self, expert_id: str) -> None:
        """An expert was replaced or removed: drop what is cached about it."""
        self._places.pop(expert_id, None)

    def check(self, request: Request, expert: ServedExpert) -> None:
        """Raise RequestError or UnsupportedError for a request that this expert or this device cannot serve."""
        expert.check_prompt(request.prompt_ids)
        check_choice(request.choice, expert.vocab_size, self._device.synthetic())
        self._headless.check(request, expert)

    def run(
        self,
        experts: Sequence[ServedExpert],
        residencies: Sequence[Residency],
        batch: Batch,
        arrival_s: float | None = None,
        others: Collection[Event] = (),
        what: str = "",
    ) -> Event:
        """Run a batch to its end, or fewer of several steps: until one of `others` is done or a request arrives."""
        event = self.start(experts, residencies, batch, what)
        self.wait(event, arrival_s, others)
        for expert in experts:
            self._cache.release(expert.expert_id, event)
        self._kv.finished(event)
        return event

    def start(
        self, experts: Sequence[ServedExpert], residencies: Sequence[Residency], batch: Batch, what: str = ""
    ) -> Event:
        """Issue the steps of a batch; each layer runs when its gate opens. Weights and KV are held until it is done.

        With several experts, which must all be resident, `batch.mix` says which expert each sequence belongs to.
        `what`: a label for the recording; empty: derived from the batch.
        """
        if self._recording is not None:
            sizes, names = batch.rows.sizes, ", ".join([expert.expert_id for expert in experts])
            self._recording.about(names, what or batch.what, tokens=sizes.T, batch=sizes.B, steps=batch.steps)
        if batch.gives_vectors:
            experts = [self._headless.of(expert) for expert in experts]
        first, residency, kv, rows, steps = experts[0], residencies[0], self._kv, batch.rows, batch.steps
        (offsets, shared), variants = self._places_of(first), None
        if batch.mix is not None and len(experts) > 1:
            others = tuple([self._places_of(expert)[0] for expert in experts[1:]])
            variants = Variants(tuple([other.weights for other in residencies[1:]]), others, batch.mix.expert_B)
        binding = Binding(residency.weights, offsets, kv.buffer, kv.block_bytes, rows, shared, variants)
        event = self._device.run(first.exe, binding, residency.gates_of(rows.tokens_T, steps), steps)
        for expert in experts:
            self._cache.hold(expert.expert_id, event)
        kv.use(batch.owners, event)
        return event

    def wait(self, event: Event, arrival_s: float | None, others: Collection[Event]) -> None:
        """Wait for a run; interrupt one of several steps when one of `others` is done or at `arrival_s`."""
        while True:
            self._device.wait_any([event, *others], arrival_s)
            if self._device.done(event):
                return
            if others or arrival_s is not None:
                self._device.interrupt()
                arrival_s, others = None, ()

    def _places_of(self, expert: ServedExpert) -> Places:
        known = self._places.get(expert.expert_id)
        if known is None or known[0] is not expert:
            known = self._places[expert.expert_id] = (expert, expert.places)
        return known[1]
