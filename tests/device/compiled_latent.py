"""Operands of the kernels of latent attention, as compiled.py compiles them: of DeepSeek V2-Lite.

Addresses are made up: nothing is run. Knows nothing about what kernels compute.
"""

from __future__ import annotations

import numpy as np

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels

FLOATS = (DType.BF16, DType.F16, DType.F32)
NAMES = ("latent_append", "latent_queries", "latent_attention", "latent_values")
# Query heads, a head's rows for keys and for values, latent numbers, rotated ones; tokens in a page, and layers.
HEADS, KEYS, VALUES, LATENT, ROTATED, Z, LAYERS = 16, 128, 128, 512, 64, 16, 27


def latent_operands(at, dtype, heads=HEADS):
    """Of each kernel with weights and pages of a type, which is no packed one, all addresses as this one."""
    if dtype not in FLOATS:
        return {}
    kind, C = kernels.dtype_number(dtype), LATENT + ROTATED
    pages = dict.fromkeys(("positions", "sequence", "block_tables", "kv"), at)
    pages |= {"table_width": 256, "kv_dtype": kind, "Z": Z, "block_bytes": LAYERS * Z * C * dtype.size_bytes}
    weight = {"weight": at, "weight_dtype": kind, "H": heads, "N": KEYS, "V": VALUES, "latent": LATENT}
    return {
        "latent_append": {**pages, "norm": at, "norm_dtype": kind, "K": 1, "C": C, "latent": LATENT},
        "latent_queries": {**weight, "rotated": ROTATED, "interleaved": 1},
        "latent_attention": {**pages, "H": heads, "K": 1, "C": C, "latent": LATENT, "sinks_dtype": kind},
        "latent_values": weight,
    }


def program_of_latent(rows):
    """Rows of a program of one layer without branches, whose queries have no rank."""
    words, out = kernels.OPCODES["linear_add"].words, rows["linear_add"].copy()
    out[0, words["K"]] = HEADS * VALUES
    ends = [rows["take_norm_linear"], rows["sample"]]
    layer = [rows["rms_norm"], rows["linear"], rows["linear"], *(rows[name] for name in NAMES), out]
    return np.concatenate([rows["embed"], *layer, rows["norm_gate_up_silu_mul"], rows["linear_add"], *ends])
