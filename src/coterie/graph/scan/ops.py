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
        "recurrence per head and sequence, token by token: step = clip(softplus(dt + dt_bias), least, most); "
        "S = exp(-exp(a_log) * step) * S + B (step * x), y = C S + skip * x; x is the heads' x, then for each group of "
        "heads K numbers B, then for each K numbers C; S is 0 before position 0 and is kept as state",
        (
            *("x:TN", "dt:TH", "a_log:H", "dt_bias:H", "skip:H"),
            *("positions:T", "sequence:T", "block_tables:B*", "delta:state"),
        ),
        ("y:THC",),
        ("layer", GROUPS, f"{MIN_STEP}?", f"{MAX_STEP}?"),
    ),
    GROUP_NORM: OpSpec(
        "y = x / rms(x) * weight, within each group of adjacent channels",
        ("x:T*", "weight:N"),
        ("y:T*",),
        ("eps", GROUPS),
    ),
    MUL_ROW: OpSpec("y = x * row, a constant vector", ("x:TN", "row:N"), ("y:TN",)),
}
