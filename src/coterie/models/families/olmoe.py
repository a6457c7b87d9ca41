"""OLMoE: Llama with branches, and q and k norms over all heads.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.branches import BranchKeys
from coterie.models.family import Bias, Family

OLMOE = Family(
    model_type="olmoe",
    causal_class="OlmoeForCausalLM",
    max_positions=4096,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    qk_norm=True,
    qk_norm_all_heads=True,
    norm_eps=1e-5,
    keys={"num_experts": "num_local_experts"},
    branches=BranchKeys(64, 8),
)
