"""Falcon-H1: attention and a state space (Mamba-2) in parallel in each layer, and factors on nearly all products.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.families.bamba import BAMBA_NAMES
from coterie.models.family import Family
from coterie.models.state_space import ScanKeys, Where

_SCAN = ScanKeys(
    where=Where.ALL,
    parallel_to_attention=True,
    width=("mamba_d_ssm", 1024),
    norm_key="mamba_rms_norm",
    norm_first_key="mamba_norm_before_gate",
    has_factors=True,
)

FALCON_H1 = Family(
    model_type="falcon_h1",
    causal_class="FalconH1ForCausalLM",
    max_positions=8192,
    num_kv_heads=8,
    norm_eps=1e-5,
    state_spaces=_SCAN,
    has_factors=True,
    supported_keys=("embedding_multiplier", "lm_head_multiplier"),
    # Factors on inputs are folded into the products, which would be wrong for a bias.
    required=dict.fromkeys(("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"), False),
    names=BAMBA_NAMES,
)
