"""CUDA devices for tests, on a lazy GPU. Knows nothing about what is asked of them."""

from __future__ import annotations

import os
from contextlib import contextmanager

os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.device.lazy_gpu import LazyDriver
from tests.device.native_kernels import NativeKernels

from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.devices.cuda.device import CudaDevice
from coterie.spec.load import load_machine


def cuda(orchestration="device", seed=0, machine="toy-tiers", **options):
    """The toy machine's sizes, the CPU's kernels, and staging blocks of which a layer needs several."""
    options = {
        "driver": LazyDriver(seed, settle_s=1e-3),
        "kernels": NativeKernels(),
        "staging_bytes": 2 * BLOCK_BYTES,
        **options,
    }
    return CudaDevice(load_machine(machine), orchestration, **options)


@contextmanager
def making(**fixed):
    """A function that makes devices, which are closed at the end."""
    devices = []

    def make(*args, **options):
        devices.append(cuda(*args, **fixed, **options))
        return devices[-1]

    yield make
    for device in devices:
        device.close()
