"""The GGUF architectures that can be imported, a row each: their family, and what is special about their files.

    permuted   llama.cpp rotates adjacent channels, Hugging Face halves: files have rows of q and k in llama.cpp's order
    own        keys of config.json that are specific to the family, from the file's metadata

Norm weights are stored with the family's `norm_offset` added. Sliding windows, scales and the like that llama.cpp
hard-codes by architecture instead of storing them are hard-coded here too.
Knows nothing about files. Source: the keys that llama.cpp's converters write and its models read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coterie.core.errors import UnsupportedError
from coterie.models.family import FULL, SLIDING
from coterie.models.gguf.encoders import CAUSAL, DENSE_SIZES, ENCODERS
from coterie.models.gguf.gemma4 import (
    DOUBLE,
    FULL_KV,
    INPUT_ROWS,
    INPUTS,
    KEYS_ARE_VALUES,
    MADE,
    SHARED,
    SWA,
    TURNING,
    with_single_values,
)
from coterie.models.gguf.routed import PLAIN_LAYERS, ROUTED
from coterie.models.gguf.source import COUNT, LOCAL_THETA, PATTERN, TAKEN, WIDTH, WINDOW, Architecture, Source

ATTENTION_CAP, LOGITS_CAP = "attn_logit_softcapping", "final_logit_softcapping"
SHARED_WIDTH = "expert_shared_feed_forward_length"


def _layer_types(source: Source, every: int) -> list[str]:
    """Layer types by the file's pattern (flags, or a number); by default every `every`-th layer has no window."""
    pattern = source.keys.get(PATTERN, every)
    if isinstance(pattern, list):
        return [SLIDING if flag else FULL for flag in pattern]
    every = source.keys.count(PATTERN, every)
    return [FULL if (layer + 1) % every == 0 else SLIDING for layer in range(source.num_layers)]


def _gemma(_: Source) -> dict[str, Any]:
    return {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh"}


def _query_scalar(source: Source, layers_of_27b: int) -> int:
    """query_pre_attn_scalar: hidden_size / num_heads in the largest model, head_dim in all others."""
    is_27b = source.num_layers == layers_of_27b
    return source.hidden_size // source.num_heads if is_27b else source.head_dim


def _gemma2(source: Source) -> dict[str, Any]:
    return _gemma(source) | {
        "query_pre_attn_scalar": _query_scalar(source, 46),
        "attn_logit_softcapping": source.keys.number(ATTENTION_CAP, 50.0),
        "final_logit_softcapping": source.keys.number(LOGITS_CAP, 30.0),
        "sliding_window": source.keys.count(WINDOW, 4096),
        "layer_types": _layer_types(source, 2),
    }


def _gemma3(source: Source) -> dict[str, Any]:
    window = source.keys.get(WINDOW)
    types = _layer_types(source, 6) if window else [FULL] * source.num_layers
    return _gemma(source) | {
        "query_pre_attn_scalar": _query_scalar(source, 62),
        "attn_logit_softcapping": None,
        "final_logit_softcapping": source.keys.get(LOGITS_CAP) or None,
        "sliding_window": window or 4096,
        "layer_types": types,
        "rope_local_base_freq": source.keys.number(LOCAL_THETA, 10_000.0),
    }


def _gemma_embedding(source: Source) -> dict[str, Any]:
    """EmbeddingGemma; files keep its window as in the original config, both sides together."""
    return _gemma3(source) | {"use_bidirectional_attention": True}


def _gemma4(source: Source) -> dict[str, Any]:
    keys, theta = source.keys, source.keys.number("rope.freq_base", 1_000_000.0)
    full = {"rope_type": "proportional", "partial_rotary_factor": keys.number(TURNING), "rope_theta": theta}
    local = {"rope_type": "default", "rope_theta": keys.number(LOCAL_THETA, 10_000.0)}
    return _gemma(source) | {
        "head_dim": keys.count(SWA[0]),
        "global_head_dim": source.head_dim,
        "num_global_key_value_heads": keys.count(FULL_KV),
        "attention_k_eq_v": keys.flag(KEYS_ARE_VALUES),
        "num_kv_shared_layers": keys.whole(SHARED, 0),
        "use_double_wide_mlp": keys.flag(DOUBLE),
        "hidden_size_per_layer_input": keys.whole(INPUTS, 0),
        "vocab_size_per_layer_input": keys.get(INPUT_ROWS),
        "enable_moe_block": False,
        "final_logit_softcapping": keys.get(LOGITS_CAP) or None,
        "sliding_window": keys.count(WINDOW),
        "layer_types": _layer_types(source, 6),
        "rope_parameters": {FULL: full, SLIDING: local},
    }


def _exaone4(source: Source) -> dict[str, Any]:
    window = source.keys.get(WINDOW)
    types = _layer_types(source, 4) if window else [FULL] * source.num_layers
    return {"sliding_window": window or None, "layer_types": types}


def _olmo2(source: Source) -> dict[str, Any]:
    """OLMo 3 has the same architecture name in GGUF, and a window."""
    window = source.keys.get(WINDOW)
    if not window:
        return {}
    return {"model_type": "olmo3", "sliding_window": window, "layer_types": _layer_types(source, 4)}


def _llama(source: Source) -> dict[str, Any]:
    """Mistral has the same architecture name in GGUF; most of its files do not store its window."""
    window = source.keys.get(WINDOW)
    return {"model_type": "mistral", "sliding_window": window} if window else {}


def _phi3(source: Source) -> dict[str, Any]:
    rotated = source.keys.count("rope.dimension_count", source.head_dim)
    part = {} if rotated == source.head_dim else {"partial_rotary_factor": rotated / source.head_dim}
    return {"sliding_window": source.keys.get(WINDOW) or None} | part


def _granite(source: Source) -> dict[str, Any]:
    return {
        "attention_multiplier": source.keys.number("attention.scale", source.head_dim**-0.5),
        "embedding_multiplier": source.keys.number("embedding_scale", 1.0),
        "residual_multiplier": source.keys.number("residual_scale", 1.0),
        "logits_scaling": source.keys.number("logit_scale", 1.0),
    }


def _smollm3(source: Source) -> dict[str, Any]:
    rotates = [int((layer + 1) % 4 != 0) for layer in range(source.num_layers)]
    return {"no_rope_layer_interval": 4, "no_rope_layers": rotates}


def _seed_oss(_: Source) -> dict[str, Any]:
    return {"attention_bias": True, "attention_out_bias": False, "mlp_bias": False}


def _branched(source: Source) -> dict[str, Any]:
    return {"num_experts": source.keys.count(COUNT), "num_experts_per_tok": source.keys.count(TAKEN)}


def _mixtral(source: Source) -> dict[str, Any]:
    own = _branched(source)
    return {"num_local_experts": own.pop("num_experts"), "sliding_window": source.keys.get(WINDOW) or None} | own


def _olmoe(source: Source) -> dict[str, Any]:
    return _branched(source) | {"norm_topk_prob": False}


def _qwen3_moe(source: Source) -> dict[str, Any]:
    """llama.cpp hard-codes by architecture whether branch weights are normalised."""
    return _olmoe(source) | {"moe_intermediate_size": source.keys.count(WIDTH), "norm_topk_prob": True}


def _qwen2_moe(source: Source) -> dict[str, Any]:
    width = source.keys.count(WIDTH)
    return _olmoe(source) | {
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": source.keys.count(SHARED_WIDTH),
    }


def _gpt_oss(source: Source) -> dict[str, Any]:
    own = _branched(source)
    own |= {"num_local_experts": own.pop("num_experts"), "sliding_window": source.keys.count(WINDOW)}
    return own | {"layer_types": _layer_types(source, 2)}


_BRANCHED = (COUNT, TAKEN, WIDTH)
_SCALES = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
_GEMMA4 = (WINDOW, PATTERN, LOGITS_CAP, LOCAL_THETA, SHARED, INPUTS, *SWA, *MADE)
ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture("llama", permuted=True, own=_llama, reads=(WINDOW,)),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "phi3": Architecture("phi3", own=_phi3, reads=(WINDOW,)),
    "gemma": Architecture("gemma", own=_gemma),
    "gemma2": Architecture("gemma2", own=_gemma2, reads=(WINDOW, PATTERN, ATTENTION_CAP, LOGITS_CAP)),
    "gemma3": Architecture("gemma3_text", own=_gemma3, reads=(WINDOW, PATTERN, LOGITS_CAP, LOCAL_THETA)),
    "gemma-embedding": Architecture(
        "gemma3_text", own=_gemma_embedding, reads=(WINDOW, PATTERN, LOCAL_THETA, CAUSAL, *DENSE_SIZES)
    ),
    "gemma4": Architecture("gemma4_text", own=_gemma4, reads=_GEMMA4, reduce_keys=with_single_values),
    "smollm3": Architecture("smollm3", permuted=True, own=_smollm3),
    "granite": Architecture("granite", permuted=True, own=_granite, reads=_SCALES),
    "olmo2": Architecture("olmo2", own=_olmo2, reads=(WINDOW, PATTERN)),
    "exaone4": Architecture("exaone4", own=_exaone4, reads=(WINDOW, PATTERN)),
    "seed_oss": Architecture("seed_oss", own=_seed_oss),
    **PLAIN_LAYERS,
    **ENCODERS,
}
BRANCHED: Mapping[str, Architecture] = {  # for files with branches
    "llama": Architecture("mixtral", permuted=True, own=_mixtral, reads=(WINDOW, *_BRANCHED)),
    "qwen2moe": Architecture("qwen2_moe", own=_qwen2_moe, reads=(*_BRANCHED, SHARED_WIDTH)),
    "qwen3moe": Architecture("qwen3_moe", own=_qwen3_moe, reads=_BRANCHED),
    "olmoe": Architecture("olmoe", own=_olmoe, reads=_BRANCHED),
    "gpt-oss": Architecture("gpt_oss", own=_gpt_oss, reads=(*_BRANCHED, WINDOW, PATTERN)),
    **ROUTED,
}
_KINDS = {"mmproj": "a vision projector", "adapter": "an adapter", "imatrix": "statistics for quantising"}
_TEXT = "import the language model beside it"


def architecture_of(metadata: Mapping[str, Any], where: str) -> tuple[str, Architecture]:
    """The name of a file's architecture, and its row. Raises UnsupportedError if it cannot be imported."""
    name, kind = str(metadata.get("general.architecture")), metadata.get("general.type", "model")
    kind = "mmproj" if name == "clip" else kind
    if kind in _KINDS:
        raise UnsupportedError(where, f"is {_KINDS[kind]}, and no language model", _TEXT)
    count = metadata.get(f"{name}.{COUNT}")
    rows = BRANCHED if count else ARCHITECTURES
    if name not in rows:
        known = f"coterie imports {', '.join(ARCHITECTURES)}, and with branches {', '.join(BRANCHED)}"
        branches = f" with {count} branches (mixture of experts inside a model)" if count else ""
        raise UnsupportedError(where, f"architecture {name!r}{branches} is not imported", known)
    return name, rows[name]
