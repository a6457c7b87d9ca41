"""The GPU's kernels compiled for an H100, on a machine without one: registers, spills and the instructions that matter.

    python -m tests.device.compiled            all kernels; writes their table in docs/triton.md
    python -m tests.device.compiled all Q4     all of them for one type of weights; a line of JSON for each
    python -m tests.device.compiled linear     some of them
    python -m tests.device.compiled wide       some of them with other sizes or operands, or in other steps (SOME)
    python -m tests.device.compiled walk       the kernel that walks all rows, for each type; writes its own table

Run as a program of its own: a process that interprets kernels cannot compile them.
Knows nothing about what kernels compute.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache

import numpy as np
import torch
import triton
from tests.device.compiled_delta import beside, delta_operands, program_of_nets
from tests.device.compiled_latent import NAMES as LATENT
from tests.device.compiled_latent import latent_operands, program_of_latent
from tests.device.native import whole
from tests.device.triton_table import DOCS, put
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime.jit import JITFunction

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.kernels.triton import launch as gpu
from coterie.kernels.triton.feed import feed_launch
from coterie.kernels.triton.launch import H100, Bucket
from coterie.kernels.triton.persistent import plan_of, programs_that_fit

CAPABILITY = 90
# Of a multiprocessor, and of a program: CUDA C++ Programming Guide, technical specifications of capability 9.0.
MOST_REGISTERS, MOST_SHARED_BYTES = 65_536, 227 * 1024
# A Llama of 1B: hidden, intermediate, heads, kv heads, channels, vocabulary; tokens in a page, and its bytes.
D, F, H, K, C, V, Z, BLOCK_BYTES = 2048, 8192, 32, 8, 64, 128256, 16, 16 * 16 * 2 * 8 * 64 * 2
RANK = 16  # of an adapter's factors
# Branches of a layer of OLMoE 1B-7B, whose hidden size is D: how many, how many are taken, and how wide they are.
BRANCHES, TAKEN, BRANCH_F = 64, 8, 1024
OF_NETS = (": conv", ": delta_whole", ": delta_columns", ": gate")
OF_LATENT = (": absorb", ": absorb_many", ": unfold", ": unfold_many")
STEPS = {
    "decode 1": Bucket(1, 1, 1, 4096),
    "decode 4": Bucket(4, 4, 4, 4096),
    "decode 16": Bucket(16, 16, 16, 4096),
    "prefill 2048": Bucket(2048, 4, 16, 4096),
}
BATCHES = {"decode 32": Bucket(32, 32, 32, 4096), "decode 64": Bucket(64, 64, 64, 4096)}
HEAD = "| kernel | type | step | registers | spilled | shared | products by | widest load | copies ahead |\n"
HEAD += "|---|---|---|---|---|---|---|---|---|\n"
WALK_HEAD = "| type | step | registers | spilled | shared | programs a multiprocessor | widest load |\n"
WALK_HEAD += "|---|---|---|---|---|---|---|\n"
WALK_STEPS = ("decode 1", "decode 4")
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

    @property
    def is_shown(self):
        """Float16 is as bfloat16; kernels that multiply nothing are small at every size."""
        multiplies = self.kernel.endswith(
            (
                ": few",
                ": many",
                ": described",
                ": described_heads",
                ": alone",
                ": alone_wide",
                ": together",
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
        fit = programs_that_fit(self.registers, self.shared_bytes, warps, MOST_REGISTERS, MOST_SHARED_BYTES)
        cells = (self.dtype, self.step, self.registers, self.spilled_bytes, self.shared_bytes, min(fit, most))
        return "| " + " | ".join(map(str, (*cells, self.widest_load_bits))) + " |\n"


class NoGpu:
    """Stands for the driver: names the GPU to compile for, and launches nothing."""

    def get_current_target(self):
        return GPUTarget("cuda", CAPABILITY, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


# Operands that some families have other numbers of: heads rotated in part or not at all, products that are scaled.
OPTIONS: dict[str, dict[str, float]] = {}
IN_PART = {"norm_qkv_rope_append": {"rotated": 48}, "linear_add": {"scale": 0.22}, "take_norm_linear": {"scale": 0.5}}
IN_PART |= {"norm_rope_append": {"rotated": 48}}
CAPPED = {"attention": {"cap": 50.0}, "norm_gate_up_silu_mul": {"norm": 0}}  # and gate and up without a norm
GROUPED = {"choose_branches": {"sigmoid": 1, "bias": 64, "groups": 8, "taken_groups": 4, "group_best": 2}}
INTERLEAVED = {name: {"interleaved": 1, "rotated": 64} for name in ("norm_qkv_rope_append", "norm_rope_append")}
INTERLEAVED |= {"rope": {"interleaved": 1, "rotated": 32}}
CENTRED = {"centred": 1, "norm_bias": 64, "norm_bias_dtype": kernels.dtype_number(DType.BF16)}
LAYERED = dict.fromkeys(("norm_qkv_rope_append", "norm_gate_up_silu_mul", "take_norm_linear", "norm_add"), CENTRED)
SINKS = {"attention": {"sinks": 64, "sinks_dtype": kernels.dtype_number(DType.BF16)}}
OF_LAYER = {"factor": 64, "factor_dtype": kernels.dtype_number(DType.BF16)}
OWN = {"norm_add": OF_LAYER, "choose_branches": {"factors": 64, "factors_dtype": kernels.dtype_number(DType.BF16)}}
BIASED = "branch_down_add, biases"  # of the row behind
CLIPPED = ("branch_gate_up_clipped", BIASED, "add_branch_bias")
NOT_ROTATED = {"norm_qkv_rope_append": {"rotated": 0}, "norm_rope_append": {"rotated": 0}}


@dataclass(frozen=True)
class Some:
    """Some kernels, weights and steps, with sizes and operands of their own."""

    names: Sequence[str]
    dtypes: Sequence[DType] = (DType.BF16,)
    steps: Sequence[str] = ("decode 1", "decode 4", "prefill 2048")
    sizes: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


XIELU = ("alpha_p", "alpha_n", "beta", "eps")
NETS = ("causal_conv", "net_parts", "gated_delta", "gated_delta_norm", "sigmoid_mul")
BESIDE = "linear beside"
PRODUCTS = ("linear", "linear_add", "norm_qkv_rope_append", "norm_gate_up_silu_mul")
LOW = {"linear": {"N": RANK}, "linear_add": {"K": RANK}}
EACH, SHARED_STEPS = ("linear_each", "linear_add_each"), ("decode 4", "decode 16", "prefill 2048")
KINDS = (DType.BF16, DType.Q8, DType.Q4, DType.F32)
PACKED_KINDS = (DType.Q8, DType.Q4, DType.Q4Z, DType.Q2, DType.MX4)
ALL_KINDS = (DType.BF16, *PACKED_KINDS, DType.F32)
SOME = {
    # Heads as most models of 7B and more have them.
    "wide": Some(("norm_qkv_rope_append", "attention"), KINDS, tuple(STEPS), {"H": 16, "K": 4, "C": 128}),
    # A row is one step of a product of many tokens.
    "small": Some(PRODUCTS, steps=("prefill 2048",), sizes={"D": 64, "F": 96, "H": 4, "K": 1, "C": 16}),
    "one token": Some(PRODUCTS[:2] + PRODUCTS[3:], (DType.Q8, DType.Q4, DType.Q4Z, DType.MX4), ("decode 1",)),
    "batches": Some(PRODUCTS, ALL_KINDS, tuple(BATCHES)),
    "in part": Some(tuple(IN_PART), options=IN_PART),
    "interleaved": Some(tuple(INTERLEAVED), options=INTERLEAVED),
    "growing": Some(("attention",), options={"attention": {"growth": 0.1, "every": 16_384}}),
    "not rotated": Some(tuple(NOT_ROTATED), options=NOT_ROTATED),
    "layer norms": Some((*LAYERED, "layer_norm", "norm_linear_gelu"), options=LAYERED),
    "branches": Some(("branch_gate_up", "branch_down_add", "choose_branches"), ALL_KINDS, tuple(STEPS)),
    "grouped branches": Some(tuple(GROUPED), options=GROUPED),
    "capped": Some(tuple(CAPPED), options=CAPPED),
    # As of Mixtral 8x7B: few of them, which many tokens of a prompt take, with long rows.
    "wide branches": Some(
        ("branch_gate_up", "branch_down_add"),
        ALL_KINDS,
        tuple(STEPS),
        {"BRANCHES": 8, "TAKEN": 2, "D": 4096, "BRANCH_F": 14336},
    ),
    "windows": Some(("attention",), options={"attention": {"window": 128}}),
    "sinks": Some(("attention",), (DType.BF16,), tuple(STEPS), options=SINKS),
    "clipped branches": Some(CLIPPED, ALL_KINDS, tuple(STEPS)),
    "gpt-oss": Some(CLIPPED, steps=tuple(STEPS), sizes={"BRANCHES": 32, "TAKEN": 4, "D": 2880, "BRANCH_F": 2880}),
    "walk clipped": Some(("walk clipped",), steps=(), sizes={"BRANCHES": 32, "TAKEN": 4, "H": 64}, options=SINKS),
    # Adapters of one base in a step; then packed differences, and adapters of other ranks.
    "shares": Some(EACH, (DType.BF16, DType.F16, DType.F32), SHARED_STEPS),
    "one share": Some(tuple(LOW), (DType.BF16, DType.F32), SHARED_STEPS, options=LOW),
    "wide shares": Some(("linear_add_each",), ALL_KINDS, SHARED_STEPS, {"RANK": F}),
    "rank 8": Some(EACH, (DType.BF16,), SHARED_STEPS, {"RANK": 8}),
    "rank 64": Some(EACH, (DType.BF16, DType.F32), SHARED_STEPS, {"RANK": 64, "D": 4096}),
    "walk branches": Some(("walk branches",), steps=()),
    # Layers of Gemma 4 without a window, of E2B and of 31B; what layers have of their own; branches of 26B-A4B.
    "gemma4": Some(("attention", "norm_rope_append"), (DType.BF16,), tuple(STEPS), {"H": 8, "K": 1, "C": 512}),
    "gemma4 wide": Some(("attention",), (DType.BF16,), tuple(STEPS), {"H": 32, "K": 4, "C": 512}),
    "gemma4 own": Some(("mul_part", "mul_one", "norm_add", "branch_gate_up_gelu", "choose_branches"), options=OWN),
    "nets": Some((*NETS, BESIDE), KINDS, tuple(STEPS)),
    "walk nets": Some(("walk nets",), steps=()),
    "latent": Some(LATENT, (DType.BF16, DType.F16, DType.F32), tuple(STEPS)),
    "walk latent": Some(("walk latent",), steps=()),
    "walk behind": Some(("walk behind",), steps=(), options=CAPPED),
}


def rows_of(dtype):
    """A row of each kernel that meets a weight of this type. Addresses are made up: nothing is run."""
    at, small, kind = 64, kernels.dtype_number(DType.BF16), kernels.dtype_number(dtype)
    pages = dict.fromkeys(("positions", "sequence", "block_tables", "kv"), at)
    pages |= {"table_width": 256, "kv_dtype": small, "block_bytes": BLOCK_BYTES, "Z": Z, "layer": 0}
    norm = {"norm": at, "norm_dtype": small}
    qkv = {"wq": at, "wk": at, "wv": at, "wq_dtype": kind, "wk_dtype": kind, "wv_dtype": kind, "inv_freq": at}
    gate_up = {"gate": at, "gate_dtype": kind, "up": at, "up_dtype": kind}
    weight = {"weight": at, "weight_dtype": kind}
    branches = {"weights": at, "branches": at, "dtype": kind, "E": BRANCHES, "taken": TAKEN, "D": D, "F": BRANCH_F}
    clipped = branches | {"gate_bias": at, "gate_bias_dtype": small, "up_bias": at, "up_bias_dtype": small}
    heads = {"q_norm": at, "q_norm_dtype": small, "k_norm": at, "k_norm_dtype": small}
    operands = {
        "embed": {"table": at, "table_dtype": kind, "D": D},
        "linear": {**weight, "N": D, "K": D},
        "linear_add": {**weight, "N": D, "K": F},
        "linear_each": {**weight, "N": RANK, "K": D},
        "linear_add_each": {**weight, "N": D, "K": RANK},
        "norm_qkv_rope_append": {**norm, **qkv, **pages, "D": D, "H": H, "K": K, "C": C},
        "norm_gate_up_silu_mul": {**norm, **gate_up, "D": D, "F": F},
        "take_norm_linear": {**norm, **weight, "D": D, "N": V},
        "branch_gate_up": branches,
        "branch_gate_up_clipped": clipped | {"alpha": 1.702, "limit": 7.0},
        "branch_gate_up_gelu": branches | {"form": 1},
        "branch_down_add": branches | {"x": 1 << 40},
        "add_branch_bias": {"weights": at, "bias": at, "bias_dtype": small, "E": BRANCHES, "D": D},
    }
    if dtype is DType.BF16:
        operands |= {
            "norm_rope_append": {**pages, "H": H, "K": K, "C": C, "q_width": H * C, "k_width": K * C, **heads},
            "norm_add": {**norm, "D": D},
            "layer_norm": {
                "weight": at,
                "weight_dtype": small,
                "bias": at,
                "bias_dtype": small,
                "per_token": 1,
                "C": D,
            },
            "norm_linear_gelu": {**norm, **CENTRED, **weight, "D": D, "N": F, "form": 1},
            "rms_norm": {"weight": at, "weight_dtype": small, "per_token": 1, "C": D},
            "rope": {"H": H, "C": C},
            "kv_append": {**pages, "K": K, "C": C},
            "attention": {**pages, "H": H, "K": K, "C": C},
            "add": {"N": D},
            "mul": {"N": D},
            "mul_part": {"N": 256, "b_step": 35 * 256},
            "mul_one": {**weight, "N": D},
            "silu": {"N": F},
            "gelu": {"N": F, "form": 1},
            "softcap": {"N": V},
            "xielu": {"N": F} | {key: v for name in XIELU for key, v in ((name, at), (f"{name}_dtype", small))},
            "norm_gate_up_gelu_mul": {**norm, **gate_up, "D": D, "F": F, "form": 1},
            "take_rows": {"D": D},
            "choose_branches": {"y": at, "E": BRANCHES, "top_k": TAKEN, "normalise": 1, "scale": 1.0},
            "sample": {"V": V},
            **delta_operands(at),
        }
    operands |= latent_operands(at, dtype)
    zeros = {name: dict.fromkeys(kernels.OPCODES[name].words, 0) for name in operands}
    rows = {
        name: kernels.encode(name, zeros[name] | whole(name, given | OPTIONS.get(name, {}))).reshape(1, -1)
        for name, given in operands.items()
    }
    biases = rows["add_branch_bias"] if dtype is DType.BF16 else rows.pop("add_branch_bias")
    if dtype is DType.Q2:  # of deltas alone: with biases and one token it spills 24 bytes
        return rows
    return rows | {BIASED: np.concatenate([rows["branch_down_add"], biases]), BESIDE: beside(rows["linear"])}


def program_of(dtype):
    """Rows of a program of one layer, which have every kernel that a program of many has."""
    plain, rows = rows_of(DType.BF16), rows_of(dtype)
    rows = plain | rows
    out = rows["linear_add"].copy()
    out[0, kernels.OPCODES["linear_add"].words["K"]] = D
    layer = (rows["norm_qkv_rope_append"], rows["attention"], out, rows["norm_gate_up_silu_mul"], rows["linear_add"])
    return np.concatenate([rows["embed"], *layer, rows["take_norm_linear"], rows["sample"]])


def program_behind():
    """Rows of a program of one layer of another family: norms behind the blocks, a gelu, caps."""
    rows = rows_of(DType.BF16)
    out = rows["linear"].copy()
    out[0, kernels.OPCODES["linear"].words["K"]] = F
    layer = ("linear", "norm_rope_append", "attention", "linear", "norm_add", "norm_gate_up_gelu_mul")
    rest = [rows[name] for name in ("norm_add", "take_norm_linear", "softcap", "sample")]
    return np.concatenate([rows["embed"], *(rows[name] for name in layer), out, *rest])


def program_of_branches(gate_up="branch_gate_up", down="branch_down_add"):
    """Rows of a program of one layer with branches, with biases where those of `down` are."""
    rows = rows_of(DType.BF16)
    chooser = rows["linear"].copy()
    chooser[0, kernels.OPCODES["linear"].words["N"]] = BRANCHES
    layer = ("norm_qkv_rope_append", "attention", "linear_add", "rms_norm")
    branches = [rows[name] for name in ("choose_branches", gate_up, down, "take_norm_linear")]
    return np.concatenate([rows["embed"], *(rows[name] for name in layer), chooser, *branches, rows["sample"]])


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
        command = [get_ptxas(CAPABILITY).path, "-v", f"--gpu-name=sm_{CAPABILITY}a", file.name, "-o", "/dev/null"]
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
    )


def compile_all(names, dtypes, steps):
    """Launch rows with a driver that compiles and does not run."""
    found, run, buckets = {}, JITFunction.run, STEPS | BATCHES
    triton.runtime.driver.set_active(NoGpu())

    def compile_only(self, *args, grid, warmup, **kwargs):
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.setdefault((f"{name}: {self.fn.__name__.strip('_')}", dtype.value, step), compiled)
        return compiled if warmup else None  # as if interpreted: there is nothing to launch again

    JITFunction.run = compile_only
    for dtype in dtypes:
        for name, row in rows_of(dtype).items():
            for step in steps if not names or name in names else ():
                scratch = torch.zeros(gpu.scratch_bytes(row, buckets[step]), dtype=torch.uint8)
                gpu.launch(row, torch.from_numpy(row.copy()), 0, buckets[step], scratch)
    if not names or "feed" in names:
        name, dtype, step = "feed", DType.F32, "decode 1"
        words, state = torch.zeros(len(kernels.FEED), dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
        feed_launch(
            words, state, torch.zeros(kernels.ROW_WORDS, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
        )()
    for dtype in dtypes if "walk" in names else ():
        for step in (step for step in steps if step in WALK_STEPS):
            name = "walk"
            walk_all(program_of(dtype), STEPS[step])
    if "walk behind" in names:
        name, dtype, step = "walk behind", DType.BF16, "decode 1"
        walk_all(program_behind(), STEPS[step])
    for step in WALK_STEPS if "walk branches" in names else ():
        name, dtype = "walk branches", DType.BF16
        walk_all(program_of_branches(), STEPS[step])
    for step in WALK_STEPS if "walk clipped" in names else ():
        name, dtype = "walk clipped", DType.BF16
        walk_all(program_of_branches("branch_gate_up_clipped", BIASED), STEPS[step])
    for step in WALK_STEPS if "walk nets" in names else ():
        name, dtype = "walk nets", DType.BF16
        walk_all(program_of_nets(rows_of(dtype)), STEPS[step])
    for step in WALK_STEPS if "walk latent" in names else ():
        name, dtype = "walk latent", DType.BF16
        walk_all(program_of_latent(rows_of(dtype)), STEPS[step])
    if "meet" in names:  # the walk of one row, which takes less time
        name, dtype, step = "meet", DType.BF16, "decode 1"
        row = rows_of(dtype)["linear"]
        if walk_all(row, STEPS[step]) is not walk_all(np.tile(row, (16, 1)), STEPS[step]):
            sys.exit("how many phases there are is compiled in")
    return [measure(*key, compiled) for key, compiled in found.items()]


def walk_all(rows, bucket):
    """What walks these rows, compiled."""
    scratch = torch.zeros(max(gpu.scratch_bytes(rows, bucket), 16), dtype=torch.uint8)
    plan = plan_of(rows, torch.from_numpy(rows.copy()), bucket, scratch, H100.for_walk())
    feed, state = torch.zeros(len(kernels.FEED), dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
    stops = torch.zeros(2, dtype=torch.int64)
    return plan.walk(torch.from_numpy(plan.words), feed, state, stops, 1).compile()


def main():
    """Compile what the arguments name, or everything and write the table."""
    names, types = sys.argv[1:], (DType.BF16, DType.F16, *PACKED_KINDS, DType.F32)
    name = names[0] if names else ""
    if name == "all":
        found = compile_all((), [DType[names[1]]], tuple(STEPS))
    elif names == ["walk"]:
        found = compile_all(names, types, WALK_STEPS)
        put(DOCS, "walk", WALK_HEAD, [one.walk_row for one in found])
    elif name == "walk":
        found = compile_all(names[:1], [DType[names[1]]], WALK_STEPS)
    elif name in SOME:
        some = SOME[name]
        globals().update(some.sizes, OPTIONS=some.options)
        found = compile_all(some.names, some.dtypes, some.steps)
    elif names:
        found = compile_all(names, types[:1], ("decode 1", "prefill 2048"))
    else:
        found = compile_all((), types, tuple(STEPS))
        put(DOCS, "compiled", HEAD, [one.row for one in found if one.is_shown])
    for one in found:
        print(json.dumps(asdict(one)))


if __name__ == "__main__":
    main()
