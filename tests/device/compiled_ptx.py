"""What the compiler made of a kernel: registers, spills, and the instructions that matter, as the tables show them.

Knows nothing about which kernels are compiled, or for what.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cache

from triton.backends.nvidia.compiler import get_ptxas

from coterie.kernels.triton.launch import H100
from coterie.kernels.triton.persistent import programs_that_fit

CAPABILITY = int(os.environ.get("COMPILE_FOR", "90"))  # of the GPU that kernels are compiled for, times ten
# Of a multiprocessor, and of a program: CUDA C++ Programming Guide, technical specifications of capability 9.0.
MAX_REGISTERS, MAX_SHARED_BYTES = 65_536, 227 * 1024
OF_NETS = (": conv", ": delta_whole", ": delta_columns", ": gate", ": scan")
OF_LATENT = (": absorb", ": absorb_many", ": unfold", ": unfold_many")
HEAD = "| kernel | type | step | registers | spilled | shared | products by | widest load | copies ahead |\n"
HEAD += "|---|---|---|---|---|---|---|---|---|\n"
WALK_HEAD = "| type | step | registers | spilled | shared | programs a multiprocessor | widest load |\n"
WALK_HEAD += "|---|---|---|---|---|---|---|\n"
# PTX that bears on what a program sees of others: a barrier of its threads, an arrival, a look at the count, a load,
# and all else.
ORDER = {
    "B": r"\bbar\.sync\b",
    "R": r"\batom\.global\.gpu\.acq_rel\.add\.u64\b",
    "A": r"\b(?:ld\.global\.gpu\.acquire|atom\.global\.gpu\.acquire\.\w+)\.\w+\b",
    "L": r"\bld\.global\b",
    "M": r"\b(?:st\.global|cp\.async\.c[ag]|atom\.global)\b",
}
LIFT = "0f7F000000"  # 2^127, by which floats of 4 bits get an exponent
# PTX that bears on launches that begin early: the next may, a wait for the last, a load, a store, a jump, an end.
EARLY_ORDER = {
    "N": r"\bgriddepcontrol\.launch_dependents\b",
    "W": r"\bgriddepcontrol\.wait\b",
    "L": r"\b(?:ld\.global|cp\.async\.c[ag])\b",
    "S": r"\b(?:st\.global|atom\.global|red\.global)\b",
    "J": r"\bbra\b",
    "X": r"\bret\b",
}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel. Bytes are a thread's (spilled) and a program's (shared)."""

    kernel: str
    dtype: str
    step: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    products: str
    widest_load_bits: int
    copies_ahead: bool
    atomics: int
    releases: int
    meetings: int
    noncoherent_loads: int
    early: str
    lifted: int
    flushed: int
    converted: int
    asked_if_there: int

    @property
    def is_shown(self):
        """Float16 is as bfloat16; kernels that multiply nothing are small at every size."""
        multiplies = self.kernel.endswith(
            (
                ": few",
                ": many",
                ": described",
                ": described_heads",
                ": lone_tokens",
                ": lone_tokens_wide",
                ": chunk",
                ": join",
                ": sample",
                *OF_NETS,
                *OF_LATENT,
            )
        )
        return multiplies and self.dtype != "F16"

    @property
    def row(self):
        cells = (self.kernel, self.dtype, self.step, self.registers, self.spilled_bytes, self.shared_bytes)
        ahead = "yes" if self.copies_ahead else ""
        return "| " + " | ".join(map(str, (*cells, self.products, self.widest_load_bits, ahead))) + " |\n"

    @property
    def walk_row(self):
        """What decides how many programs of the walk are on a multiprocessor at once, and how many that is."""
        warps, most = H100.walk_warps, H100.walk_programs
        fit = programs_that_fit(self.registers, self.shared_bytes, warps, MAX_REGISTERS, MAX_SHARED_BYTES)
        cells = (self.dtype, self.step, self.registers, self.spilled_bytes, self.shared_bytes, min(fit, most))
        return "| " + " | ".join(map(str, (*cells, self.widest_load_bits))) + " |\n"


def order_of(ptx, letters=ORDER):
    """A letter for each instruction that has one, as they stand in the text."""
    either = "|".join(f"(?P<{letter}>{pattern})" for letter, pattern in letters.items())
    return "".join(str(found.lastgroup) for found in re.finditer(either, ptx))


def early_of(ptx):
    """Up to its last wait, what a launch that begins early does; all of it where it never waits; else nothing."""
    order = order_of(ptx, EARLY_ORDER)
    return order[: order.rfind("W") + 1] or (order if "N" in order else "")


def noncoherent_loads(ptx):
    """Loads that may go by what a cache held before, but for those of constant tables of CUDA's: angles have one."""
    tables = set(re.findall(r"mov\.b64\s+(%rd\d+), __cudart\w+;", ptx))
    within = {to for to, base in re.findall(r"add\.s64\s+(%rd\d+), (%rd\d+),", ptx) if base in tables}
    at = re.findall(r"\bld\.global\.nc\b[^;]*\[\s*(%rd\d+)", ptx)
    return sum(one not in tables | within for one in at)


def measure(kernel, dtype, step, compiled):
    """A row of the table: what the compiler made of a kernel for a step."""
    return Compiled(kernel, dtype, step, *read(compiled))


@cache
def read(compiled):
    """Read the compiler's output: the fields of `Compiled` behind its names. Steps may share a kernel."""
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        (target,) = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)
        command = [get_ptxas(CAPABILITY).path, "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.findall(r"Used (\d+) registers", log)[0])
    spilled = max(map(int, re.findall(r"(\d+) bytes spill", log)), default=0)
    products = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else ""
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)", ptx)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", ptx)
    ahead = bool(copies) or "cp.async.bulk.tensor" in ptx
    widths = [int(many or 1) * int(bits) for many, bits in loads] + [8 * int(size, 0) for size in copies]
    shared, order = int(compiled.metadata.shared), order_of(ptx)
    return (
        registers,
        spilled,
        shared,
        products,
        max(widths, default=0),
        ahead,
        len(re.findall(r"\batom\.global", ptx)),
        order.count("R"),
        len(re.findall("BR[BL]*AB", order)),
        noncoherent_loads(ptx),
        early_of(ptx),
        len(re.findall(rf"\bmul\.f32\b[^;]*{LIFT};", ptx)),
        len(re.findall(rf"\bftz\b[^;]*{LIFT}", ptx)),
        len(re.findall(r"\bcvt\.rn\.f32\.[su]\d+\b", ptx)),
        len(re.findall(r"@there prefetch\b", ptx)),
    )
