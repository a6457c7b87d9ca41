"""An ExpertCache over a device whose copies end when a test says so, and small layouts to put into it."""

from __future__ import annotations

from fake_device import FakeDevice, fake_layout, fake_spec

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.memory.cache import ExpertCache

A, B, C = (fake_layout(name, 2, num_stages=2) for name in "abc")


def make(blocks, *lower, **options):
    tiers = ("hbm", "ddr")[: 1 + len(lower)] if lower else ("dram",)
    device = FakeDevice(fake_spec(*tiers, "disk"))
    budgets = {tier: n * BLOCK_BYTES for tier, n in zip(tiers, (blocks, *lower), strict=True)}
    return device, ExpertCache(device, budgets, **options)


def settle(device, cache):
    while device.open:
        device.finish(device.runnable()[0])
    cache.poll()
    cache.check_integrity()


def load(device, cache, name, layout):
    residency = cache.want(name, layout)
    settle(device, cache)
    return residency


def expected(layout):
    return [(layout.ranges[0].source.path, block) for block in range(layout.size_bytes // BLOCK_BYTES)]
