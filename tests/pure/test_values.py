"""Values made for every step: what holds of them, and that the type checker keeps them as they are."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from coterie.core.shapes import Sizes
from coterie.device import Buffer, Event, Span
from coterie.devices.modelled.event import ModelledEvent
from coterie.devices.modelled.fluid import Work


def test_values_are_compared_and_hashed_by_their_fields():
    assert Span(1.0, 2.0) == Span(1.0, 2.0) != Span(1.0, 3.0)
    assert len({Sizes(1, 1, 1, 5, 5), Sizes(1, 1, 1, 5, 5), Sizes(1, 1, 1, 6, 6)}) == 2
    assert replace(Buffer(0, "hbm", 0, 8), offset=4) == Buffer(0, "hbm", 4, 8)
    assert [field.name for field in fields(Span)] == ["start_s", "end_s"]


def test_values_take_no_other_attributes():
    with pytest.raises(AttributeError):
        Span(1.0, 2.0).middle_s = 1.5


def test_what_an_event_carries_is_no_part_of_its_identity():
    one, other = (ModelledEvent(3, "compute", "run", Work(3, (), (), None)) for _ in range(2))
    assert one == other
    assert hash(one) == hash(other)
    assert one != Event(3, "compute", "run"), "events of devices differ in kind"
