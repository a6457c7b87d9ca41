"""Features that would change results and that Coterie does not support: each is refused by name, never ignored.

Knows nothing about the features that Coterie does run.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from coterie.core.errors import UnsupportedError
from coterie.models.fields import Fields

ACTIVATIONS = ("silu", "swish")  # two names of x * sigmoid(x)


@dataclass(frozen=True, slots=True)
class Refused:
    """A config key, the feature that it turns on, and the values that leave it off (besides false and empty ones)."""

    key: str
    feature: str
    off: tuple[Any, ...] = ()


REFUSED: tuple[Refused, ...] = (
    Refused("num_experts", "mixture of experts inside a model"),
    Refused("num_local_experts", "mixture of experts inside a model"),
    Refused("n_routed_experts", "mixture of experts inside a model"),
    Refused("moe_intermediate_size", "mixture of experts inside a model"),
    Refused("shared_expert_intermediate_size", "a branch that all tokens take"),
    Refused("n_shared_experts", "branches that all tokens take"),
    Refused("num_shared_experts", "branches that all tokens take"),
    Refused("n_group", "branches chosen by groups", (1,)),
    Refused("scoring_func", "branches chosen by scores other than a softmax", ("softmax",)),
    Refused("score_func", "branches chosen by scores other than a softmax", ("softmax",)),
    Refused("score_function", "branches chosen by scores other than a softmax", ("softmax",)),
    Refused("routed_scaling_factor", "what branches give, times a factor", (1, 1.0)),
    Refused("topk_method", "branches chosen with a bias or by groups", ("greedy",)),
    Refused("swiglu_limit", "clipped gates"),
    Refused("is_encoder_decoder", "an encoder and a decoder"),
    Refused("add_cross_attention", "cross attention"),
    Refused("cross_attention_layers", "cross attention"),
    Refused("vision_config", "image input"),
    Refused("audio_config", "audio input"),
    Refused("text_config", "a language model nested in a larger one"),
    Refused("use_bidirectional_attention", "bidirectional attention"),
    Refused("attn_logit_softcapping", "attention logit softcapping"),
    Refused("final_logit_softcapping", "logit softcapping"),
    Refused("logit_scale", "logit scaling", (1, 1.0)),
    Refused("logits_scaling", "logit scaling", (1, 1.0)),
    Refused("embedding_multiplier", "embedding scaling", (1, 1.0)),
    Refused("scale_embedding", "embedding scaling"),
    Refused("scale_emb", "embedding scaling", (1, 1.0)),
    Refused("residual_multiplier", "residual scaling", (1, 1.0)),
    Refused("scale_depth", "residual scaling"),
    Refused("attention_multiplier", "attention scaling"),
    Refused("query_pre_attn_scalar", "attention scaling"),
    Refused("attention_sinks", "attention sinks"),
    Refused("use_attention_sinks", "attention sinks"),
    Refused("attention_sink_size", "attention sinks"),
    Refused("add_swa_attention_sink_bias", "attention sinks"),
    Refused("attention_chunk_size", "chunked attention"),
    Refused("clip_qkv", "clipped q, k and v"),
    Refused("alibi", "alibi positions"),
    Refused("no_rope_layers", "layers without rope"),
    Refused("no_rope_layer_interval", "layers without rope"),
    Refused("rope_interleaved", "interleaved rope"),
    Refused("rotary_pct", "partial rotary embedding", (1, 1.0)),
    Refused("moe_layer_freq", "branches in every so many layers", (1,)),
    Refused("kv_lora_rank", "latent attention"),
    Refused("hidden_activation", "an activation named by a key of Gemma 2", ("gelu_pytorch_tanh",)),
    Refused("num_kv_shared_layers", "layers that share keys and values"),
    Refused("block_configs", "layers of different shapes"),
    Refused("num_nextn_predict_layers", "multi-token prediction layers"),
    Refused("use_qk_norm", "q and k norms chosen by config"),
    Refused("qk_layernorm", "q and k norms chosen by config"),
)


def refuse_features(config: Fields, supported_keys: Collection[str] = ()) -> None:
    """Raise UnsupportedError for the first feature that is on, unless its key is one of `supported_keys`."""
    for row in (row for row in REFUSED if row.key not in supported_keys):
        value = config.get(row.key)
        if value and value not in row.off:
            fact = f"{row.key} = {_short(value)} means {row.feature}, which is not supported"
            raise UnsupportedError(config.where, fact, "use a checkpoint without it")
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS and "hidden_act" not in supported_keys:
        raise UnsupportedError(config.where, f"hidden_act {activation!r} is not supported", "Coterie runs silu")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
