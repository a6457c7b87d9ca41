"""Bamba: Llama with a state space (Mamba-2) instead of attention in most layers; half of each head is rotated.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, Names
from coterie.models.state_space import ScanKeys, Where

_SCAN = ScanKeys(where=Where.OUTSIDE)
BAMBA_NAMES = Names(
    feed_forward_norm="pre_ff_layernorm",
    gate="feed_forward.gate_proj",
    up="feed_forward.up_proj",
    down="feed_forward.down_proj",
    norm="model.final_layernorm",
    joined=_SCAN.names.parts,
)

BAMBA = Family(
    model_type="bamba",
    causal_class="BambaForCausalLM",
    max_positions=262_144,
    num_kv_heads=8,
    norm_eps=1e-5,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    partial_rope=True,
    rotated_fraction=0.5,
    state_spaces=_SCAN,
    names=BAMBA_NAMES,
)
