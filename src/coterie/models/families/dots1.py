"""dots.llm1: Qwen3's attention; after some plain layers, branches ranked by a biased sigmoid as in GLM-4.5.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.branches import BranchKeys, Plain, SharedKeys
from coterie.models.choice import BIASED_SIGMOID, GROUPED_RUNS
from coterie.models.family import Bias, Family, Window

DOTS1 = Family(
    model_type="dots1",
    causal_class="Dots1ForCausalLM",
    max_positions=2048,
    num_kv_heads=32,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    qk_norm=True,
    window=Window.FROM_LAYER,
    window_from=62,
    supported_keys=("n_routed_experts", "n_shared_experts", *GROUPED_RUNS),
    keys={"num_experts": "n_routed_experts"},
    branches=BranchKeys(
        None,
        None,
        width_key="moe_intermediate_size",
        width=1408,
        choice=BIASED_SIGMOID,
        plain=Plain.FIRST,
        first=0,
        shared=SharedKeys(count_key="n_shared_experts"),
    ),
)
