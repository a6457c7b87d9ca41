"""CPU devices for a test, closed at its end, and a file to read.

Knows nothing about programs.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.random_expert import SPEC

from coterie.checkpoint.layout import BLOCK_BYTES, FileIdentity, FileRange
from coterie.devices.cpu.device import CpuDevice


@pytest.fixture
def make():
    devices = []

    def make_device(**options):
        devices.append(CpuDevice(SPEC, threads=2, **options))
        return devices[-1]

    yield make_device
    for device in devices:
        device.close()


@pytest.fixture
def data(tmp_path):
    """A file of 5 blocks and a bit, in the current folder's file system."""
    path = tmp_path / "data"
    content = np.random.default_rng(0).integers(0, 256, 5 * BLOCK_BYTES + 123, dtype=np.uint8)
    path.write_bytes(content.tobytes())
    return path, content


def range_of(path, offset=0, size=6 * BLOCK_BYTES):
    stat = path.stat()
    return FileRange(str(path), offset, size, FileIdentity.of(stat))


def finish(device, event):
    while not device.done(event):
        device.wait_any([event])
    return device.failure(event)
