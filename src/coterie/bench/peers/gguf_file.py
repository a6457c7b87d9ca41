"""Converts a Hugging Face checkpoint to a GGUF file for llama.cpp, without a tokenizer.

Knows nothing about running it. For RoPE, llama.cpp rotates adjacent pairs of channels where Hugging Face rotates
halves, so the rows of q and k are permuted within each head. Source: the GGUF specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coterie.bench.peers.peer import missing_extra
from coterie.core.dtypes import to_f32
from coterie.core.errors import UnsupportedError
from coterie.models.config import ModelConfig
from coterie.models.model import Model
from coterie.models.tensors import map_bytes

_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def import_gguf() -> Any:
    """The gguf package. Raises UsageError if it is not installed."""
    try:
        return importlib.import_module("gguf")
    except ImportError:
        raise missing_extra("llama.cpp", "gguf") from None


def write_gguf(model: Model, path: Path, precision: str) -> None:
    """Write a GGUF file, matrices in `precision`, norms in F32. Raises UnsupportedError, UsageError."""
    gguf = import_gguf()
    config = model.config
    _refuse(config, model.name)
    writer = gguf.GGUFWriter(path, "llama")
    _metadata(writer, config)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if precision == "F32" else f"MOSTLY_{precision}"])
    quantization = gguf.GGMLQuantizationType[precision]
    for value in model.graph.weights:
        stored = quantization if len(value.shape) == 2 else gguf.GGMLQuantizationType.F32  # llama.cpp wants F32 norms
        tensor = gguf.quants.quantize(_values(model, value.name), stored)
        writer.add_tensor(gguf_name(value.name), tensor, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """GGUF's name for a tensor of a Llama checkpoint. Raises KeyError if it has none."""
    if name in _OUTER:
        return _OUTER[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{_BLOCK[part]}.{kind}"


def _refuse(config: ModelConfig, name: str) -> None:
    if config.family != "llama" or config.rope.kind != "default" or config.qkv_bias or config.mlp_bias or config.o_bias:
        fact = f"a {config.family} model with rope {config.rope.kind} is not converted to GGUF here"
        raise UnsupportedError(name, fact, "compare on a Llama shape without biases")


def _metadata(writer: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(_theta(config))
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _theta(config: ModelConfig) -> float:
    """The RoPE base, from the second inverse frequency, theta ** (-2 / head_dim)."""
    frequencies = config.rope.inv_freq
    return float(frequencies[1] ** (-config.head_dim / 2)) if len(frequencies) > 1 else 10000.0


def _values(model: Model, name: str) -> npt.NDArray[np.float32]:
    info = model.checkpoint.tensors[name]
    values = to_f32(np.asarray(map_bytes(info).view(info.dtype.numpy)), info.dtype).reshape(info.shape)
    heads: Mapping[str, int] = {"q_proj": model.config.num_heads, "k_proj": model.config.num_kv_heads}
    for part, count in heads.items():
        if f".{part}.weight" in name:
            halves = values.reshape(count, 2, model.config.head_dim // 2, -1)
            values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(info.shape)
    return values
