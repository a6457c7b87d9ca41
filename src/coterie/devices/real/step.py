"""The parts of a run on a real device: the encoded program, and the validated copy of the run's inputs.

Knows nothing about lanes, files or addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType
from coterie.core.errors import DeviceError
from coterie.core.shapes import Shape, Sizes, fixed
from coterie.core.values import value
from coterie.device import I32, Binding, Buffer, Sampling, Shared, Variants
from coterie.devices.real.changes import encode_changes, ids_of
from coterie.devices.real.lower import lower
from coterie.devices.real.lowering import Lowering
from coterie.devices.real.operands import F32
from coterie.devices.real.shares import Shareable, Shares
from coterie.devices.real.template import Template
from coterie.graph.buffers import ALIGN_BYTES
from coterie.graph.ir import Kind
from coterie.graph.mixing import mixes
from coterie.graph.program import Program
from coterie.graph.rows import derived_rows, min_table_rows
from coterie.graph.vectors import row_values
from coterie.kernels import cpu as kernels
from coterie.kernels.cpu import I64

INPUTS = ("tokens", "positions", "sequence", "block_tables", "rows")  # the row inputs that every program has
MAX_CACHED = 256  # cache entries: step sizes, and experts' weight offsets; bounds memory, not use


@dataclass(frozen=True, slots=True, eq=False)
class Offsets:
    """Weight offsets, each in its extent. `is_shared`: which are in the shared extent; `ends`: bytes used of both."""

    array: I64
    is_shared: npt.NDArray[np.bool_]
    ends: tuple[int, int]

    @staticmethod
    def of(offsets: tuple[int, ...], places: tuple[int, ...], sizes: I64) -> Offsets:
        """Validate the offsets of weights of these sizes; those at indices `places` are shared. Raises ValueError."""
        array = np.array(offsets, dtype=np.int64)
        if len(array) != len(sizes):
            raise ValueError(f"{len(array)} offsets are given for {len(sizes)} weights")
        if array.min(initial=0) < 0:
            raise ValueError(f"a weight's offset is {array.min()}")
        if places and not 0 <= min(places) <= max(places) < len(array):
            raise ValueError(f"weights {min(places)} to {max(places)} are shared but there are {len(array)}")
        is_shared = np.zeros(len(array), bool)
        is_shared[list(places)] = True
        stops = array + sizes
        own, of_base = (int(stops[part].max(initial=0)) for part in (~is_shared, is_shared))
        return Offsets(array, is_shared, (own, of_base))

    def addresses(self, weights_at: int, shared_at: int) -> I64:
        """Absolute addresses, given the addresses of both extents."""
        return self.array + np.where(self.is_shared, shared_at, weights_at)


class LoweredExecutable:
    """A program encoded as rows. Raises UnsupportedError for an op without a kernel.

    `device`: name of the owning device; `called`: its name in error messages. `address` makes a constant accessible to
    the device. `shares`: the device's kernels support shares (mixed batches). `rounds`: see Lowering.
    """

    def __init__(
        self,
        program: Program,
        device: str,
        called: str,
        address: Callable[[F32], int] = kernels.address,
        shares: bool = False,
        rounds: bool = True,
    ) -> None:
        self._program, self.device = program, device
        # Kept because it owns the constants whose addresses are in the rows.
        self._lowering = Lowering(program, called, address, rounds=rounds)
        operands = [lower(self._lowering, region) for region in program.regions]
        names = [region.kernel for region in program.regions]
        self.template = Template(names, operands)
        self.shareable = Shareable(names, operands) if shares else None
        self.first_rows: dict[str, int] = {}  # stage -> its first row
        for i, region in enumerate(program.regions):
            self.first_rows.setdefault(region.stage, i)
        values = program.graph.values
        (left,) = [name for name, value in values.items() if value.kind is Kind.OUTPUT]
        self.drawn = left if values[left].dtype is DType.I32 else ""  # name of the sampled tokens; "" if none
        self.row_values = row_values(program.graph)
        sizes = [values[name].dtype.tensor_bytes(_fixed(values[name].shape)) for name in program.weights]
        self._weight_bytes = np.array(sizes, dtype=np.int64)
        self._plans: dict[tuple[int, int, int], tuple[dict[str, int], int]] = {}
        self._offsets: dict[tuple[tuple[int, ...], tuple[int, ...]], Offsets] = {}
        self._mixes: dict[tuple[int, ...], bool] = {}

    @property
    def program(self) -> Program:
        """The program that was loaded."""
        return self._program

    def mixes(self, shared: Sequence[int]) -> bool:
        """See Executable.mixes."""
        if self.shareable is None:
            return False
        key = tuple(shared)
        if key not in self._mixes:
            self._mixes[key] = mixes(self._program, key)
        return self._mixes[key]

    def plan(self, sizes: Sizes) -> tuple[dict[str, int], int]:
        """Offset of each stored value in the workspace, and the workspace's size, for these step sizes."""
        key = (sizes.T, sizes.B, sizes.R)
        if key not in self._plans:
            if len(self._plans) >= MAX_CACHED:
                self._plans.clear()
            offsets, total = self._program.buffers.offsets(sizes)
            if self.drawn and self.drawn not in offsets:
                offsets[self.drawn] = total
                total += -(-max(4 * sizes.R, 1) // ALIGN_BYTES) * ALIGN_BYTES
            self._plans[key] = offsets, total
        return self._plans[key]

    def offsets(self, binding: Binding) -> Offsets:
        """The binding's weight offsets. Raises ValueError when one is missing or outside its extent."""
        return self._offsets_in(binding.offsets, binding.weights, binding.shared)

    def variants(self, binding: Binding) -> tuple[Offsets, ...]:
        """The weight offsets of its variants. Also raises ValueError if they cannot be mixed in one run."""
        variants, shared = binding.variants, binding.shared
        if variants is None:
            return ()
        if not self.mixes(() if shared is None else shared.indices):
            raise ValueError(f"{self.program.graph.name} does not mix sequences of different weights on {self.device}")
        each = zip(variants.offsets, variants.weights, strict=True)
        return tuple([self._offsets_in(offsets, weights, shared) for offsets, weights in each])

    def _offsets_in(self, offsets: tuple[int, ...], weights: Buffer, shared: Shared | None) -> Offsets:
        key = offsets, () if shared is None else shared.indices
        found = self._offsets.get(key)
        if found is None:
            if len(self._offsets) >= MAX_CACHED:
                self._offsets.clear()
            found = self._offsets[key] = Offsets.of(*key, self._weight_bytes)
        for end, extent in zip(found.ends, (weights, None if shared is None else shared.weights), strict=True):
            if extent is not None and end > extent.size_bytes:
                raise ValueError(f"weights reach {end} but their extent has {extent.size_bytes} bytes")
        return found


@value
class StepRows:
    """A copy of a run's inputs, independent of the caller's arrays. T tokens, B sequences, R sampled rows.

    `shares`: set for mixed batches. `changes`: encoded penalties and biases per sampled row; empty if no row has any.
    """

    inputs: Mapping[str, I32]
    sampling: tuple[Sampling, ...]
    end_ids: tuple[tuple[int, ...], ...]
    sizes: Sizes
    shares: Shares | None = None
    changes: tuple[I64 | None, ...] = ()

    @staticmethod
    def copy(program: Program, binding: Binding, steps: int) -> StepRows:
        """Copy and validate. Raises ValueError for any value that would make a kernel access memory out of bounds."""
        rows = binding.rows
        named = (rows.tokens_T, rows.positions_T, rows.sequence_T, rows.block_tables_BM, rows.rows_R)
        inputs = {name: np.array(array, np.int32, order="C") for name, array in zip(INPUTS, named, strict=True)}
        # Only T, B and R affect the workspace; the other sizes would take time to compute.
        sizes = Sizes(len(rows.tokens_T), len(rows.lengths_B), len(rows.rows_R), 0, 0)
        changes = _changes(rows.sampling, steps)
        step = StepRows(inputs, rows.sampling, rows.end_ids, sizes, None, changes)
        _check(step, program, binding, steps)
        inputs |= derived_rows(program.graph, inputs["positions"], inputs["sequence"], rows.types_T)
        if binding.variants is None:
            return step
        expert_B = _checked(binding.variants, sizes.B)
        shares = Shares.of(expert_B, inputs["sequence"], inputs["rows"])
        return StepRows(inputs, rows.sampling, rows.end_ids, sizes, shares, changes)


def check_drawn(drawn_R: I32, device: str) -> None:
    """Raise DeviceError naming the first row that drew -1, which means NaN logits (see graph.sampling)."""
    if not kernels.within(drawn_R, 2**31):
        fact = f"the logits of row {int(np.argmin(drawn_R >= 0))} hold values that are not numbers"
        raise DeviceError(device, fact, "the weights are damaged or overflow: get the checkpoint again")


def encode_sampling(sampling: Sequence[Sampling]) -> I64:
    """Sampling settings [R, SETTING_WORDS] in the format of the sampling kernels."""
    table = np.zeros((len(sampling), kernels.SETTING_WORDS), dtype=np.int64)
    reals = table.view(np.float64)
    for i, s in enumerate(sampling):
        reals[i, 0], table[i, 1], reals[i, 2], reals[i, 3] = s.temperature, s.top_k, s.top_p, s.min_p
        table[i, 4] = np.uint64(s.seed % 2**64).view(np.int64)
    return table


def _changes(sampling: Sequence[Sampling], steps: int) -> tuple[I64 | None, ...]:
    """Encoded changes per row; empty if no row has any, the usual case."""
    for one in sampling:
        if one.changes is not None:
            break
    else:
        return ()
    return tuple([None if s.changes is None else encode_changes(s.changes, steps) for s in sampling])


def _fixed(shape: Shape) -> tuple[int, ...]:
    numbers = fixed(shape)
    if numbers != shape:
        raise ValueError(f"a weight's shape is {shape}, not numbers alone")
    return numbers


def _checked(variants: Variants, sequences: int) -> I32:
    """Each sequence's expert number. Raises ValueError for a number out of range."""
    expert_B = np.array(variants.expert_B, np.int32)
    if expert_B.shape != (sequences,) or not kernels.within(expert_B, 1 + len(variants.weights)):
        fact = f"{len(expert_B)} sequences have the weights {expert_B.min(initial=0)} to {expert_B.max(initial=0)}"
        raise ValueError(f"{fact} of {1 + len(variants.weights)}, in a run of {sequences}")
    return expert_B


def _check(step: StepRows, program: Program, binding: Binding, steps: int) -> None:
    """Raise ValueError naming the row, the value and its bound."""
    sizes, tables = step.sizes, step.inputs["block_tables"]
    _check_shapes(step)
    if steps < 1 or (steps > 1 and not sizes.T == sizes.B == sizes.R):
        raise ValueError(
            f"steps is {steps} with T {sizes.T}, B {sizes.B}, R {sizes.R}; more than 1 needs all three equal"
        )
    Z = program.kv.tokens_per_block(binding.block_bytes)
    if Z < 1:
        least = program.kv.min_block_bytes
        raise ValueError(f"a block of {binding.block_bytes} bytes holds no token, or unit of state, of {least} bytes")
    columns = tables.shape[1] - program.kv.state_blocks(binding.block_bytes)
    blocks, reach = binding.kv.size_bytes // binding.block_bytes, columns * Z
    if program.bidirectional:
        most = min_table_rows(program.graph, "positions")
        reach = reach if most is None else min(reach, most)
    bounds = (program.vocab_size, max(reach - (steps - 1), 0), sizes.B, blocks, sizes.T)
    for (name, values), bound in zip(step.inputs.items(), bounds, strict=True):
        if not kernels.within(values, bound):
            raise ValueError(f"{name} has {int(values.min())} to {int(values.max())}, outside 0 to {bound - 1}")
    for changes in step.changes:
        if changes is not None and not kernels.within(ids_of(changes), program.vocab_size):
            raise ValueError(f"changes name a token outside 0 to {program.vocab_size - 1}")


def _check_shapes(step: StepRows) -> None:
    T, B, R = step.sizes.T, step.sizes.B, step.sizes.R
    inputs = step.inputs
    for name, got, wanted in (
        ("positions", inputs["positions"].shape, (T,)),
        ("sequence", inputs["sequence"].shape, (T,)),
        ("block_tables", inputs["block_tables"].shape[:1], (B,)),
        ("sampling", (len(step.sampling),), (R,)),
        ("end_ids", (len(step.end_ids) or R,), (R,)),
    ):
        if got != wanted:
            raise ValueError(f"{name} has shape {got} but {wanted} is wanted")
