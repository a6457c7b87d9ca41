"""Operands of the kernels of a gated delta net and of gated attention, as compiled.py compiles them: of Qwen3.5-4B.

Addresses are made up: nothing is run. Knows nothing about what kernels compute.
"""

from __future__ import annotations

import numpy as np

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels

# Value heads, key heads, channels of a key and of a value, taps; query heads and channels of those layers that attend.
HEADS, KEY_HEADS, KEYS, VALUES, TAPS, QUERIES, C = 32, 16, 128, 128, 4, 16, 256
CHANNELS = 2 * KEY_HEADS * KEYS + HEADS * VALUES


def delta_operands(at):
    """Of each kernel, with all addresses as this one."""
    small = kernels.dtype_number(DType.BF16)
    unit = 4 * KEYS * VALUES
    kept = dict.fromkeys(("positions", "sequence", "state_tables", "kv"), at)
    kept |= {"table_width": 256, "block_bytes": 8 * unit, "unit_bytes": unit, "first_unit": 0}
    own = {"a_log": at, "a_log_dtype": kernels.dtype_number(DType.F32), "dt_bias": at, "dt_bias_dtype": small}
    own |= {"H": HEADS, "key_heads": KEY_HEADS, "K": KEYS, "C": VALUES, **kept}
    return {
        "causal_conv": {"weight": at, "weight_dtype": small, "N": CHANNELS, "taps": TAPS, **kept},
        "net_parts": {"key_heads": KEY_HEADS, "H": HEADS, "K": KEYS, "C": VALUES},
        "gated_delta": own,
        "gated_delta_norm": {**own, "norm": at, "norm_dtype": small, "z": at},
        "sigmoid_mul": {"N": QUERIES * C, "C": C, "x_first": C, "x_step": 2 * C},
    }


def beside(linear, counts=(CHANNELS, HEADS * VALUES, HEADS, HEADS)):
    """Rows of products of one x: q, k and v, z and the two gates of a net, each with a y of its own."""
    rows, words, at = np.tile(linear, (len(counts), 1)), kernels.OPCODES["linear"].words, 2**40
    for row, count in zip(rows, counts, strict=True):
        row[words["N"]], row[words["y"]] = count, at
        at += 2**20
    return rows


def program_of_nets(rows):
    """Rows of a program of a layer that is a net and of one that attends behind a gate."""
    out = rows["linear_add"].copy()
    out[0, kernels.OPCODES["linear_add"].words["K"]] = HEADS * VALUES
    net = [rows["rms_norm"], beside(rows["linear"]), rows["causal_conv"], rows["gated_delta_norm"], out]
    three = beside(rows["linear"], (2 * QUERIES * C, C, C))
    attends = [rows["rms_norm"], three, rows["norm_rope_append"], rows["attention"], rows["sigmoid_mul"], out]
    block = [rows["norm_gate_up_silu_mul"], rows["linear_add"]]
    ends = [rows["take_norm_linear"], rows["sample"]]
    return np.concatenate([rows["embed"], *net, *block, *attends, *block, *ends])
