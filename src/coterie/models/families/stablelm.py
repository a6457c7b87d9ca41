"""StableLM: Llama with layer norms instead of RMS norms, partial rope, and biases on q, k and v by config.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import Bias, Family, Names, Norm

STABLELM = Family(
    model_type="stablelm",
    causal_class="StableLmForCausalLM",
    max_positions=4096,
    num_kv_heads=32,
    qkv_bias=Bias.BY_CONFIG,
    norm=Norm.LAYER,
    norm_eps=1e-5,
    partial_rope=True,
    rotated_fraction=0.25,
    parallel_key="use_parallel_residual",
    names=Names(shared_norm="input_layernorm"),
    keys={"rms_norm_eps": "layer_norm_eps", "attention_bias": "use_qkv_bias"},
)
