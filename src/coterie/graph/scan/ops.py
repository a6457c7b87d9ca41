"""The ops of selective state spaces (Mamba-2): a recurrence after a convolution, and a norm within groups.

A head's matrix [K, C] and the last inputs of the convolution are stored like those of a gated delta net
(delta_net/ops.py).
Source: Dao, Gu 2024, Transformers are SSMs (arXiv 2405.21060), section 7.
Knows nothing about which families have such layers, or where a device keeps states.
"""

from __future__ import annotations

from coterie.graph.opspec import OpSpec

SCAN, GROUP_NORM, MUL_ROW = "selective_scan", "group_norm", "mul_row"
GROUPS = "head_groups"
MIN_STEP, MAX_STEP = "least", "most"  # optional bounds of a step size

SCAN_OPS: dict[str, OpSpec] = {
    SCAN: OpSpec(
        "of each head and sequence, token by token, with step = softplus(dt + dt_bias), from least to most: "
        "S = exp(-exp(a_log) * step) * S + write (step * x), y = read S + skip * x; x has the heads' x, then of each "
        "group of heads K numbers that write, then K that read; S is 0 before position 0 and is kept",
        (
            *("x:TN", "dt:TH", "a_log:H", "dt_bias:H", "skip:H"),
            *("positions:T", "sequence:T", "block_tables:B*", "delta:state"),
        ),
        ("y:THC",),
        ("layer", GROUPS, f"{MIN_STEP}?", f"{MAX_STEP}?"),
    ),
    GROUP_NORM: OpSpec(
        "y = x / rms(x) * weight, over each of so many groups of neighbouring channels",
        ("x:T*", "weight:N"),
        ("y:T*",),
        ("eps", GROUPS),
    ),
    MUL_ROW: OpSpec("y = x * row, a constant", ("x:TN", "row:N"), ("y:TN",)),
}
