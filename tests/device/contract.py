"""What tests of the contract between devices and all else share.

Knows nothing about which device it is.
"""

from __future__ import annotations

import dataclasses

import pytest
from tests.device.devices import BROKEN
from tests.device.programs import rows

from coterie.device import Sampling

PROMPT = [3, 14, 15, 9, 26]


WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)


def prompt_rows(**options):
    return rows([(PROMPT, 0)], **options)


class Early:
    """Waits that end although nothing has: as where a device has other things to tell."""

    def __init__(self, device):
        self.device, self.waits = device, 0

    def done(self, event):
        return self.device.done(event)

    def wait_any(self, events, until=None):
        self.waits += 1
        if self.waits % 3 == 0:
            self.device.wait_any(events, until)


def broken_range(layout):
    return dataclasses.replace(layout.ranges[0].source, path=f"/nonexistent/{BROKEN}.weights")


def needs_bytes(device):
    if device.synthetic():
        pytest.skip("this device has no bytes")
