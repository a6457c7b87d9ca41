"""Cohere's Command and Aya: parallel blocks after one layer norm without bias, scaled logits.

Rope rotates pairs of adjacent channels. In Command R7B and later, three of four layers have a window, and the fourth
has no rope.
Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.family import Bias, Family, Names, Norm, Window

COHERE = Family(
    model_type="cohere",
    causal_class="CohereForCausalLM",
    max_positions=8192,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    norm=Norm.LAYER,
    norm_bias=False,
    norm_eps=1e-5,
    parallel_norms=1,
    tied_embeddings=True,
    rope_theta=500_000.0,
    rope_interleaved=True,
    logits_factor=0.0625,
    supported_keys=("logit_scale",),
    keys={"rms_norm_eps": "layer_norm_eps"},
    names=Names(shared_norm="input_layernorm"),
)
COHERE2 = replace(
    COHERE,
    model_type="cohere2",
    causal_class="Cohere2ForCausalLM",
    rope_theta=10_000.0,
    window=Window.BY_PATTERN,
    window_pattern=4,
    pattern_key="sliding_window_pattern",
    full_layers_rotate=False,
)
