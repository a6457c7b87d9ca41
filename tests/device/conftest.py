"""Fixtures of device tests: each device of the contract suite in turn, and one expert in a file."""

from __future__ import annotations

import pytest
from tests.device.devices import DEVICES
from tests.device.programs import Desk, loaded, tiny_graph, write_weights

from coterie.devices.cpu import CpuDevice
from coterie.spec.load import load_machine


@pytest.fixture(scope="session")
def layout(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("expert") / "tiny.weights", tiny_graph())


@pytest.fixture(params=DEVICES)
def device(request):
    made = DEVICES[request.param]()
    yield made
    made.close()


@pytest.fixture
def desk(device, layout):
    return Desk(device, layout)


@pytest.fixture
def on_cpu(layout):
    """The expert, resident, on the CPU with the toy machine's sizes: what other devices must answer too."""
    device = CpuDevice(load_machine("toy"), threads=1)
    yield loaded(Desk(device, layout))
    device.close()
