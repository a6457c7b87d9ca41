"""Mistral: Llama with a sliding window in every layer; Ministral has one in some; Ministral 3 scales queries.

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.family import Family, Window

MISTRAL = Family(
    model_type="mistral",
    causal_class="MistralForCausalLM",
    max_positions=131_072,
    num_kv_heads=8,
    window=Window.EVERY_LAYER,
)
MINISTRAL = replace(MISTRAL, model_type="ministral", causal_class="MinistralForCausalLM", window=Window.BY_TYPES)
MINISTRAL3 = replace(
    MISTRAL,
    model_type="ministral3",
    causal_class="Ministral3ForCausalLM",
    max_positions=262_144,
    head_dim=128,
    norm_eps=1e-5,
    window_tokens=None,
    default_rope={
        **{"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0},
        **{"original_max_position_embeddings": 16_384, "mscale": 1.0, "mscale_all_dim": 1.0},
        "llama_4_scaling_beta": 0.1,
    },
    queries_grow=True,
)
