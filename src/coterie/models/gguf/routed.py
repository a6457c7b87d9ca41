"""DeepSeek 2 and 3, GLM-4.5 and LFM2 in GGUF: keys and tensors of branches, latent attention and convolutions.

    blk.0.attn_kv_b.weight [H (P + V), R]                    in older files
    blk.0.attn_k_b.weight [H, R, P], attn_v_b [H, V, R]      in newer ones: separate, keys transposed within each head
    head_count_kv [0, 0, 2]                                  0 heads: a layer of LFM2 with a convolution

P: plain channels of a head, V: channels of its values, R: latent channels. Knows nothing about files.
Source: the keys and tensors that llama.cpp's converters write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from coterie.core.dtypes import DType, from_f32
from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.core.packed import F32
from coterie.models.families.deepseek import DEEPSEEK_V2
from coterie.models.family import FULL
from coterie.models.gguf.file import FLOATS, GgufTensor
from coterie.models.gguf.rope import LOG_MULTIPLIER
from coterie.models.gguf.source import COUNT, TAKEN, WIDTH, Architecture, Source
from coterie.models.short_conv import CONV

_KV, _KEYS, _VALUES = "attention.head_count_kv", "attention.key_length", "attention.value_length"
_RANK, _QUERY_RANK, _ROTATED = "attention.kv_lora_rank", "attention.q_lora_rank", "rope.dimension_count"
_LAYERS, _EXTRA_LAYERS, _TAPS = "block_count", "nextn_predict_layers", "shortconv.l_cache"
_SHARED, _FIRST = "expert_shared_count", "leading_dense_block_count"
_SCALE, _NORMED, _SCORES = "expert_weights_scale", "expert_weights_norm", "expert_gating_func"
_GROUPS, _TAKEN_GROUPS = "expert_group_count", "expert_group_used_count"
_PLAIN, _WIDTH_OF_VALUES, _ATTENDS = "plain", "values", "attends"  # derived here
_SIGMOID = 2
_AGAIN = "download the file again"


def _routed(source: Source) -> dict[str, Any]:
    """The keys of branches in DeepSeek's classes and those like them."""
    keys = source.keys
    return {
        "n_routed_experts": keys.count(COUNT),
        "num_experts_per_tok": keys.count(TAKEN),
        "moe_intermediate_size": keys.count(WIDTH),
        "n_shared_experts": keys.whole(_SHARED, 0),
        "first_k_dense_replace": keys.whole(_FIRST, 0),
        "routed_scaling_factor": keys.number(_SCALE, 1.0),
        "norm_topk_prob": keys.flag(_NORMED),
        "n_group": keys.count(_GROUPS, 1),
        "topk_group": keys.count(_TAKEN_GROUPS, 1),
    }


def _want_sigmoid(source: Source) -> None:
    if source.keys.get(_SCORES, _SIGMOID) != _SIGMOID:
        fact = f"{_SCORES} = {source.keys.get(_SCORES)} is not supported, where {_SIGMOID}, a sigmoid, is"
        raise UnsupportedError(source.keys.where, fact, "use a model as its authors released it")


def _has(source: Source, end: str) -> bool:
    return any(name.startswith("blk.") and name.endswith(end) for name in source.tensors)


def _partial_rotary(source: Source) -> dict[str, Any]:
    return {"partial_rotary_factor": source.keys.count(_ROTATED, source.head_dim) / source.head_dim}


def _glm4(source: Source) -> dict[str, Any]:
    return _partial_rotary(source) | {"attention_bias": _has(source, "attn_q.bias")}


def _glm4_moe(source: Source) -> dict[str, Any]:
    _want_sigmoid(source)
    own = {
        "use_qk_norm": _has(source, "attn_q_norm.weight"),
        "num_nextn_predict_layers": source.keys.whole(_EXTRA_LAYERS, 0),
    }
    return _routed(source) | _partial_rotary(source) | own


def _deepseek(source: Source) -> dict[str, Any]:
    """DeepSeek V3 if the scores are sigmoids, else V2, which uses groups only if the file has several."""
    keys = source.keys
    own = _routed(source) | {
        "kv_lora_rank": keys.count(_RANK),
        "q_lora_rank": keys.get(_QUERY_RANK) or None,
        "qk_rope_head_dim": source.head_dim,
        "qk_nope_head_dim": keys.count(_PLAIN),
        "v_head_dim": keys.count(_WIDTH_OF_VALUES),
    }
    if keys.get(_SCORES) == _SIGMOID:
        return own | {"num_nextn_predict_layers": keys.whole(_EXTRA_LAYERS, 0)}
    method = "group_limited_greedy" if own["n_group"] > 1 else "greedy"
    return own | {"model_type": DEEPSEEK_V2.model_type, "topk_method": method}


def without_extra_layers(keys: Mapping[str, Any], _: Mapping[str, GgufTensor], where: str) -> dict[str, Any]:
    """The keys with block_count reduced by the layers for multi-token prediction, which are not run."""
    extra, layers = keys.get(_EXTRA_LAYERS) or 0, keys.get(_LAYERS)
    if not isinstance(layers, int) or not isinstance(extra, int) or not 0 <= extra < layers:
        raise CheckpointError(where, f"{_EXTRA_LAYERS} is {extra!r} of {layers!r} layers", _AGAIN)
    return {**keys, _LAYERS: layers - extra}


def _with_latent(keys: Mapping[str, Any], tensors: Mapping[str, GgufTensor], where: str) -> dict[str, Any]:
    """The keys with the widths of a head's keys and values; newer files have them under separate `_mla` keys."""
    found = without_extra_layers(keys, tensors, where)
    sizes = [keys.get(name) for name in (f"{_KEYS}_mla", f"{_VALUES}_mla")]
    wide, values = sizes if all(sizes) else [keys.get(name) for name in (_KEYS, _VALUES)]
    rotated = keys.get(_ROTATED)
    if not (isinstance(wide, int) and isinstance(values, int) and isinstance(rotated, int)):
        raise CheckpointError(where, f"{_KEYS}, {_VALUES} and {_ROTATED} do not say how wide a head is", _AGAIN)
    own = {_PLAIN: wide - rotated, _WIDTH_OF_VALUES: values, _KEYS: rotated, _VALUES: rotated}
    return found | own | {_KV: keys.get("attention.head_count")}


def _with_types(keys: Mapping[str, Any], _: Mapping[str, GgufTensor], where: str) -> dict[str, Any]:
    said, layers = keys.get(_KV), keys.get(_LAYERS)
    heads = [count for count in said if isinstance(count, int) and count >= 0] if isinstance(said, list) else []
    if heads != said or len(heads) != layers or len(set(heads) - {0}) != 1:
        fact = f"{_KV} is {said!r}, where {layers!r} numbers are expected, 0 or one other"
        raise CheckpointError(where, fact, _AGAIN)
    return {**keys, _KV: max(heads), _ATTENDS: [count > 0 for count in heads]}


def _lfm2(source: Source) -> dict[str, Any]:
    own = {"layer_types": [FULL if attends else CONV for attends in source.keys.get(_ATTENDS)], "conv_bias": False}
    own |= {
        "conv_L_cache": source.keys.count(_TAPS),
        "norm_eps": source.keys.number("attention.layer_norm_rms_epsilon"),
    }
    return own | {"block_auto_adjust_ff_dim": False, "tie_embedding": "output.weight" not in source.tensors}


def _lfm2_moe(source: Source) -> dict[str, Any]:
    _want_sigmoid(source)
    routed = _routed(source)
    kept = ("num_experts_per_tok", "moe_intermediate_size", "routed_scaling_factor")
    own = {"num_experts": routed["n_routed_experts"], "num_dense_layers": routed["first_k_dense_replace"]}
    own |= {"norm_topk_prob": True, "use_expert_bias": True}
    return _lfm2(source) | {key: routed[key] for key in kept} | own


@dataclass(frozen=True, slots=True)
class HeadRows(GgufTensor):
    """For each head, its key rows, then its value rows, from a file's two tensors [H, R, P] and [H, V, R]."""

    keys: GgufTensor
    latent: GgufTensor

    @staticmethod
    def of(keys: GgufTensor, values: GgufTensor) -> HeadRows:
        """Combine the two tensors. Raises CheckpointError if their shapes do not match."""
        fit = len(keys.shape) == len(values.shape) == 3 and keys.shape[:2] == values.shape[::2]
        if not fit:
            fact = f"has shape {list(keys.shape)} beside {list(values.shape)} of {values.name}"
            raise CheckpointError(keys.where, fact, _AGAIN)
        (heads, rank, plain), wide = keys.shape, values.shape[1]
        return HeadRows(keys.name, keys.type, (heads * (plain + wide), rank), keys.rows, keys.where, keys, values)

    @property
    def float_type(self) -> DType | None:
        """The element type of both; None if they differ or are quantised."""
        return self.keys.float_type if self.keys.type == self.latent.type else None

    def bits(self, taken: Any) -> Any:
        """The stored elements of some rows."""
        return from_f32(self.values(taken), FLOATS[self.type])

    def values(self, taken: Any) -> F32:
        """Some rows as float32."""
        (_, rank, plain), wide = self.keys.shape, self.latent.shape[1]
        first, last = taken.start // (plain + wide), -(-taken.stop // (plain + wide))
        keys = self.keys.values(slice(first * rank, last * rank)).reshape(-1, rank, plain).swapaxes(1, 2)
        values = self.latent.values(slice(first * wide, last * wide)).reshape(-1, wide, rank)
        start = first * (plain + wide)
        both = np.concatenate([keys, values], axis=1).reshape(-1, rank)
        return np.ascontiguousarray(both[taken.start - start : taken.stop - start])


_OF_BRANCHES = (COUNT, TAKEN, WIDTH, _SHARED, _FIRST, _SCALE, _NORMED, _SCORES, _GROUPS, _TAKEN_GROUPS, _EXTRA_LAYERS)
_OF_LATENT = (_RANK, _QUERY_RANK, f"{_KEYS}_mla", f"{_VALUES}_mla", _PLAIN, _WIDTH_OF_VALUES, LOG_MULTIPLIER)
_OF_CONVS = (_TAPS, _ATTENDS)
PLAIN_LAYERS: Mapping[str, Architecture] = {
    "glm4": Architecture("glm4", own=_glm4),
    "lfm2": Architecture("lfm2", own=_lfm2, reads=_OF_CONVS, reduce_keys=_with_types),
}
ROUTED: Mapping[str, Architecture] = {
    "glm4moe": Architecture("glm4_moe", own=_glm4_moe, reads=_OF_BRANCHES, reduce_keys=without_extra_layers),
    "lfm2moe": Architecture("lfm2_moe", own=_lfm2_moe, reads=(*_OF_BRANCHES, *_OF_CONVS), reduce_keys=_with_types),
    "deepseek2": Architecture("deepseek_v3", own=_deepseek, reads=_OF_BRANCHES + _OF_LATENT, reduce_keys=_with_latent),
}
