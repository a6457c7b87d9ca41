"""Operands of the kernels of a selective state space, as compiled.py compiles them: of Granite 4.0 H Tiny.

Its norm is in one group; that in several is of Nemotron-H 8B. Addresses are made up: nothing is run.
Knows nothing about what kernels compute.
"""

from __future__ import annotations

from coterie.core.dtypes import DType
from coterie.kernels import cpu as kernels

SPACES = ("selective_scan", "selective_scan_gate", "group_norm", "mul_row")
HEADS, STATE, VALUES = 48, 128, 64


def scan_operands(at):
    """Of each kernel, with all addresses as this one."""
    small, unit = kernels.dtype_number(DType.BF16), 4 * STATE * VALUES
    own = dict.fromkeys(("positions", "sequence", "state_tables", "kv", "a_log", "dt_bias", "skip", "dt"), at)
    own |= dict.fromkeys(("a_log_dtype", "dt_bias_dtype", "skip_dtype"), small)
    own |= {"table_width": 256, "block_bytes": 8 * unit, "unit_bytes": unit, "first_unit": 0}
    own |= {"groups": 1, "H": HEADS, "K": STATE, "C": VALUES}
    return {
        "selective_scan": own,
        "selective_scan_gate": {**own, "z": at},
        "group_norm": {"weight": at, "weight_dtype": small, "groups": 8, "C": 1024},
        "mul_row": {"row": at, "N": HEADS * VALUES + 2 * STATE},
    }
