"""The native CPU kernels: opcodes and their operands, the row that encodes an instruction, the team that executes rows.

Knows nothing about graphs, devices or files. Numbers of opcodes and places of operands are those of the native module.
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
SETTING_WORDS: int = _cpu.SETTING_WORDS  # of one row of `sample`: temperature, top_k, top_p, min_p, seed, changes
ISAS: tuple[str, ...] = _cpu.ISAS  # instruction sets of this machine, the fastest last
BF16_PRODUCTS: bool = _cpu.BF16_PRODUCTS  # whether it has one for bfloat16 times bfloat16 (AVX512-BF16)
GATE_PASSED, GATE_FAILED = 1, 2
FEED: Mapping[str, int] = MappingProxyType({name: i for i, (name, _) in enumerate(_cpu.FEED_WORDS)})  # see csrc/feed.h
READ_PIECE_BYTES: int = _cpu.READ_PIECE_BYTES  # how `Reads` cuts long parts,
READ_FIRST_BYTES: int = _cpu.READ_FIRST_BYTES  # how many bytes of them are under way at first,
READ_LONG_BYTES: int = _cpu.READ_LONG_BYTES  # how many once the first ranges are there,
READS_AT_ONCE: int = _cpu.READS_AT_ONCE  # and how many reads there are at once of any kind
GELU_FORMS = ("erf", "tanh", "sigmoid")  # by their numbers, see csrc/math.h
MAX_THREADS = 1024  # of a team; more is a slip of the keyboard


@dataclass(frozen=True, slots=True)
class Opcode:
    """An instruction's number, and each operand's word in the row. `reals` are stored as the bits of a double."""

    number: int
    words: Mapping[str, int]
    reals: frozenset[str]
    addresses: frozenset[str]


@dataclass(frozen=True, slots=True)
class Counters:
    """What a team did since it was made or reset. `stored_bytes` went to memory that is not scratch: outputs and pages.

    `scratch_bytes` is the most that one thread used; `calls` are launches by the host, `instructions` rows executed.
    """

    stored_bytes: int
    scratch_bytes: int
    calls: int
    instructions: int


def rounds_attention(isa: str = ISAS[-1]) -> bool:
    """Whether attention over bfloat16 rounds queries and the weights of values where a graph says so.

    AVX-512 alone does, with or without bfloat16 products; others gain nothing by it (csrc/attend_halves.h).
    """
    return isa == "avx512"


def _opcode(number: int, fields: tuple[tuple[str, str], ...]) -> Opcode:
    words = {name: _cpu.HEADER_WORDS + i for i, (name, _) in enumerate(fields)}
    reals, addresses = (frozenset(name for name, kind in fields if kind == wanted) for wanted in "dp")
    return Opcode(number, MappingProxyType(words), reals, addresses)


OPCODES: Mapping[str, Opcode] = MappingProxyType({name: _opcode(*row) for name, row in _cpu.OPCODES.items()})


def dtype_number(dtype: DType, rounded: bool = False) -> int:
    """The native number of a weight's or a page's type; `rounded`: of a packed one with activations of 8 bits, or
    of bfloat16 with bfloat16.

    Raises KeyError for types that are neither.
    """
    met = "bf16" if dtype is DType.BF16 else "int8"
    return int(_cpu.DTYPES[f"{dtype.value}, {met}" if rounded else dtype.value])


def real_bits(value: float) -> int:
    """The bits of a double, as the row stores them."""
    return int(np.float64(value).view(np.int64))


def encode(name: str, operands: Mapping[str, int | float], gate: int = 0) -> I64:
    """One row of an instruction; every operand must be given. Raises KeyError naming operands missing or unknown."""
    opcode = OPCODES[name]
    if operands.keys() != opcode.words.keys():
        raise KeyError(f"{name}: operands {sorted(operands.keys() ^ opcode.words.keys())} are missing or unknown")
    row = np.zeros(ROW_WORDS, dtype=np.int64)
    row[OPCODE_WORD], row[GATE_WORD] = opcode.number, gate
    for field, value in operands.items():
        row[opcode.words[field]] = real_bits(value) if field in opcode.reals else int(value)
    return row


def address(array: npt.NDArray[np.generic]) -> int:
    """Where an array's first element is."""
    return int(array.__array_interface__["data"][0])


def within(values: npt.NDArray[np.int32], bound: int) -> bool:
    """True when every value of a C-contiguous array is in [0, bound)."""
    return bool(_cpu.within(values, bound))


def signal(gate: int, passed: bool) -> None:
    """Set the int32 gate at this address and wake the threads that wait for it."""
    _cpu.signal_gate(gate, GATE_PASSED if passed else GATE_FAILED)


class Reads:
    """Direct reads of files that are under way together, handed over and awaited by one thread."""

    def __init__(
        self,
        piece_bytes: int = READ_PIECE_BYTES,
        first_bytes: int = READ_FIRST_BYTES,
        long_bytes: int = READ_LONG_BYTES,
    ) -> None:
        """How long parts are cut, and how much of them is under way at first, and at most.

        Raises RuntimeError where the system does not read this way.
        """
        self._native = _cpu.Reads(piece_bytes, first_bytes, long_bytes)

    def add(self, tag: int, file: int, to: int, offset: int, there: int, parts: I64, scattered: bool) -> None:
        """Queue parts [n, 2] (start, stop) of what begins at `offset` in an open file, for the address `to` + start.

        `there` bytes of it are in the file. Scattered parts are all begun at once, and long ones wait for them.
        """
        self._native.add(tag, file, to, offset, there, parts, scattered)

    def next(self) -> tuple[int, bool] | None:
        """Wait, without the interpreter lock, until a range is over: its tag, and whether it was read whole.

        None when there is nothing to wait for.
        """
        ended = self._native.next()
        return None if ended is None else (int(ended[0]), bool(ended[1]))

    @property
    def under_way(self) -> tuple[int, int]:
        """Scattered parts, and bytes of long ones, that were begun and whose end was not heard of since."""
        return int(self._native.scattered), int(self._native.long_bytes)


class Team:
    """Persistent threads that execute rows together; results do not depend on how many there are."""

    def __init__(self, threads: int, isa: str = ISAS[-1]) -> None:
        """Start `threads` - 1 threads; the caller of `run` is one more. Raises ValueError for an unknown `isa`,
        RuntimeError when the system gives fewer threads.
        """
        self._native = _cpu.Team(threads, isa)

    @property
    def threads(self) -> int:
        """Threads that work, the caller included."""
        return int(self._native.threads)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._native.isa)

    def run(self, rows: I64) -> int:
        """Execute rows [n, ROW_WORDS] in order, without the interpreter lock, and return how many were executed.

        Fewer than n means that the gate of the next row failed. Addresses in the rows must be valid until this returns.
        """
        return int(self._native.run(rows))

    def run_steps(self, rows: I64, feed: I64) -> tuple[int, int]:
        """Execute rows for several steps, feeding drawn tokens back by `feed` (one word per name of FEED).

        Returns the steps finished, and how many rows of the last step begun were executed: fewer than there are when a
        gate failed. It ends early after a step in which a row drew one of its ends or -1, or when it is interrupted.
        """
        steps, executed = self._native.run_steps(rows, feed)
        return int(steps), int(executed)

    def interrupt(self) -> None:
        """End the `run_steps` under way, or else the next one, after the step that it is in. Any thread may ask."""
        self._native.interrupt()

    @property
    def memory_bytes(self) -> int:
        """Scratch of all threads, and what they share, as far as runs have needed it."""
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
    """Seconds in which `threads` threads read all of `memory`, prefetching `ahead_bytes` ahead (0: not at all).

    `streams`: 1 or 4, side by side in every block that a thread takes.
    """
    return float(_cpu.read_seconds(address(memory), memory.nbytes, threads, ahead_bytes, streams, isa))


def multiply_add_rate(rounds: int, threads: int, isa: str = ISAS[-1], bf16: bool = False) -> float:
    """Flops per second of multiply-adds in registers, `threads` threads with `rounds` rounds each (some 400 cycles).

    In float32, or of bfloat16 where kernels have an instruction for that (VDPBF16PS).
    """
    return float(_cpu.multiply_add_rate(rounds, threads, isa, bf16))
