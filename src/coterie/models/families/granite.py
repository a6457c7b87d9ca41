"""Granite (dense): Llama with four numbers that scale embeddings, scores, what a block adds, and logits.

    granite           3.x
    granitemoehybrid  4, where all layers attend and none has a mixture: gate and up are joined, rope may be off

Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.family import Bias, Family, Names

GRANITE = Family(
    model_type="granite",
    causal_class="GraniteForCausalLM",
    max_positions=2048,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    runs=("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
)
GRANITE4 = replace(
    GRANITE,
    model_type="granitemoehybrid",
    causal_class="GraniteMoeHybridForCausalLM",
    mlp_bias=Bias.NEVER,
    inner_key="shared_intermediate_size",
    rope_key="position_embedding_type",
    given=("layer_types", "num_local_experts", "shared_intermediate_size"),
    keys={"layer_types": "layers_block_type"},
    names=Names(
        gate="shared_mlp.gate_proj",
        up="shared_mlp.up_proj",
        down="shared_mlp.output_linear",
        joined={"shared_mlp.input_linear": ("shared_mlp.gate_proj", "shared_mlp.up_proj")},
    ),
)
