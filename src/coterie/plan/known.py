"""How a plan or a simulation knows what kernels take, in words.

Knows nothing about how they are priced.
"""

from __future__ import annotations

from collections.abc import Iterable

from coterie.core.dtypes import DType
from coterie.devices.modelled.kernels import not_measured
from coterie.models.model import Model
from coterie.models.packing import NAMES
from coterie.spec.machine import MachineSpec


def known_by(spec: MachineSpec, models: Iterable[Model]) -> str:
    """Where the speed of these models' kernels is from: also for which types of weights none was measured."""
    graphs = {model.key: model.graph for model in models}
    lacking = not_measured(spec, graphs.values())
    if not lacking:
        return spec.known_by
    types = " and ".join(_WORDS.get(one) or one.value for one in lacking)
    other = "what others reach of their peaks, carried over" if spec.carried else "the rates of its file"
    return f"{spec.known_by}; products with {types} weights by {other}"


_WORDS = {**NAMES, DType.F8_E4M3: "fp8", DType.F32: "float32"}
