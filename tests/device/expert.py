"""A model in the run tier of any device, for tests. Knows nothing about what is expected of it."""

from __future__ import annotations

from coterie.device import Binding
from coterie.graph.compile import compile_graph
from coterie.memory.transfer import Below, copy_layout, fetch_layout, stage_gates


class Expert:
    """A model in the run tier of any device; `tier` says by which way its bytes come."""

    def __init__(self, device, model, rules="cache", way="disk"):
        self.device, self.model = device, model
        self.exe = device.load(compile_graph(model.graph, rules, share_buffers=rules != "none"))
        layout, tiers = model.layout, device.spec.weight_tiers
        self.weights = device.reserve(tiers[0], layout.size_bytes)
        self.events = []
        if way == "disk":
            fetch_layout(device, layout, self.weights, self.events)
        else:
            below, arrivals = device.reserve(tiers[1], layout.size_bytes), []
            fetch_layout(device, layout, below, arrivals)
            copy_layout(device, layout, self.weights, Below(below, arrivals), self.events)
        self.kv = device.reserve(tiers[0], 8 * 4096)

    def binding(self, step):
        return Binding(self.weights, self.model.layout.offsets(self.exe.program.weights), self.kv, 4096, step)

    def tokens(self, step, **options):
        gates = stage_gates(self.model.layout, self.events) if self.events else {}
        event = self.device.run(self.exe, self.binding(step), gates, **options)
        while not self.device.done(event):
            self.device.wait_any([event])
        return self.device.tokens(event).tolist()

    def inspect(self, step):
        self.tokens(step)
        return self.device.inspect(self.exe, self.binding(step))
