"""A made-up machine and what tests of the modelled device do on it.

Knows nothing about what is expected of it.
"""

from __future__ import annotations

from tests.device.programs import Desk, rows

from coterie.devices.modelled.device import ModelledDevice
from coterie.spec.machine import Link, MachineSpec, Tier

NEAR = 1e-9
MIB = 2**20


def machine(flops_per_s=1e30, hbm=1e8, ddr=1e12, disk_link=1e6, link=1e12, host_s=0.0, device_s=0.0):
    """Three tiers; by default only hbm's 100 MB/s and the disk's 1 MB/s can be felt."""
    tiers = (
        Tier("hbm", 64 * MIB, hbm, "made up"),
        Tier("ddr", 256 * MIB, ddr, "made up"),
        Tier("disk", 2**40, 0.0, "made up"),
    )
    links = (
        Link("ddr", "hbm", link, 0.0, "made up"),
        Link("hbm", "ddr", link, 0.0, "made up"),
        Link("disk", "ddr", disk_link, 0.0, "made up"),
    )
    return MachineSpec("made-up", flops_per_s, "made up", tiers, links, host_s, device_s, "made up", "cache")


def desk_on(spec, layout, **options):
    return Desk(ModelledDevice(spec, **options), layout)


def took(desk, event):
    desk.wait(event)
    span = desk.device.span(event)
    return span.end_s - span.start_s


PREFILL = rows([([3, 1, 4, 1, 5], 0)])


def play(desk):
    """A small workload: cold start, decode, a copy beside it, another fetch. Returns events in order of issue."""
    gates = desk.fetch()
    first = desk.run(PREFILL, gates=gates)
    far = desk.device.reserve("ddr", MIB)
    copy = desk.device.copy(far, desk.device.reserve("hbm", MIB))
    decode = desk.run(rows([([9], 5)]), steps=4, after=[copy])
    again = list(desk.fetch(after=[decode]).values())
    events = [*gates.values(), first, copy, decode, *again]
    desk.wait(*events)
    return events


def spans(desk, events):
    return [desk.device.span(event) for event in events]
