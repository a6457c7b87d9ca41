"""The GPU's kernels compiled for an H100, on a machine without one: registers, spills and the instructions that matter.

    python -m tests.device.compiled            all kernels; writes their table in docs/triton.md
    python -m tests.device.compiled all Q4     all of them for one type of weights; a line of JSON for each
    python -m tests.device.compiled linear     some of them

Run as a program of its own: a process that interprets kernels cannot compile them.
Knows nothing about what kernels compute.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass

import torch
import triton
from tests.device.triton_table import DOCS, put
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import JITFunction

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.kernels.triton import launch as gpu
from coterie.kernels.triton.feed import launch_feed
from coterie.kernels.triton.launch import Bucket

CAPABILITY = 90
# A Llama of 1B: hidden, intermediate, heads, kv heads, channels, vocabulary; tokens in a page, and its bytes.
D, F, H, K, C, V, Z, BLOCK_BYTES = 2048, 8192, 32, 8, 64, 128256, 16, 16 * 16 * 2 * 8 * 64 * 2
STEPS = {
    "decode 1": Bucket(1, 1, 1, 4096),
    "decode 4": Bucket(4, 4, 4, 4096),
    "decode 16": Bucket(16, 16, 16, 4096),
    "prefill 2048": Bucket(2048, 4, 16, 4096),
}
HEAD = "| kernel | type | step | registers | spilled | shared | products by | widest load | copies ahead |\n"
HEAD += "|---|---|---|---|---|---|---|---|---|\n"


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

    @property
    def is_shown(self):
        """Float16 is as bfloat16; kernels that multiply nothing are small at every size."""
        multiplies = self.kernel.endswith((": few", ": many", ": alone", ": together", ": join", ": sample"))
        return multiplies and self.dtype != "F16"

    @property
    def row(self):
        cells = (self.kernel, self.dtype, self.step, self.registers, self.spilled_bytes, self.shared_bytes)
        ahead = "yes" if self.copies_ahead else ""
        return "| " + " | ".join(map(str, (*cells, self.products, self.widest_load_bits, ahead))) + " |\n"


class NoGpu:
    """Stands for the driver: names the GPU to compile for, and launches nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def rows_of(dtype):
    """A row of each kernel that meets a weight of this type. Addresses are made up: nothing is run."""
    at, small, kind = 64, kernels.dtype_number(DType.BF16), kernels.dtype_number(dtype)
    pages = dict.fromkeys(("positions", "sequence", "block_tables", "kv"), at)
    pages |= {"table_width": 256, "kv_dtype": small, "block_bytes": BLOCK_BYTES, "Z": Z, "layer": 0}
    norm = {"norm": at, "norm_dtype": small}
    qkv = {"wq": at, "wk": at, "wv": at, "wq_dtype": kind, "wk_dtype": kind, "wv_dtype": kind, "inv_freq": at}
    gate_up = {"gate": at, "gate_dtype": kind, "up": at, "up_dtype": kind}
    weight = {"weight": at, "weight_dtype": kind}
    operands = {
        "embed": {"table": at, "table_dtype": kind, "D": D},
        "linear": {**weight, "N": D, "K": D},
        "linear_add": {**weight, "N": D, "K": F},
        "norm_qkv_rope_append": {**norm, **qkv, **pages, "D": D, "H": H, "K": K, "C": C},
        "norm_gate_up_silu_mul": {**norm, **gate_up, "D": D, "F": F},
        "take_norm_linear": {**norm, **weight, "D": D, "N": V},
    }
    if dtype is DType.BF16:
        operands |= {
            "rms_norm": {"weight": at, "weight_dtype": small, "per_token": 1, "C": D},
            "rope": {"H": H, "C": C},
            "kv_append": {**pages, "K": K, "C": C},
            "attention": {**pages, "H": H, "K": K, "C": C},
            "add": {"N": D},
            "mul": {"N": D},
            "silu": {"N": F},
            "take_rows": {"D": D},
            "sample": {"V": V},
        }
    zeros = {name: dict.fromkeys(kernels.OPCODES[name].words, 0) for name in operands}
    return {name: kernels.encode(name, zeros[name] | given).reshape(1, -1) for name, given in operands.items()}


def measure(kernel, dtype, step, compiled):
    """Read the compiler's output."""
    ptx = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [get_ptxas(CAPABILITY).path, "-v", f"--gpu-name=sm_{CAPABILITY}a", file.name, "-o", "/dev/null"]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = int(re.findall(r"Used (\d+) registers", log)[0])
    spilled = max(map(int, re.findall(r"(\d+) bytes spill", log)), default=0)
    products = "wgmma" if "wgmma.mma_async" in ptx else "mma" if "mma.sync" in ptx else ""
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)", ptx)
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", ptx)
    widths = [int(many or 1) * int(bits) for many, bits in loads] + [8 * int(size, 0) for size in copies]
    shared = int(compiled.metadata.shared)
    return Compiled(
        kernel,
        dtype,
        step,
        registers,
        spilled,
        shared,
        products,
        max(widths, default=0),
        bool(copies),
        len(re.findall(r"\batom\.global", ptx)),
    )


def compile_all(names, dtypes, steps):
    """Launch rows with a driver that compiles and does not run."""
    found, run = {}, JITFunction.run
    triton.runtime.driver.set_active(NoGpu())

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.setdefault((f"{name}: {self.fn.__name__.strip('_')}", dtype.value, step), compiled)

    JITFunction.run = compile_only
    for dtype in dtypes:
        for name, row in rows_of(dtype).items():
            for step in steps if not names or name in names else ():
                scratch = torch.zeros(gpu.scratch_bytes(row, STEPS[step]), dtype=torch.uint8)
                gpu.launch(row, torch.from_numpy(row.copy()), 0, STEPS[step], scratch)
    if not names or "feed" in names:
        name, dtype, step = "feed", DType.F32, "decode 1"
        words, state = torch.zeros(len(kernels.FEED), dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
        launch_feed(words, state, torch.zeros(kernels.ROW_WORDS, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    return [measure(*key, compiled) for key, compiled in found.items()]


def main():
    """Compile what the arguments name, or everything and write the table."""
    names, types = sys.argv[1:], (DType.BF16, DType.F16, DType.Q8, DType.Q4, DType.F32)
    if names[:1] == ["all"]:
        found = compile_all((), [DType[names[1]]], tuple(STEPS))
    elif names:
        found = compile_all(names, types[:1], ("decode 1", "prefill 2048"))
    else:
        found = compile_all((), types, tuple(STEPS))
        put(DOCS, "compiled", HEAD, [one.row for one in found if one.is_shown])
    for one in found:
        print(json.dumps(asdict(one)))


if __name__ == "__main__":
    main()
