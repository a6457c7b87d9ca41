"""Tiny random checkpoints, as Hugging Face folders, made on the spot; no torch.

Knows nothing about what is tested with them.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from coterie.core.dtypes import DType, from_f32
from coterie.models.config import ModelConfig
from coterie.models.registry import weight_shapes

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 259,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": 256,
}
# Peers measure it beside us, in files of float32: then only the order of sums and the cache's type differ. Its widths
# suit quantised blocks of 32.
MEASURED = {**CONFIG, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
MIXTURE = {
    **CONFIG,
    **{"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None},
    **{"num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 20},
}
DELTA_NETS = {
    **CONFIG,
    **{"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "num_hidden_layers": 4, "head_dim": 16},
    **{"linear_num_key_heads": 1, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 24},
}
STATE_SPACES = {
    "mamba2": {
        **CONFIG,
        **{"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "num_heads": 6, "head_dim": 16},
        **{"state_size": 20, "n_groups": 2, "num_hidden_layers": 3},
    },
    "falcon_h1": {
        **CONFIG,
        **{"architectures": ["FalconH1ForCausalLM"], "model_type": "falcon_h1", "mamba_d_ssm": 48, "mamba_n_heads": 4},
        **{"mamba_d_state": 20, "ssm_multipliers": [0.5, 1.5, 0.8, 1.2, 0.7], "key_multiplier": 0.5},
    },
}
LATENT = {
    **CONFIG,
    **{"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_key_value_heads": 4},
    **{"q_lora_rank": 14, "kv_lora_rank": 12, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6},
    **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "n_group": 2, "topk_group": 1},
    **{"n_shared_experts": 1, "first_k_dense_replace": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.5},
}
RERANKER = {
    **{"model_type": "bert", "vocab_size": 259, "hidden_size": 24, "intermediate_size": 40, "hidden_act": "gelu"},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "type_vocab_size": 2},
}
TEMPLATE = (
    "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)
SPECIAL = ("<|end|>", "<|user|>", "<|answer|>")


def byte_symbols() -> list[str]:
    """The printable stand-ins of the 256 bytes, in byte order, as byte-level tokenizers name them."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names, extra = {}, 256
    for byte in range(256):
        if byte in kept:
            names[byte] = chr(byte)
        else:
            names[byte], extra = chr(extra), extra + 1
    return [names[byte] for byte in range(256)]


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with three special tokens, and a chat template."""
    vocab = {symbol: i for i, symbol in enumerate(byte_symbols())}
    added = [
        {
            "id": 256 + i,
            "content": name,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for i, name in enumerate(SPECIAL)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|end|>"}))


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Weight names and shapes of a Llama."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = d // config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    found = {"model.embed_tokens.weight": (v, d)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        found |= {at + "input_layernorm.weight": (d,), at + "post_attention_layernorm.weight": (d,)}
        found |= {at + "self_attn.q_proj.weight": (d, d), at + "self_attn.o_proj.weight": (d, d)}
        found |= {at + "self_attn.k_proj.weight": (kv, d), at + "self_attn.v_proj.weight": (kv, d)}
        found |= {
            at + "mlp.gate_proj.weight": (f, d),
            at + "mlp.up_proj.weight": (f, d),
            at + "mlp.down_proj.weight": (d, f),
        }
    head = {} if config["tie_word_embeddings"] else {"lm_head.weight": (v, d)}
    return found | {"model.norm.weight": (d,)} | head


def write_safetensors(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """Write a safetensors file from (dtype name, shape, bytes) triples."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def write_expert(folder: Path, seed: int, dtype: DType = DType.BF16, **changes: object) -> Path:
    """A random Llama folder."""
    folder.mkdir(parents=True)
    config = {**CONFIG, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes(config).items():
        values = (
            1 + 0.1 * rng.standard_normal(shape) if "norm" in name else rng.standard_normal(shape) / shape[-1] ** 0.5
        )
        tensors[name] = (dtype.value, shape, from_f32(values.astype(np.float32), dtype).tobytes())
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_mixture(folder: Path, seed: int, dtype: DType = DType.BF16, **changes: object) -> Path:
    """A random Mixtral folder."""
    return _write(folder, seed, dtype, {**MIXTURE, **changes})


def write_clipped(folder: Path, seed: int, dtype: DType = DType.BF16, **changes: object) -> Path:
    """A random gpt-oss folder as `coterie quantize` writes one: sinks, clipped gates and biases of branches."""
    own = {"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], "head_dim": 16, "swiglu_limit": 1.1}
    own["sliding_window"] = 8
    return _write(folder, seed, dtype, {**MIXTURE, **own, **changes})


def write_delta_net(folder: Path, seed: int, dtype: DType = DType.BF16, **changes: object) -> Path:
    """A random folder of Qwen3.5's text model."""
    return _write(folder, seed, dtype, {**DELTA_NETS, **changes})


def write_state_space(folder: Path, seed: int, family: str, dtype: DType = DType.BF16, **changes: object) -> Path:
    """A random folder of a family whose layers have a state space: alone (mamba2), or beside attention (falcon_h1)."""
    return _write(folder, seed, dtype, {**STATE_SPACES[family], **changes})


def write_latent(folder: Path, seed: int, dtype: DType = DType.BF16, **changes: object) -> Path:
    """A random folder of DeepSeek V3's architecture: latent attention, and branches behind a plain layer."""
    return _write(folder, seed, dtype, {**LATENT, **changes})


def write_reranker(folder: Path, seed: int, **changes: object) -> Path:
    """A random BERT of one label; two texts are put together without anything between."""
    config = {**RERANKER, **changes}
    found = weight_shapes(ModelConfig.from_hf({**config, "architectures": ["BertModel"]}, folder.name), False)
    width = config["hidden_size"]
    found |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    found |= {"classifier.weight": (1, width), "classifier.bias": (1,)}
    return _write(folder, seed, DType.F32, {**config, "architectures": ["BertForSequenceClassification"]}, found)


def _write(folder: Path, seed: int, dtype: DType, config: dict, found: dict | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    rng, tensors = np.random.default_rng(seed), {}
    for name, shape in (found or weight_shapes(ModelConfig.from_hf(config, folder.name))).items():
        values = rng.standard_normal(shape) / shape[-1] ** 0.5
        values = 1 + 0.1 * values if len(shape) == 1 else values
        tensors[name] = (dtype.value, shape, from_f32(values.astype(np.float32), dtype).tobytes())
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_adapter(folder: Path, modules: tuple[str, ...], base: dict | None = None, seed: int = 0) -> Path:
    """A random LoRA adapter of rank 2 as PEFT saves it, for the modules of every layer that there are, or others."""
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": list(modules)}))
    found = {name.removesuffix(".weight"): shape for name, shape in shapes({**CONFIG, **(base or {})}).items()}
    chosen = {name: shape for name, shape in found.items() if name.endswith(modules)}
    rng, tensors = np.random.default_rng(seed), {}
    for name, (n, k) in (chosen or {f"model.layers.0.{modules[0]}": (32, 32)}).items():
        for letter, shape in (("A", (2, k)), ("B", (n, 2))):
            data = (0.2 * rng.standard_normal(shape)).astype(np.float32).tobytes()
            tensors[f"base_model.model.{name}.lora_{letter}.weight"] = ("F32", shape, data)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def write_adapter_of(base: Path, folder: Path, modules: tuple[str, ...], seed: int) -> Path:
    """The same, of a base that is a folder."""
    config = write_adapter(folder, modules, seed=seed) / "adapter_config.json"
    config.write_text(config.read_text().replace("some/base", str(base)))
    return folder


def lengthen(path: Path) -> None:
    """Let the header of a safetensors file have 72 spaces more, so that all tensors begin elsewhere."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    path.write_bytes((size + 72).to_bytes(8, "little") + data[8 : 8 + size] + b" " * 72 + data[8 + size :])
