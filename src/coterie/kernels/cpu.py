"""The native CPU kernels: opcodes and operands, encoding of instruction rows, the threads that execute them.

Knows nothing about graphs, devices or files. Opcode numbers and operand positions come from the native module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from coterie.core.built import check_sources, not_built
from coterie.core.dtypes import DType

try:
    from coterie.kernels import _cpu
except ImportError as error:
    raise not_built("_cpu", error) from None

I64: TypeAlias = npt.NDArray[np.int64]

check_sources(_cpu)

ROW_WORDS: int = _cpu.ROW_WORDS
OPCODE_WORD, GATE_WORD = 0, 1
SETTING_WORDS: int = _cpu.SETTING_WORDS  # per row of `sample`: temperature, top_k, top_p, min_p, seed, changes
ISAS: tuple[str, ...] = _cpu.ISAS  # instruction sets that this machine supports, the fastest last
BF16_PRODUCTS: bool = _cpu.BF16_PRODUCTS  # whether the machine multiplies bfloat16 by bfloat16 (AVX512-BF16)
GATE_PASSED, GATE_FAILED = 1, 2
FEED: Mapping[str, int] = MappingProxyType({name: i for i, (name, _) in enumerate(_cpu.FEED_WORDS)})  # see csrc/feed.h
READ_PIECE_BYTES: int = _cpu.READ_PIECE_BYTES  # `Reads` splits long parts into pieces of this size
READ_FIRST_BYTES: int = _cpu.READ_FIRST_BYTES  # bytes of long parts in flight at first
READ_LONG_BYTES: int = _cpu.READ_LONG_BYTES  # upper bound of these, approached as reads complete
READS_AT_ONCE: int = _cpu.READS_AT_ONCE  # reads of any kind in flight at once
GELU_FORMS = ("erf", "tanh", "sigmoid")  # indexed by their numbers in csrc/math.h
MAX_THREADS = 1024  # per team; a larger number is surely a typo


@dataclass(frozen=True, slots=True)
class Opcode:
    """An opcode's number, and the word of each operand in an instruction row.

    `reals` are stored as the bits of a double; `addresses` are pointers.
    """

    number: int
    words: Mapping[str, int]
    reals: frozenset[str]
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True)
class Counters:
    """What a team did since it was created or reset.

    `stored_bytes` counts memory other than scratch: outputs and pages. `scratch_bytes` is the peak of any one thread;
    `calls` counts launches by the host, `instructions` executed rows.
    """

    stored_bytes: int
    scratch_bytes: int
    calls: int
    instructions: int


def rounds_attention(isa: str = ISAS[-1]) -> bool:
    """Whether attention on bfloat16 pages rounds queries and softmax weights where a graph allows it.

    Only the AVX-512 kernels do, with or without bfloat16 products; others gain nothing by it (csrc/attend_bf16.h).
    """
    return isa == "avx512"


def _opcode(number: int, fields: tuple[tuple[str, str], ...]) -> Opcode:
    words = {name: _cpu.HEADER_WORDS + i for i, (name, _) in enumerate(fields)}
    reals, addresses = (frozenset(name for name, kind in fields if kind == wanted) for wanted in "dp")
    return Opcode(number, MappingProxyType(words), reals, addresses)


OPCODES: Mapping[str, Opcode] = MappingProxyType({name: _opcode(*row) for name, row in _cpu.OPCODES.items()})


def dtype_number(dtype: DType, rounded: bool = False) -> int:
    """The native number of a type of weights or pages.

    `rounded`: the variant with 8-bit activations (packed types) or bfloat16 ones (bfloat16). Raises KeyError for a type
    that kernels do not have, or not with rounded activations.
    """
    met = "bf16" if dtype is DType.BF16 else "int8"
    return int(_cpu.DTYPES[f"{dtype.value}, {met}" if rounded else dtype.value])


def real_bits(value: float) -> int:
    """The bits of a double, as an instruction row stores them."""
    return int(np.float64(value).view(np.int64))


def encode(name: str, operands: Mapping[str, int | float], gate: int = 0) -> I64:
    """Encode one instruction row; every operand must be given. Raises KeyError naming missing or unknown operands."""
    opcode = OPCODES[name]
    if operands.keys() != opcode.words.keys():
        raise KeyError(f"{name}: operands {sorted(operands.keys() ^ opcode.words.keys())} are missing or unknown")
    row = np.zeros(ROW_WORDS, dtype=np.int64)
    row[OPCODE_WORD], row[GATE_WORD] = opcode.number, gate
    for field, value in operands.items():
        row[opcode.words[field]] = real_bits(value) if field in opcode.reals else int(value)
    return row


def address(array: npt.NDArray[np.generic]) -> int:
    """Address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def within(values: npt.NDArray[np.int32], bound: int) -> bool:
    """Whether every value of a C-contiguous array is in [0, bound)."""
    return bool(_cpu.within(values, bound))


def signal(gate: int, passed: bool) -> None:
    """Set the int32 gate at this address, and wake the threads that wait for it."""
    _cpu.signal_gate(gate, GATE_PASSED if passed else GATE_FAILED)


class Reads:
    """Direct reads of files, many in flight at once, submitted and awaited by one thread."""

    def __init__(
        self,
        piece_bytes: int = READ_PIECE_BYTES,
        first_bytes: int = READ_FIRST_BYTES,
        long_bytes: int = READ_LONG_BYTES,
    ) -> None:
        """Set the piece size of long parts, and how many bytes of them are in flight, at first and at most.

        Raises RuntimeError where the system does not support this kind of reading.
        """
        self._native = _cpu.Reads(piece_bytes, first_bytes, long_bytes)

    def add(self, tag: int, file: int, to: int, offset: int, there: int, parts: I64, scattered: bool) -> None:
        """Queue parts [n, 2] (start, stop), relative to `offset` in an open file; each is read to address `to` + start.

        `there` bytes of the range are in the file, whose last block may be partial. Scattered parts all start at once,
        and long ones wait for them.
        """
        self._native.add(tag, file, to, offset, there, parts, scattered)

    def next(self) -> tuple[int, bool] | None:
        """Wait, without the interpreter lock, for a range to complete; return its tag and whether all of it was read.

        None if nothing is in flight.
        """
        ended = self._native.next()
        return None if ended is None else (int(ended[0]), bool(ended[1]))

    @property
    def under_way(self) -> tuple[int, int]:
        """In flight, as far as completions have been collected: how many scattered parts, and bytes of long ones."""
        return int(self._native.scattered), int(self._native.long_bytes)


class Team:
    """Persistent threads that execute rows together; results do not depend on how many there are."""

    def __init__(self, threads: int, isa: str = ISAS[-1]) -> None:
        """Start `threads` - 1 threads; the caller of `run` is one more.

        Raises ValueError for an unknown `isa`, RuntimeError when the system gives fewer threads.
        """
        self._native = _cpu.Team(threads, isa)

    @property
    def threads(self) -> int:
        """Number of threads that work, the caller included."""
        return int(self._native.threads)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._native.isa)

    def run(self, rows: I64) -> int:
        """Execute rows [n, ROW_WORDS] in order, without the interpreter lock; returns how many were executed.

        Fewer than n means that the next row's gate failed. Addresses in the rows must be valid until this returns.
        Raises ValueError for an unknown opcode, RuntimeError while another call is in progress.
        """
        return int(self._native.run(rows))

    def run_steps(self, rows: I64, feed: I64) -> tuple[int, int]:
        """Execute the rows for several steps, feeding sampled tokens back as `feed` says (one word per name of FEED).

        Returns the number of finished steps, and how many rows of the last step were executed: not all of them if a
        gate failed. Stops early after a step in which a row sampled one of its end tokens or -1, or when interrupted.
        """
        steps, executed = self._native.run_steps(rows, feed)
        return int(steps), int(executed)

    def interrupt(self) -> None:
        """End the current `run_steps`, or else the next one, after its current step. Any thread may call this."""
        self._native.interrupt()

    @property
    def memory_bytes(self) -> int:
        """Bytes of scratch, of each thread and shared, that runs have needed so far."""
        return int(self._native.memory_bytes)

    def counters(self) -> Counters:
        """Bytes stored, scratch used, calls and instructions so far."""
        return Counters(**self._native.counters())

    def reset_counters(self) -> None:
        """Start counting from zero."""
        self._native.reset_counters()


def read_seconds(
    memory: npt.NDArray[np.uint8], threads: int, ahead_bytes: int = 0, streams: int = 1, isa: str = ISAS[-1]
) -> float:
    """Seconds that `threads` threads take to read all of `memory`, prefetching `ahead_bytes` ahead (0: no prefetch).

    `streams`: 1 or 4, read side by side within each block that a thread takes.
    """
    return float(_cpu.read_seconds(address(memory), memory.nbytes, threads, ahead_bytes, streams, isa))


def multiply_add_rate(rounds: int, threads: int, isa: str = ISAS[-1], bf16: bool = False) -> float:
    """Flops per second of multiply-adds in registers: `rounds` rounds on each of `threads` threads.

    A round takes some 400 cycles. In float32 or, with `bf16`, in bfloat16 if the CPU can (VDPBF16PS) and `isa` has it.
    """
    return float(_cpu.multiply_add_rate(rounds, threads, isa, bf16))
