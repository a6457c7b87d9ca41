"""What a launch knows of an instruction: its row on the host and on the GPU, and the bucket that it is for.

    host row   -> sizes and types, which kernels are compiled for        (equal for equal architectures)
    GPU row    -> addresses, T, R and other numbers, read by the kernel  (rewritten by a switch, without a new launch)

So a captured launch holds the address of a row, never that of a weight.
Knows nothing about what kernels compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import gcd
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

from coterie.core.dtypes import BLOCK_WEIGHTS, PACKED, UNIT_Q6, DType
from coterie.core.errors import UnsupportedError
from coterie.kernels.cpu import I64, OPCODE_WORD, OPCODES, dtype_number
from coterie.kernels.triton.arithmetic import EARLY, NOW
from coterie.kernels.triton.bucket import Bucket
from coterie.kernels.triton.product.descriptor_memory import DescriptorMemory
from coterie.kernels.triton.product.tile import Q6_GROUP
from coterie.kernels.triton.tiles import Tiles

# Alignment of every address in a row: the widest load of a thread. The device aligns weights when it places them.
ALIGN_BYTES = 16

# A weight's type in a kernel: that of its elements or, if packed, the type that its rows are loaded as.
TYPES: Mapping[DType, tl.dtype] = {
    DType.F32: tl.float32,
    DType.F16: tl.float16,
    DType.BF16: tl.bfloat16,
    DType.Q8: tl.int8,
    DType.Q6: tl.uint16,
    DType.Q4: tl.uint8,
    DType.Q4Z: tl.uint8,
    DType.Q2: tl.uint8,
    DType.MX4: tl.int8,
}
_NAMES = {opcode.number: name for name, opcode in OPCODES.items()}
_DTYPES = {dtype_number(dtype): dtype for dtype in TYPES}
_ROUNDED = {dtype_number(dtype, rounded=True): dtype for dtype in TYPES if dtype.is_packed or dtype is DType.BF16}
# Q6, whose activations always have 15 bits, is not among them.
_ROUNDED = {number: dtype for number, dtype in _ROUNDED.items() if number not in _DTYPES}
WHEN = "WHEN"  # the parameter of kernels that may begin while the previous launch still runs; see arithmetic.py
TORCH: Mapping[tl.dtype, torch.dtype] = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
}


def _address(value: object) -> object:
    """The address of a GPU tensor: given the tensor, Triton would ask it, and then CUDA, at each launch."""
    return value.data_ptr() if isinstance(value, torch.Tensor) and value.is_cuda else value


def operand_words(kernel: str, *operands: str) -> tuple[tl.constexpr, ...]:
    """Words of operands in an instruction's row, as compile-time constants."""
    return tuple(tl.constexpr(OPCODES[kernel].words[name]) for name in operands)


def aligned(size_bytes: int) -> int:
    """The size rounded up, so that what follows is aligned."""
    return -(-size_bytes // ALIGN_BYTES) * ALIGN_BYTES


def name_of(row: I64) -> str:
    """The instruction's name."""
    return _NAMES[int(row[OPCODE_WORD])]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Layout of a weight's rows: what kernels that multiply by it are compiled for. `STRIDE` is in elements of `TYPE`.

    `COLUMNS` is the number of elements per row that hold weights: two in a byte of Q4, four in a byte of Q2 and,
    partly, in one of Q6 (six_bits.py). `group` columns share a scale.
    """

    TYPE: tl.dtype
    K: int
    STRIDE: int
    COLUMNS: int
    ALIGN: int
    group: int
    has_zeros: bool = False

    @staticmethod
    def of(dtype: DType, K: int) -> Matrix:
        """The layout of rows of K weights of a type."""
        if dtype not in PACKED:
            return Matrix(TYPES[dtype], K, K, K, gcd(ALIGN_BYTES, dtype.row_bytes(K)), 1)
        (bits, group), stride = PACKED[dtype], dtype.row_bytes(K)
        if dtype is DType.Q6:  # a column has the upper bits of four weights
            columns, type_ = -(-K // UNIT_Q6) * UNIT_Q6 // 4, TYPES[dtype]
            return Matrix(type_, K, stride * 8 // type_.primitive_bitwidth, columns, gcd(ALIGN_BYTES, stride), Q6_GROUP)
        columns = -(-K // BLOCK_WEIGHTS) * BLOCK_WEIGHTS * bits // 8
        return Matrix(TYPES[dtype], K, stride, columns, gcd(ALIGN_BYTES, stride), group * bits // 8, dtype.has_zeros)

    @property
    def is_wide(self) -> bool:
        """Whether it is float32, which tensor cores would round."""
        return self.TYPE is tl.float32

    @property
    def dot_type(self) -> tl.dtype:
        """The type that tensor cores multiply: the weight's own; packed weights are rounded to bfloat16."""
        return self.TYPE if self.TYPE in TORCH else tl.bfloat16

    def constants(self) -> dict[str, object]:
        """Compile-time parameters."""
        return {name: getattr(self, name) for name in ("TYPE", "K", "STRIDE", "COLUMNS", "ALIGN")}


@dataclass(slots=True, eq=False)
class Launch:
    """A kernel with its grid, arguments and constants; calling it launches it.

    The arguments stay in place, so only the first call goes through Triton's compiler, which inspects every argument to
    look up the compiled kernel; later calls start that directly.
    """

    kernel: Any
    grid: tuple[int, ...]
    args: tuple[object, ...]
    constants: Mapping[str, object]
    # For tensor descriptors that the kernel creates; captured launches hold its address.
    memory: torch.Tensor | None = None
    _again: Callable[[], object] | None = field(default=None, init=False, repr=False)

    def __call__(self) -> None:
        """Launch on the current stream, always of the same GPU."""
        if self._again is not None:
            self._again()
            return
        triton.set_allocator(self._memory_of)
        compiled = self.kernel[self.grid](*self.args, **self.constants)
        if compiled is not None:  # None under the interpreter
            self._again = self._start_of(compiled)

    def _memory_of(self, size: int, alignment: int, stream: int | None) -> torch.Tensor:
        """Triton's allocator callback, called at each launch of a kernel that creates descriptors."""
        if self.memory is None or self.memory.numel() < size:
            raise ValueError(f"{self.kernel.fn.__name__} makes {size} bytes of descriptors; give its launch the memory")
        return self.memory

    def _start_of(self, compiled: Any) -> Callable[[], object]:
        """A function that starts the compiled kernel: it takes all parameters in order, including those compiled in."""
        signature = self.kernel.signature
        named = {name: value for name, value in self.constants.items() if name in signature.parameters}
        given = signature.bind(*self.args, **named)
        given.apply_defaults()
        start = partial(compiled[(*self.grid, 1, 1)[:3]], *map(_address, given.arguments.values()))
        if not compiled.metadata.global_scratch_size:
            return start

        def start_with_memory() -> None:
            triton.set_allocator(self._memory_of)
            start()

        return start_with_memory


@dataclass(frozen=True, slots=True)
class Call:
    """One instruction to launch. `scratch` is memory that it may use until it ends, and pass on to the next one.

    `previous` and `next` are its neighbours in the program, `earlier_rows` and `later_rows` all host rows on either
    side. `launches` collects the result: decisions made on the host are made once for all steps of a bucket.
    """

    name: str
    host_row: I64
    row: torch.Tensor
    bucket: Bucket
    scratch: torch.Tensor
    tiles: Tiles
    descriptors: DescriptorMemory
    previous: Call | None = None
    next: Call | None = None
    earlier_rows: I64 | None = None
    later_rows: I64 | None = None
    launches: list[Launch] = field(default_factory=list)

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: object, **constants: object) -> None:
        """Add a kernel launch with its grid. If tiles.early, kernels with a WHEN parameter begin early."""
        if WHEN in kernel.arg_names:
            early = self.tiles.early
            constants |= {WHEN: (EARLY if early else NOW).value, "launch_pdl": early}
        self.launches.append(Launch(kernel, grid, args, constants))

    def integer(self, operand: str) -> int:
        """An operand's value: a size, a type's number or an address."""
        return int(self.host_row[OPCODES[self.name].words[operand]])

    def real(self, operand: str) -> float:
        """The value of a floating-point operand."""
        return float(self.host_row[OPCODES[self.name].words[operand] :][:1].view(np.float64)[0])

    def dtype(self, operand: str) -> DType:
        """The type of a weight. Raises UnsupportedError for rounded activations."""
        own = f"{operand}_dtype"
        number = self.integer(own if own in OPCODES[self.name].words else "dtype")  # common to all branches
        if number in _ROUNDED:
            dtype = _ROUNDED[number]
            met = "bf16" if dtype is DType.BF16 else "int8"
            fact = f"{operand} of {self.name} is {dtype.value} with {met} activations"
            raise UnsupportedError("the GPU's kernels", fact, f"leave out --activations {met}")
        return _DTYPES[number]

    def type(self, operand: str) -> tl.dtype | None:
        """The type that a kernel loads a vector as; None if the operand is absent."""
        return TYPES[self.dtype(operand)] if self.integer(operand) else None

    def matrix(self, operand: str, K: int) -> Matrix:
        """The layout of a weight with K columns."""
        return Matrix.of(self.dtype(operand), K)

    def scratch_as(self, element: tl.dtype, count: int, start: int = 0) -> torch.Tensor:
        """`count` elements of a type in scratch, from byte `start` on, a multiple of 16."""
        dtype = TORCH[element]
        end = start + count * dtype.itemsize
        if end > self.scratch.numel():
            raise ValueError(f"{self.name} needs {end} bytes of scratch but has {self.scratch.numel()}")
        return self.scratch[start:end].view(dtype)
