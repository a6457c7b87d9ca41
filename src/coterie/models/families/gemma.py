"""Gemma, 1 to 3 (text): norms times 1 + weight, gated gelu, scaled embeddings.

    1   norms before the blocks
    2   norms before and after them; capped scores and logits; a window in every other layer
    3   per-head q and k norms; a window, with a rope of its own, in all layers except every sixth

VaultGemma is Gemma 2 without the norms after the blocks.
Knows nothing about how a decoder is built (blocks.py).
"""

from dataclasses import replace

from coterie.models.family import Bias, Family, FeedForward, Names, Window

_GELUS = {
    "gelu_pytorch_tanh": FeedForward.GATED_GELU_TANH,
    "gelu": FeedForward.GATED_GELU,
    "silu": FeedForward.GATED_SILU,
}
GEMMA = Family(
    model_type="gemma",
    causal_class="GemmaForCausalLM",
    max_positions=8192,
    num_kv_heads=16,
    head_dim=256,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    norm_offset=1.0,
    feed_forward=FeedForward.GATED_GELU_TANH,
    # Released configs say gelu but mean the tanh form.
    feed_forwards={**_GELUS, "gelu": FeedForward.GATED_GELU_TANH},
    activation_key="hidden_act",
    scaled_embeddings=True,
    tied_embeddings=True,
    supported_keys=("hidden_act",),
)
GEMMA2 = replace(
    GEMMA,
    model_type="gemma2",
    causal_class="Gemma2ForCausalLM",
    num_kv_heads=4,
    feed_forwards=_GELUS,
    activation_key="hidden_activation",
    window=Window.BY_PATTERN,
    window_pattern=2,
    attention_scalar=256,
    attention_cap=50.0,
    logits_cap=30.0,
    names=Names(
        attention_out_norm="post_attention_layernorm",
        feed_forward_norm="pre_feedforward_layernorm",
        feed_forward_out_norm="post_feedforward_layernorm",
    ),
    supported_keys=(
        *("hidden_act", "hidden_activation", "query_pre_attn_scalar"),
        *("attn_logit_softcapping", "final_logit_softcapping"),
    ),
)
GEMMA3 = replace(
    GEMMA2,
    model_type="gemma3_text",
    causal_class="Gemma3ForCausalLM",
    max_positions=131_072,
    qk_norm=True,
    window_pattern=6,
    pattern_key="sliding_window_pattern",
    rope_by_window=True,
    rope_theta=1_000_000.0,
    local_rope_theta=10_000.0,
    local_rope_key="rope_local_base_freq",
    attention_cap=0.0,
    logits_cap=0.0,
    bidirectional_key="use_bidirectional_attention",  # EmbeddingGemma
)
VAULT_GEMMA = replace(
    GEMMA2,
    model_type="vaultgemma",
    causal_class="VaultGemmaForCausalLM",
    names=Names(feed_forward_norm="pre_feedforward_layernorm"),
)
