"""Translates a GGUF file's metadata to config.json and generation_config.json.

A key that is not known here could change results, so a file that has one is refused, naming the key.
Knows nothing about weights, except which tensors exist, or about files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from coterie.core.errors import CheckpointError, UnsupportedError
from coterie.models.encoder import SCORES
from coterie.models.families import FAMILIES
from coterie.models.family import FULL, SLIDING, Bias, Norm
from coterie.models.fields import Fields
from coterie.models.gguf.encoders import EPS, POOLING, head_of
from coterie.models.gguf.families import architecture_of
from coterie.models.gguf.file import GgufFile
from coterie.models.gguf.rope import KEYS, TENSORS, rope_keys
from coterie.models.gguf.source import PATTERN, Architecture, Source

RMS_EPS = "attention.layer_norm_rms_epsilon"
EMBED, HEAD = "token_embd.weight", "output.weight"
_COUNTS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
_READ = (
    *(*_COUNTS, "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *(RMS_EPS, "rope.dimension_count", *KEYS, POOLING),
)
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {  # keys without effect, or without effect if they have such a value
    "vocab_size": (),
    "attention.causal": (True,),
    EPS: (),  # eps of layer norms, unused by other families
    "tensor_data_layout": ("Meta AI original pth",),
    "rope.scaling.finetuned": (True,),
}
_NO_TOKEN = 2**32 - 1  # -1 as unsigned: some files write it for an absent token
_AGAIN = "download the file again"
_SAMPLING = {  # llama.cpp's other settings (xtc, mirostat, range of a penalty) have no counterpart here
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def config_of(file: GgufFile) -> tuple[Architecture, dict[str, Any]]:
    """The row of the file's architecture, and its config.json.

    Raises CheckpointError for anything missing, UnsupportedError for anything unsupported or unknown.
    """
    name, row = architecture_of(file.metadata, file.where)
    own = {key.removeprefix(f"{name}."): value for key, value in file.metadata.items() if key.startswith(f"{name}.")}
    own = {key: _single(key, value) for key, value in own.items()}
    keys = Fields(row.reduce_keys(own, file.tensors, file.where) if row.reduce_keys else own, f"{file.where}: {name}")
    counts = {theirs: keys.count(ours) for ours, theirs in _COUNTS.items()}
    heads, hidden = counts["num_attention_heads"], counts["hidden_size"]
    head_dim = keys.count("attention.key_length", max(1, hidden // heads))
    _check(keys, row, head_dim, file.where)
    source = Source(keys, counts["num_hidden_layers"], heads, hidden, head_dim, file.tensors)
    family = FAMILIES[row.model_type]
    config: dict[str, Any] = {"model_type": row.model_type, **counts, "hidden_act": "silu"}
    config |= {
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "vocab_size": _rows(file),
        "rms_norm_eps": keys.number(EPS if family.norm is Norm.LAYER else RMS_EPS),
        "tie_word_embeddings": HEAD not in file.tensors,
    }
    rotated = keys.count("rope.dimension_count", head_dim)
    names = () if row.reduce_keys else TENSORS
    factors = {name: found.values(slice(None)).ravel() for name in names if (found := file.tensors.get(name))}
    config |= rope_keys(keys, rotated, counts["max_position_embeddings"], factors)
    config |= _biases(row, file) | row.own(source) | _tokens(file.metadata)
    family = FAMILIES[config["model_type"]]
    if family.rope_by_window and not {"rope_local_base_freq", "rope_parameters"} & set(config):
        config |= _by_layer(config)
    if "rope_scaling" in config and "truncate" in family.default_rope:  # a flag of yarn, which a file does not hold
        config["rope_scaling"]["truncate"] = family.default_rope["truncate"]
    if family.encoder is not None:
        config = {key: value for key, value in config.items() if value is not None}
    if family.names.positions:
        del config["rope_theta"]
    scores = head_of(file.tensors, family.model_type, file.where)
    own_class = f"{family.causal_class.removesuffix('Model')}{SCORES}" if scores else family.causal_class
    return row, config | {"architectures": [own_class]} | ({"num_labels": 1} if scores else {})


def generation_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The generation_config.json: tokens that end an answer, and the sampling that the file recommends."""
    named = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(token for token in named if isinstance(token, int) and 0 <= token < _NO_TOKEN))
    found: dict[str, Any] = {"eos_token_id": ends} if ends else {}
    sampling = {ours: metadata.get(f"general.sampling.{theirs}") for theirs, ours in _SAMPLING.items()}
    said = {key: _short(value) for key, value in sampling.items() if isinstance(value, int | float)}
    is_drawn = said.get("temperature", 1) > 0 and bool(set(said) - {"repetition_penalty"})
    return found | ({"do_sample": True} if is_drawn else {}) | said


def _short(value: float) -> float:
    """A float32 number in its shortest decimal form: 0.7, not 0.699999988079071."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _by_layer(config: dict[str, Any]) -> dict[str, Any]:
    """The rope of each layer type: scaling applies to layers without a window only."""
    theta = {"rope_theta": config.pop("rope_theta")}
    plain = {"rope_type": "default"} | theta
    return {"rope_parameters": {FULL: config.pop("rope_scaling", plain) | theta, SLIDING: plain}}


def _single(key: str, value: Any) -> Any:
    """One number for a list of equal numbers, one per layer; except for the pattern of layers, which stays a list."""
    is_same = isinstance(value, list) and key != PATTERN and len(set(value)) == 1
    return value[0] if is_same else value


def _check(keys: Fields, row: Architecture, head_dim: int, where: str) -> None:
    for key, value in keys.raw.items():
        is_off = not value if key not in _NEUTRAL else _NEUTRAL[key] in ((), (value,))
        if not (is_off or key in _READ or key in row.reads):
            fact = f"{key} = {str(value)[:60]} is not understood for {row.model_type}, and could change the answers"
            raise UnsupportedError(where, fact, "use a model without it")
    if keys.count("attention.value_length", head_dim) != head_dim:
        fact = f"values of {keys.count('attention.value_length')} channels beside keys of {head_dim} are not supported"
        raise UnsupportedError(where, fact, "use a model where they are equal")
    rotated = keys.count("rope.dimension_count", head_dim)
    if rotated != head_dim and not FAMILIES[row.model_type].partial_rope:
        fact = (
            f"rope.dimension_count {rotated} beside heads of {head_dim} channels is not supported for {row.model_type}"
        )
        raise UnsupportedError(where, fact, "use a model that rotates whole heads")


def _rows(file: GgufFile) -> int:
    table = file.tensors.get(EMBED)
    if table is None or len(table.shape) != 2:
        raise CheckpointError(file.where, f"has no table {EMBED}", _AGAIN)
    return table.shape[0]


def _biases(row: Architecture, file: GgufFile) -> dict[str, bool]:
    """Bias flags of config.json, for families that have them, derived from which tensors exist."""
    family = FAMILIES[row.model_type]
    found = {"attention_bias": (family.qkv_bias, "attn_q"), "mlp_bias": (family.mlp_bias, "ffn_up")}
    return {
        key: f"blk.0.{tensor}.bias" in file.tensors for key, (bias, tensor) in found.items() if bias is Bias.BY_CONFIG
    }


def _tokens(metadata: Mapping[str, Any]) -> dict[str, int | None]:
    """Special token ids; null if the file has none, since an absent key would mean the class's default."""
    kinds = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
    ids = {key: metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind, key in kinds.items()}
    return {key: None if found == _NO_TOKEN else found for key, found in ids.items()}
