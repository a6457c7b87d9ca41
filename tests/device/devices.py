"""The devices that the contract suite runs on. Adding a device: a row in DEVICES.

Knows nothing about what the suite asks of them.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from coterie.core.errors import TransferError
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.cuda.gpu import Gpu
from coterie.devices.modelled.device import ModelledDevice
from coterie.spec.load import load_machine

BROKEN = "broken"  # in a path, makes a modelled device without files fail as a real one would


def fail_on_broken(label):
    """Stand in for a missing file on devices that look at no file."""
    return TransferError(label, "the file is broken", "replace it") if BROKEN in label else None


def cpu(orchestration="host"):
    """This machine's processors, with the toy machine's sizes so that nothing large is reserved."""
    return CpuDevice(load_machine("toy"), threads=2, orchestration=orchestration)


def occupied(device):
    """One that has a slab already: what it has for a modelled device in front of it has other numbers there."""
    device.reserve("dram", 4096)
    return device


DEVICES = {
    "modelled": lambda: ModelledDevice(load_machine("toy"), fail=fail_on_broken),
    "modelled-host": lambda: ModelledDevice(load_machine("toy"), orchestration="host", fail=fail_on_broken),
    "modelled-tiers": lambda: ModelledDevice(load_machine("toy-tiers"), fail=fail_on_broken),
    "modelled-on-cpu": lambda: ModelledDevice(load_machine("toy-tiers"), numerics=occupied(cpu())),
    "cpu": cpu,
    "cpu-device": lambda: cpu("device"),
}
if find_spec("torch") is not None:  # the extra cuda; the GPU is one that is none
    from tests.device.cuda_devices import cuda

    DEVICES |= {"cuda": cuda, "cuda-host": lambda: cuda("host", seed=1)}
    DEVICES |= {"cuda-persistent": lambda: cuda("persistent", seed=2)}

ON_GPU = bool(os.environ.get("COTERIE_TEST_GPU"))


def gpu(orchestration="device"):
    """The GPU of this machine where the variable says so, with the toy machine's sizes; else the one that is none."""
    return Gpu().make(orchestration, load_machine("toy-tiers")) if ON_GPU else cuda(orchestration)


if ON_GPU:
    DEVICES |= {"gpu": gpu, "gpu-host": lambda: gpu("host"), "gpu-persistent": lambda: gpu("persistent")}
