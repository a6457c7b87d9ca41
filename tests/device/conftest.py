"""Fixtures of device tests: each device of the contract suite in turn, and one expert in a file."""

from __future__ import annotations

import pytest
from tests.device.devices import DEVICES
from tests.device.programs import Desk, tiny_graph, write_weights


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
