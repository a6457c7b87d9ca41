"""The devices that the contract suite runs on. Adding a device: a row in DEVICES.

Knows nothing about what the suite asks of them.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from coterie.core.errors import TransferError
from coterie.devices.modelled import ModelledDevice
from coterie.spec.load import load_machine

BROKEN = "broken"  # in a path, makes a modelled device without files fail as a real one would


def fail_on_broken(label):
    """Stand in for a missing file on devices that look at no file."""
    return TransferError(label, "the file is broken", "replace it") if BROKEN in label else None


def cpu():
    return import_module("coterie.devices.cpu").CpuDevice()


DEVICES = {
    "modelled": lambda: ModelledDevice(load_machine("toy"), fail=fail_on_broken),
    "modelled-host": lambda: ModelledDevice(load_machine("toy"), orchestration="host", fail=fail_on_broken),
    "modelled-tiers": lambda: ModelledDevice(load_machine("toy-tiers"), fail=fail_on_broken),
}
if find_spec("coterie.devices.cpu") is not None:
    DEVICES["cpu"] = cpu
    DEVICES["modelled-on-cpu"] = lambda: ModelledDevice(load_machine("toy-tiers"), numerics=cpu())
