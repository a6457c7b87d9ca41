"""One run of a program on the CPU: rows are checked and copied at once; addresses are bound when the run starts.

Knows nothing about lanes or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from coterie.core.dtypes import DType, to_f32
from coterie.core.errors import DeviceError
from coterie.core.shapes import Sizes
from coterie.device import I32, Binding, Rows, Sampling
from coterie.devices.cpu_lower import Lowering, Template
from coterie.devices.cpu_memory import Slab
from coterie.graph.buffers import ALIGN_BYTES
from coterie.graph.ir import Kind
from coterie.graph.program import Program
from coterie.kernels import cpu as kernels
from coterie.kernels.cpu import I64

MAX_KEPT = 256  # sizes of steps, and experts, whose offsets are kept; a bound on memory, not on use


class CpuExecutable:
    """A program with its rows encoded. Raises UnsupportedError when made from an op without a kernel."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lowering = Lowering(program)  # owns the constants, whose addresses are in the rows
        operands = [self._lowering.lower(region) for region in program.regions]
        self.template = Template([region.kernel for region in program.regions], operands)
        self.first_rows: dict[str, int] = {}  # stage -> its first row
        for i, region in enumerate(program.regions):
            self.first_rows.setdefault(region.stage, i)
        values = program.graph.values
        (self.drawn,) = [name for name, value in values.items() if value.kind is Kind.OUTPUT]
        shapes = [(values[name].shape, values[name].dtype.size_bytes) for name in program.weights]
        self._weight_bytes = np.array([_count(shape) * size for shape, size in shapes], dtype=np.int64)
        self._plans: dict[tuple[int, int, int], tuple[dict[str, int], int]] = {}
        self._offsets: dict[tuple[int, ...], tuple[I64, int]] = {}

    @property
    def program(self) -> Program:
        """The program that was loaded."""
        return self._program

    def plan(self, sizes: Sizes) -> tuple[dict[str, int], int]:
        """Offset of each stored value in the workspace, and the workspace's bytes, in a step of these sizes."""
        key = (sizes.T, sizes.B, sizes.R)
        if key not in self._plans:
            if len(self._plans) >= MAX_KEPT:
                self._plans.clear()
            offsets, total = self._program.buffers.offsets(sizes)
            if self.drawn not in offsets:
                offsets[self.drawn] = total
                total += -(-max(4 * sizes.R, 1) // ALIGN_BYTES) * ALIGN_BYTES
            self._plans[key] = offsets, total
        return self._plans[key]

    def offsets(self, binding: Binding) -> I64:
        """The binding's weight offsets as an array. Raises ValueError when one is missing or outside the extent."""
        if binding.offsets not in self._offsets:
            if len(self._offsets) >= MAX_KEPT:
                self._offsets.clear()
            array = np.array(binding.offsets, dtype=np.int64)
            if len(array) != len(self._weight_bytes):
                raise ValueError(f"{len(array)} offsets are given for {len(self._weight_bytes)} weights")
            low, end = (int(array.min()), int((array + self._weight_bytes).max())) if len(array) else (0, 0)
            if low < 0:
                raise ValueError(f"a weight's offset is {low}")
            self._offsets[binding.offsets] = array, end
        array, end = self._offsets[binding.offsets]
        if end > binding.weights.size_bytes:
            raise ValueError(f"weights reach {end} but their extent has {binding.weights.size_bytes} bytes")
        return array


@dataclass(frozen=True, slots=True)
class StepRows:
    """The arrays that kernels read, our own copies: the caller may change his, and each step changes ours."""

    inputs: Mapping[str, I32]
    settings: I64
    sizes: Sizes
    table_width: int
    end_ids: tuple[tuple[int, ...], ...]

    @staticmethod
    def copy(program: Program, binding: Binding, steps: int) -> StepRows:
        """Copy and check. Raises ValueError when a row would make a kernel read outside its memory."""
        rows = binding.rows
        _check_rows(program, binding, steps)
        named = {
            "tokens": rows.tokens_T,
            "positions": rows.positions_T,
            "sequence": rows.sequence_T,
            "block_tables": rows.block_tables_BM,
            "rows": rows.rows_R,
        }
        inputs = {name: np.array(array, dtype=np.int32, order="C") for name, array in named.items()}
        width = rows.block_tables_BM.shape[1]
        return StepRows(inputs, encode_sampling(rows.sampling), rows.sizes, width, rows.end_ids)

    def advance(self, drawn_R: I32) -> None:
        """Feed the drawn tokens back: each sequence's next position."""
        self.inputs["tokens"][self.inputs["rows"]] = drawn_R
        np.add(self.inputs["positions"], 1, out=self.inputs["positions"])

    def ended(self, drawn_R: I32) -> bool:
        """True when any row drew one of its end tokens."""
        return any(int(token) in ends for token, ends in zip(drawn_R, self.end_ids, strict=False))


class Workspace:
    """Memory for stored values, grown by powers of two and reused by every run."""

    def __init__(self) -> None:
        self._slab = Slab(0)

    def at_least(self, size_bytes: int) -> Slab:
        """A slab with room for `size_bytes`."""
        if len(self._slab.bytes) < size_bytes:
            self._slab = Slab(1 << (size_bytes - 1).bit_length())
        return self._slab


@dataclass(frozen=True, slots=True)
class BoundStep:
    """Rows with every address in place, and the workspace that they store to."""

    rows: I64
    workspace: Slab
    drawn_R: I32


def bind(
    exe: CpuExecutable, binding: Binding, step: StepRows, workspace: Workspace, bases: tuple[int, int]
) -> BoundStep:
    """Put addresses into the rows. `bases` are the addresses of the weights' extent and of the KV slab."""
    weights_at, kv_at = bases
    plan, total = exe.plan(step.sizes)
    slab = workspace.at_least(total)
    named = {name: kernels.address(array) for name, array in step.inputs.items()}
    named |= {"sampling": kernels.address(step.settings), "kv": kv_at, "block_bytes": binding.block_bytes}
    named |= {"T": step.sizes.T, "B": step.sizes.B, "R": step.sizes.R, "table_width": step.table_width}
    named["Z"] = exe.program.kv.tokens_per_block(binding.block_bytes)
    rows = exe.template.bind(
        exe.offsets(binding) + weights_at,
        np.array([slab.address + plan[name] for name in exe.template.stored], dtype=np.int64),
        np.array([named[name] for name in exe.template.named], dtype=np.int64),
    )
    return BoundStep(rows, slab, _view(slab, plan[exe.drawn], (step.sizes.R,), DType.I32).view(np.int32))


def execute(bound: BoundStep, step: StepRows, steps: int, start: Callable[[I64, bool], None]) -> I32:
    """Run up to `steps` steps and return the drawn tokens [steps done, R].

    `start` executes the rows of one step; it is told whether that is the first. Raises DeviceError for logits with NaN.
    """
    drawn: list[I32] = []
    for i in range(steps):
        start(bound.rows, i == 0)
        drawn.append(bound.drawn_R.copy())
        _check_drawn(drawn[-1])
        if step.ended(drawn[-1]):
            break
        step.advance(drawn[-1])
    return np.stack(drawn)


def _check_drawn(drawn_R: I32) -> None:
    """Raise DeviceError naming the first row that drew -1: no token, see graph.sampling."""
    bad = np.flatnonzero(drawn_R < 0)
    if bad.size:
        fact = f"the logits of row {int(bad[0])} hold values that are not numbers"
        raise DeviceError("cpu", fact, "the weights are damaged or overflow: get the checkpoint again")


def stored_values(exe: CpuExecutable, bound: BoundStep, sizes: Sizes) -> dict[str, npt.NDArray[np.float32]]:
    """Copies, as float32, of every value that the program stored in the workspace."""
    found = {}
    for name, offset in exe.plan(sizes)[0].items():
        value = exe.program.graph.values[name]
        array = _view(bound.workspace, offset, tuple(sizes.of(dim) for dim in value.shape), value.dtype)
        found[name] = to_f32(array.copy(), value.dtype)
    return found


def _view(slab: Slab, offset: int, shape: tuple[int, ...], dtype: DType) -> npt.NDArray[np.generic]:
    size = _count(shape) * dtype.size_bytes
    return slab.bytes[offset : offset + size].view(dtype.numpy).reshape(shape)


def _count(shape: Sequence[object]) -> int:
    n = 1
    for dim in shape:
        if not isinstance(dim, int):
            raise ValueError(f"dimension {dim!r} is not a number")
        n *= dim
    return n


def encode_sampling(sampling: Sequence[Sampling]) -> I64:
    """[R, SETTING_WORDS] words as the native sampler reads them."""
    table = np.zeros((len(sampling), kernels.SETTING_WORDS), dtype=np.int64)
    reals = table.view(np.float64)
    for i, s in enumerate(sampling):
        reals[i, 0], table[i, 1], reals[i, 2], reals[i, 3] = s.temperature, s.top_k, s.top_p, s.min_p
        table[i, 4] = np.uint64(s.seed % 2**64).view(np.int64)
    return table


def _check_rows(program: Program, binding: Binding, steps: int) -> None:
    """Raise ValueError naming the row, the value and its bound."""
    rows, sizes = binding.rows, binding.rows.sizes
    _check_shapes(rows)
    if steps < 1 or (steps > 1 and not sizes.T == sizes.B == sizes.R):
        raise ValueError(
            f"steps is {steps} with T {sizes.T}, B {sizes.B}, R {sizes.R}; more than 1 needs all three equal"
        )
    Z = program.kv.tokens_per_block(binding.block_bytes)
    if Z < 1:
        raise ValueError(f"a block of {binding.block_bytes} bytes holds no token of {program.kv.bytes_per_token} bytes")
    blocks, reach = binding.kv.size_bytes // binding.block_bytes, rows.block_tables_BM.shape[1] * Z
    _check_range("tokens", rows.tokens_T, program.vocab_size)
    _check_range("positions", rows.positions_T, max(reach - (steps - 1), 0))
    _check_range("sequence", rows.sequence_T, sizes.B)
    _check_range("block_tables", rows.block_tables_BM, blocks)
    _check_range("rows", rows.rows_R, sizes.T)


def _check_shapes(rows: Rows) -> None:
    T, B, R = len(rows.tokens_T), len(rows.lengths_B), len(rows.rows_R)
    for name, got, wanted in (
        ("positions", rows.positions_T.shape, (T,)),
        ("sequence", rows.sequence_T.shape, (T,)),
        ("block_tables", rows.block_tables_BM.shape[:1], (B,)),
        ("sampling", (len(rows.sampling),), (R,)),
        ("end_ids", (len(rows.end_ids) or R,), (R,)),
    ):
        if got != wanted:
            raise ValueError(f"{name} has shape {got} but {wanted} is wanted")


def _check_range(name: str, values: I32, bound: int) -> None:
    if values.size and (int(values.min()) < 0 or int(values.max()) >= bound):
        raise ValueError(f"{name} has {int(values.min())} to {int(values.max())}, outside 0 to {bound - 1}")
