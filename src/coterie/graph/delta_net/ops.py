"""The ops of gated delta nets (linear attention): a convolution and a recurrence, both with a state per sequence.

Selective state spaces (scan/ops.py) use the same convolution, and store their states in the same way.

    state of a sequence   units of equal size: for each layer, a matrix per value head, then the last inputs of the
                          convolution, cut into units of as many channels as fit (`conv_channels`); in layers with a
                          convolution only, its last inputs are the unit

Source: Yang, Kautz, Hatamizadeh 2024, Gated Delta Networks (arXiv 2412.06464), equation 10.
Knows nothing about which families have such layers, or where a device keeps the units.
"""

from __future__ import annotations

from collections.abc import Sequence

from coterie.graph.opspec import OpSpec

CONV, DELTA, PARTS = "causal_conv", "gated_delta", "net_parts"
CONV_STATE, DELTA_STATE = "conv_state", "delta_state"  # names of the state values in a graph
STATES = (CONV_STATE, DELTA_STATE)
KEY_HEADS = "key_heads"  # number of query and key heads, each shared by neighbouring value heads
PLAIN = "plain"  # 1: no silu after the sum
UNIT_TYPE_BYTES = 4  # states are float32

DELTA_OPS: dict[str, OpSpec] = {
    CONV: OpSpec(
        "depthwise causal convolution: y = silu(bias + the sum over taps of weight * x), over a token and its "
        "predecessors in its sequence (zeros before position 0); the last inputs are kept as state; plain 1: no silu",
        ("x:TN", "weight:N1*", "bias?:N", "positions:T", "sequence:T", "block_tables:B*", "conv:state"),
        ("y:TN",),
        ("layer", f"{PLAIN}?"),
    ),
    PARTS: OpSpec(
        "split projections that are grouped by key head: qkvz has a key head's q and k, then v and z of its value "
        "heads; ba has b and a of these; x is all q, then all k, then all v",
        ("qkvz:TN", "ba:TN"),
        ("x:TN", "z:THC", "a:TH", "b:TH"),
        (KEY_HEADS,),
    ),
    DELTA: OpSpec(
        "gated delta rule, per head and sequence, token by token: S = exp(-exp(a_log) * softplus(a + dt_bias)) * S; "
        "S = S + k (sigmoid(b) * (v - k S)), y = q S / sqrt(channels of k); x is q, k and v; q and k are "
        "L2-normalised; S is 0 before position 0 and is kept as state",
        (
            *("x:TN", "a:TH", "b:TH", "a_log:H", "dt_bias:H"),
            *("positions:T", "sequence:T", "block_tables:B*", "delta:state"),
        ),
        ("y:THC",),
        ("layer", KEY_HEADS),
    ),
}


def state_units(conv: Sequence[int], delta: Sequence[int] | None) -> tuple[int, int]:
    """Units of a sequence's state and bytes per unit, from the shapes of both states; `delta` None: no recurrence."""
    layers, past, channels = conv
    if delta is None:
        return layers, past * channels * UNIT_TYPE_BYTES
    _, heads, key_dim, value_dim = delta
    units = units_of_layer(heads, key_dim, value_dim, past + 1, channels)
    return layers * units, key_dim * value_dim * UNIT_TYPE_BYTES


def conv_channels(key_dim: int, value_dim: int, taps: int) -> int:
    """How many channels' last inputs of the convolution fit in a unit, which has the size of a head's matrix."""
    return key_dim * value_dim // (taps - 1)


def units_of_layer(value_heads: int, key_dim: int, value_dim: int, taps: int, channels: int) -> int:
    """Units of a sequence's state in one layer."""
    return value_heads + -(-channels // conv_channels(key_dim, value_dim, taps))
