"""Fixtures of device tests: devices of the contract suite, an expert in a file, teams and random numbers."""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.devices import DEVICES
from tests.device.programs import Desk, loaded, tiny_graph, write_weights

from coterie.devices.cpu.device import CpuDevice
from coterie.kernels import cpu as kernels
from coterie.spec.load import load_machine


@pytest.fixture(params=kernels.ISAS, scope="module")
def team(request):
    """Two threads with the kernels of an instruction set."""
    return kernels.Team(2, request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


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
