"""Describes the provenance of kernel times in a plan or simulation.

Knows nothing about how kernels are priced.
"""

from __future__ import annotations

from collections.abc import Iterable

from coterie.core.dtypes import DType
from coterie.devices.modelled.kernels import not_measured
from coterie.models.model import Model
from coterie.models.packing import NAMES
from coterie.spec.machine import MachineSpec


def provenance(spec: MachineSpec, models: Iterable[Model]) -> str:
    """The provenance of these models' kernel speeds, including weight types without measurements.

    Attention was measured with 16-bit keys and values; 8-bit ones are assumed to take less memory but the same time.
    """
    all_models = tuple(models)
    found = _products_provenance(spec, all_models)
    if spec.kernels and any(model.kv.dtype is DType.KV8 for model in all_models):
        found += "; attention over int8 keys and values as over those of 16 bits"
    if spec.fp8_times == 1 and any(_has_fp8(model) for model in all_models):
        found += "; FP8 is computed as fast as 16 bits"
    return found


def _has_fp8(model: Model) -> bool:
    return any(value.dtype is DType.F8_E4M3 for value in model.graph.weights)


def _products_provenance(spec: MachineSpec, models: Iterable[Model]) -> str:
    graphs = {model.key: model.graph for model in models}
    lacking = not_measured(spec, graphs.values())
    if not lacking:
        return spec.provenance
    types = " and ".join(_WORDS.get(one) or one.value for one in lacking)
    other = "what others reach of their peaks, carried over" if spec.carried else "the rates of its file"
    return f"{spec.provenance}; products with {types} weights by {other}"


_WORDS = {**NAMES, DType.F8_E4M3: "fp8", DType.F32: "float32"}
