"""Rows of kernels to compile, and of programs of one layer: sizes, operands, and which of them go together (SOME).

Addresses are made up: nothing is run. Knows nothing about what the compiler makes of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from tests.device.compiled_delta import beside, delta_operands, program_of_nets
from tests.device.compiled_latent import NAMES as LATENT
from tests.device.compiled_latent import latent_operands, program_of_latent
from tests.device.compiled_scan import SPACES, scan_operands
from tests.device.native import whole

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels
from coterie.kernels.triton.launch import Bucket

# A Llama of 1B: hidden, intermediate, heads, kv heads, channels, vocabulary; tokens in a page, and its bytes.
D, F, H, K, C, V, Z, BLOCK_BYTES = 2048, 8192, 32, 8, 64, 128256, 16, 16 * 16 * 2 * 8 * 64 * 2
RANK = 16  # of an adapter's factors
# Branches of a layer of OLMoE 1B-7B, whose hidden size is D: how many, how many are taken, and how wide they are.
BRANCHES, TAKEN, BRANCH_F = 64, 8, 1024
STEPS = {
    "decode 1": Bucket(1, 1, 1, 4096),
    "decode 4": Bucket(4, 4, 4, 4096),
    "decode 16": Bucket(16, 16, 16, 4096),
    "prefill 2048": Bucket(2048, 4, 16, 4096),
}
BATCHES = {"decode 32": Bucket(32, 32, 32, 4096), "decode 64": Bucket(64, 64, 64, 4096)}
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
CONV_BIAS = {"causal_conv": {"bias": 64, "bias_dtype": kernels.dtype_number(DType.BF16)}}
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
PACKED_KINDS = (DType.Q8, DType.Q6, DType.Q4, DType.Q4Z, DType.Q2, DType.MX4)
ONE_WAY = (DType.Q8, DType.Q6, DType.Q4, DType.Q4Z, DType.MX4)  # of which few tokens have kernels of their own
SLICED = (DType.BF16, DType.F16, DType.Q8, DType.Q4, DType.Q4Z, DType.MX4)  # of up to 16 tokens
ALL_KINDS = (DType.BF16, *PACKED_KINDS, DType.F32)
SOME = {
    # Heads as most models of 7B and more have them.
    "wide": Some(("norm_qkv_rope_append", "attention"), KINDS, tuple(STEPS), {"H": 16, "K": 4, "C": 128}),
    # A row is one step of a product of many tokens.
    "small": Some(PRODUCTS, steps=("prefill 2048",), sizes={"D": 64, "F": 96, "H": 4, "K": 1, "C": 16}),
    "one token": Some(PRODUCTS[:2] + PRODUCTS[3:], ONE_WAY, ("decode 1",)),
    "few tokens": Some(PRODUCTS[:2] + PRODUCTS[3:], ONE_WAY, ("decode 4",)),
    "slices": Some(PRODUCTS, SLICED, ("decode 16",)),
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
    "distances": Some(("relative_attention",)),
    "slopes": Some(("relative_attention",), options={"relative_attention": {"reach": 0}}),
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
    "spaces": Some((*SPACES, "causal_conv"), steps=tuple(STEPS), options=CONV_BIAS),
    "walk nets": Some(("walk nets",), steps=()),
    "latent": Some(LATENT, (DType.BF16, DType.F16, DType.F32), tuple(STEPS)),
    "walk latent": Some(("walk latent",), steps=()),
    "walk behind": Some(("walk behind",), steps=(), options=CAPPED),
}


def take(some):
    """From now on rows have its sizes and operands: a process compiles one of SOME."""
    globals().update(some.sizes, OPTIONS=some.options)


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
    by_distance = {"bias": at, "bias_dtype": small, "buckets": at, "reach": 128, "window": -1}
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
            "relative_attention": {**pages, "H": H, "K": K, "C": C, **by_distance},
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
            **scan_operands(at),
        }
    operands |= latent_operands(at, dtype)
    zeros = {name: dict.fromkeys(kernels.OPCODES[name].words, 0) for name in operands}
    rows = {
        name: kernels.encode(name, zeros[name] | whole(name, given | OPTIONS.get(name, {}))).reshape(1, -1)
        for name, given in operands.items()
    }
    biases = rows["add_branch_bias"] if dtype is DType.BF16 else rows.pop("add_branch_bias")
    rows[BIASED] = np.concatenate([rows["branch_down_add"], biases])
    return rows if dtype is DType.Q2 else rows | {BESIDE: beside(rows["linear"])}  # two bits are for deltas


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


# Programs that are walked as a whole, besides that of one layer for each type of weights.
PROGRAMS = {
    "walk behind": program_behind,
    "walk branches": program_of_branches,
    "walk clipped": lambda: program_of_branches("branch_gate_up_clipped", BIASED),
    "walk nets": lambda: program_of_nets(rows_of(DType.BF16)),
    "walk latent": lambda: program_of_latent(rows_of(DType.BF16)),
}
