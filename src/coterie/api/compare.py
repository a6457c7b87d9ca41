"""Compares a device with the NumPy reference on one prompt, value by value.

Knows nothing about how the result is printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.api.assemble import Options, as_served, make_device, make_spec
from coterie.api.texts import tokenizer_of
from coterie.checkpoint.layout import Layout
from coterie.composition.composition import load_composition
from coterie.core.dtypes import DType
from coterie.core.errors import RequestError, UsageError
from coterie.device import Binding, Buffer, Device, Event, Rows, prompt_rows, wait_for
from coterie.devices.cuda.gpu import gpu_number
from coterie.engine.assembly import page_bytes
from coterie.engine.experts import open_expert
from coterie.engine.served import Base, places_of
from coterie.graph.compile import compile_graph
from coterie.graph.ir import Graph
from coterie.graph.ops import BF16, INT8, INT8_OR_FINER, ROUNDING
from coterie.graph.reference import KvState, Reference
from coterie.graph.rounding import as_a_cpu_rounds
from coterie.kernels.cpu import rounds_attention
from coterie.memory.transfer import fetch_layout
from coterie.models.model import FLOAT32, Model, load_weights_f32

# Relative to a buffer's largest value: reordering float32 sums of a few thousand terms changes them by less.
TOLERANCE = 1e-4
# In steps of more than four tokens a GPU rounds activations to the weights' type, for bfloat16 by 2^-9 of each value. A
# layer has four such products in a row, and errors accumulate from layer to layer (docs/triton.md).
GPU_TOLERANCE = 0.03
# A CPU does so for any number of tokens, on request, and so does the reference. But a value near the midpoint of two
# numbers may be rounded to either, which in a model of 30 layers adds up to 0.02.
HALVES_TOLERANCE = GPU_TOLERANCE
# Attention with rounding rounds both operands of both of its products: the queries and the exponentials, in addition to
# the keys and values. The largest errors of two released models were 0.03 and 0.055 (docs/log.md, 2026-11-29). Values
# computed from its output are again as close as those of other products.
ATTENTION_TOLERANCE = 3 * HALVES_TOLERANCE
# For packed weights a CPU rounds activations to 16 bits or fewer, and so does the reference. But a value near the
# midpoint of two numbers may be rounded to either: an error of 2^-11 of its group's largest value.
PACKED_TOLERANCE = 0.001
# Values that differ by a few bits are then rounded to 8, and near a midpoint may be rounded either way: an error of
# 1/127 of a group's largest value, in any of the terms of a product, which has as many as columns.
CHANGE_TOLERANCE = 0.02
# Keys and values are stored in the weights' type, where a value near a midpoint may be rounded either way: an error of
# up to 2^-7 of it in bfloat16, 2^-10 in float16. It propagates to what reads them; twice that leaves room.
KV_TOLERANCE = {DType.BF16: 2**-6, DType.F16: 2**-9}
FIRST_VALUES = 3


@dataclass(frozen=True, slots=True)
class Row:
    """One buffer: its first values on the device and in the reference.

    `max_error`: the largest difference, relative to the reference's largest value; infinite for a NaN. `tolerance`: its
    bound; `excess`: their ratio.
    """

    rule_set: str
    name: str
    shape: tuple[int, ...]
    first: tuple[float, ...]
    reference_first: tuple[float, ...]
    max_error: float
    tolerance: float

    @property
    def excess(self) -> float:
        """Above 1, something is wrong."""
        return self.max_error / self.tolerance

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"max_error": self.max_error if math.isfinite(self.max_error) else None}


def open_one(
    ref: str, expert: str, prompt: str, activations: str = FLOAT32, device: str = "cpu"
) -> tuple[Model, tuple[int, ...]]:
    """The model that `ref` and `expert` name, and the prompt's tokens.

    Raises UsageError if several experts match, if it has no weights, and for activations that apply to none of them;
    RequestError if the prompt is empty or longer than the model's context.
    """
    composition = load_composition(ref)
    if not expert and len(composition.experts) > 1:
        names = ", ".join(composition.names)
        raise UsageError(ref, f"has {len(composition.experts)} experts", f"choose one with --expert: {names}")
    chosen = composition.expert(expert or composition.names[0])
    if chosen.checkpoint is None:
        raise UsageError(ref, f"expert {chosen.name} has no weights to compare", "choose one that has a checkpoint")
    opened = {chosen.name: open_expert(chosen, chosen.checkpoint)}
    model = as_served(chosen.name, opened, Options(device=device, activations=activations))[chosen.name]
    ids = tuple(tokenizer_of(model).encode(prompt))
    if not 0 < len(ids) <= model.max_context:
        fact = f"has {len(ids)} tokens"
        raise RequestError("prompt", fact, f"give 1 to {model.max_context}, the context of {chosen.name}")
    return model, ids


def tolerances(model: Model, device: str) -> dict[str, float]:
    """The error allowed in each value, relative to its largest element.

    Strict for values that do not depend on stored KV, and stricter on a CPU if they depend on no packed weights either.
    """
    close, packed = (TOLERANCE, PACKED_TOLERANCE) if gpu_number(device) is None else (GPU_TOLERANCE, GPU_TOLERANCE)
    loose = max(close, KV_TOLERANCE.get(model.kv.dtype, 0.0))
    found: dict[str, float] = {}
    for op in model.graph.ops:  # in topological order
        own = loose if op.kind.endswith("attention") else close
        rounding = op.attrs.get(ROUNDING)
        if rounding in (INT8, INT8_OR_FINER):
            own = max(packed, CHANGE_TOLERANCE)
        elif rounding == BF16:
            own = HALVES_TOLERANCE
        elif op.kind == "linear" and model.graph.values[op.inputs[1]].dtype.is_packed:
            own = packed
        found |= dict.fromkeys(op.outputs, max([own, *(found.get(name, 0.0) for name in op.inputs)]))
    attending = [op for op in model.graph.ops if op.kind == "attention" and op.attrs.get(ROUNDING) == BF16]
    return found | {name: ATTENTION_TOLERANCE for op in attending for name in op.outputs}


def compare(model: Model, ids: Sequence[int], rule_sets: Sequence[str], options: Options) -> list[Row]:
    """Run the prompt in the reference and, per rule set, on the device; one row per value that the device stores."""
    device = make_device(make_spec(options), options)
    try:
        base = None if model.base is None else Base(model.base.layout, _load(device, model.base.layout))
        weights = _load(device, model.layout)
        block = page_bytes(model.kv)
        rows = prompt_rows(ids, model.kv.blocks_for(len(ids), block))
        kv = device.reserve(device.spec.run_tier, len(rows.block_tables_BM[0]) * block)
        on_cpu = gpu_number(options.device) is None
        graph = as_a_cpu_rounds(model.graph, rounds_attention()) if on_cpu else model.graph
        expected = _reference(model, graph, rows, block)
        allowed = tolerances(model, options.device)
        found: list[Row] = []
        for rule_set in rule_sets:
            exe = device.load(compile_graph(model.graph, rule_set, share_buffers=False))
            offsets, shared = places_of(exe.program.weights, model.layout, base)
            binding = Binding(weights, offsets, kv, block, rows, shared)
            stored = device.inspect(exe, binding)
            found += [_row(rule_set, name, values, expected[name], allowed[name]) for name, values in stored.items()]
        return found
    finally:
        device.close()


def _load(device: Device, layout: Layout) -> Buffer:
    weights = device.reserve(device.spec.run_tier, layout.size_bytes)
    issued: list[Event] = []
    fetch_layout(device, layout, weights, issued)
    for event in issued:
        wait_for(device, event)
        failure = device.failure(event)
        if failure is not None:
            raise failure
    return weights


def reference_inputs(rows: Rows) -> dict[str, npt.NDArray[np.int32]]:
    """A step's rows in the form that the reference takes."""
    given = {
        "tokens": rows.tokens_T,
        "positions": rows.positions_T,
        "sequence": rows.sequence_T,
        "block_tables": rows.block_tables_BM,
        "rows": rows.rows_R,
    }
    return {name: np.asarray(numbers, np.int32) for name, numbers in given.items()}


def _reference(model: Model, graph: Graph, rows: Rows, block: int) -> dict[str, npt.NDArray[Any]]:
    kv, blocks = model.kv, len(rows.block_tables_BM[0])
    state = KvState(graph, blocks, kv.tokens_per_block(block), kv.state_blocks(block))
    return Reference(graph, load_weights_f32(model)).run(reference_inputs(rows), rows.sampling, state)


def _row(
    rule_set: str, name: str, values: npt.NDArray[np.float32], expected: npt.NDArray[Any], tolerance: float
) -> Row:
    ours, theirs = values.astype(np.float64).reshape(-1), expected.astype(np.float64).reshape(-1)
    largest = max(float(np.abs(theirs).max(initial=0.0)), float(np.finfo(np.float32).tiny))
    error = float(np.abs(ours - theirs).max(initial=0.0)) / largest
    error = math.inf if math.isnan(error) else error
    first, wanted = (tuple(float(v) for v in side[:FIRST_VALUES]) for side in (ours, theirs))
    return Row(rule_set, name, tuple(expected.shape), first, wanted, error, tolerance)
