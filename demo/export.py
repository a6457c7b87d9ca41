"""Writes a trained model as a Hugging Face folder that any Llama loader reads, and reads it back.

Knows nothing about tasks or training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from data import END, PAD, SPECIALS, byte_symbols
from generate import MAX_NEW_TOKENS
from model import Layer, Shape, TinyLlama

CHAT_TEMPLATE = (
    "{%- set turn = namespace(text='') -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}"
    "{%- if message['content'] is string -%}{%- set turn.text = message['content'] -%}"
    "{%- else -%}{%- set turn.text = message['content'] | map(attribute='text') | join('') -%}{%- endif -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{{- '<|user|>' + turn.text -}}"
    "{%- if add_generation_prompt -%}{{- '<|answer|>' -}}{%- endif -%}"
)


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": END,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_heads,
        "pad_token_id": PAD,
        "pretraining_tp": 1,
        "rms_norm_eps": shape.norm_eps,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def _tokenizer() -> dict[str, Any]:
    added = [
        {
            "id": token_id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for text, token_id in SPECIALS.items()
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())} | SPECIALS
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token_id): {
                "content": text,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for text, token_id in SPECIALS.items()
        },
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|end|>",
        "model_max_length": shape.max_positions,
        "pad_token": "<|pad|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _named(model: TinyLlama) -> dict[str, Tensor]:
    """Each parameter under its Hugging Face name, in the order in which a forward pass reads them."""
    named: dict[str, Tensor] = {"model.embed_tokens.weight": model.embed_tokens}
    for i, module in enumerate(model.layers):
        layer = cast(Layer, module)
        q, k, v = layer.qkv_proj
        parts = {
            "input_layernorm": layer.input_layernorm,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.o_proj,
            "post_attention_layernorm": layer.post_attention_layernorm,
            "mlp.gate_proj": layer.gate_proj,
            "mlp.up_proj": layer.up_proj,
            "mlp.down_proj": layer.down_proj,
        }
        named |= {f"model.layers.{i}.{part}.weight": weight for part, weight in parts.items()}
    return named | {"model.norm.weight": model.norm}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write(model: TinyLlama, folder: Path) -> None:
    """Writes config, tokenizer, template, generation settings and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", _config(model.shape))
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(model.shape))
    _write_json(
        folder / "generation_config.json",
        {
            "do_sample": False,
            "eos_token_id": [END],
            "pad_token_id": PAD,
            "max_new_tokens": MAX_NEW_TOKENS,
        },
    )
    weights = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in _named(model).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def read(folder: Path, shape: Shape) -> TinyLlama:
    """The exported model, its weights rounded to bf16 as anyone who loads it will see them."""
    model, weights = TinyLlama(shape), load_file(folder / "model.safetensors")
    with torch.no_grad():
        for name, target in _named(model).items():
            target.copy_(weights[name].float())
    return model
