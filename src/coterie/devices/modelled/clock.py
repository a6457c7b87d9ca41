"""Selects the clock of modelled devices: the native one if it was built, else the Python one, its reference.

Both give bit-identical times. Knows nothing about what is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from coterie.core.built import check_sources
from coterie.devices.modelled.fluid import FluidClock
from coterie.devices.modelled.tokens import Draw, draw
from coterie.devices.modelled.work import Flow, Parts, Phase


@dataclass(frozen=True, slots=True)
class Kit:
    """A clock implementation and its classes, which cannot be mixed with those of another kit.

    The native classes have the interface of the Python ones. `draw` makes synthetic tokens.
    """

    name: str
    clock: type[FluidClock]
    flow: type[Flow]
    phase: type[Phase]
    parts: type[Parts]
    draw: Draw


def _native() -> Kit | None:
    try:
        built: Any = import_module("coterie.devices._clock")
    except ImportError:  # a source checkout without the native extension
        return None
    check_sources(built)
    return Kit("native", built.FluidClock, built.Flow, built.Phase, built.Parts, built.draw)


PLAIN = Kit("python", FluidClock, Flow, Phase, Parts, draw)
NATIVE = _native()
BEST = NATIVE or PLAIN
