"""GGUF files of tiny checkpoints, as llama.cpp's converters write them: names, keys, order of rows, norms plus 1.

Written apart from what reads them. Matrices have one type, or that which a function of their name gives.
"""

import json
import math
import re
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from coterie.models.gguf.convert import import_gguf, plan_import
from coterie.models.model import open_model

ARCHITECTURES = {
    "mistral": "llama",
    "gemma3_text": "gemma3",
    "olmo3": "olmo2",
    "gemma4_text": "gemma4",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gpt_oss": "gpt-oss",
    "glm4_moe": "glm4moe",
    "lfm2_moe": "lfm2moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "roberta": "bert",
    "xlm-roberta": "bert",
    "nomic_bert": "nomic-bert",
    "modernbert": "modern-bert",
}
ROUTED = ("glm4moe", "lfm2moe", "deepseek2")
ENCODERS = ("bert", "nomic-bert", "modern-bert")
BOTH_WAYS = ("gemma-embedding", "eurobert")
PERMUTED = ("llama", "smollm3", "granite")
PLUS_ONE = ("gemma", "gemma2", "gemma3", "gemma-embedding")


def write(
    folder,
    path,
    kind="F32",
    architecture=None,
    vocabulary=None,
    change=None,
    without=(),
    split=0,
    spoil=None,
    split_kv=True,
    more=None,
):
    """Write a folder's model as a GGUF file.

    `kind` is the type of matrices, or a function from a tensor's name to it; `vocabulary` a function that adds a
    tokenizer to the writer, `change` one that may add metadata. Tensors in `without` are left out, functions by name
    in `spoil` change them; without `split_kv` latent attention is as older files have it. With `split`, so many go into
    each part. `more`: tensors besides.
    """
    config = json.loads((Path(folder) / "config.json").read_text())
    name = architecture or ARCHITECTURES.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, name, split_max_tensors=split)
    add_metadata(writer, name, config)
    if vocabulary:
        vocabulary(writer)
    else:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(config["vocab_size"])
    if change:
        change(writer)
    found = tensors(folder, name, config, split_kv)
    found |= more or {}
    for tensor, values in found.items():
        if tensor in without:
            continue
        if tensor in (spoil or {}):
            spoil[tensor](values)
        wanted = kind(tensor) if callable(kind) else kind
        stored = gguf.GGMLQuantizationType[wanted if values.ndim > 1 else "F32"]
        writer.add_tensor(tensor, gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensors(folder, name, config, split_kv=True):
    """GGUF's tensors by name, float32."""
    numbers = {text: number for number, text in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[name], config["num_hidden_layers"])
    found = {}
    stored = {key: one.to(torch.float32).numpy() for key, one in load_file(Path(folder) / "model.safetensors").items()}
    for theirs, whole in usual(stored, name, config, split_kv).items():
        values = whole
        if name in PERMUTED and (".q_proj." in theirs or ".k_proj." in theirs):
            count = config["num_attention_heads" if ".q_proj." in theirs else "num_key_value_heads"]
            values = values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        if name in PLUS_ONE and theirs.endswith("norm.weight"):
            values = values + np.float32(1)
        if theirs == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        scalar = ".weight" if theirs.endswith(("layer_scalar", "sinks")) else ""
        plain, number = unnumbered(theirs)
        ends = (".weight", ".bias")
        named = (names.get_name(plain, ends) or names.get_name(plain.removeprefix("model."), ends)) + scalar
        named = named.replace("exps", f"exps.{number}") if number else named
        found[named] = np.ascontiguousarray(values)
    return stacked(found) | factors(config)


def usual(stored, name, config, split_kv):
    """Tensors as the converter of an architecture takes them, before it names them."""
    if name in ENCODERS:
        bare = {re.sub(r"^(bert|roberta|model)\.", "", key): values for key, values in stored.items()}
        bare = {re.sub(r"^classifier\.(weight|bias)$", r"classifier.out_proj.\1", key): v for key, v in bare.items()}
        stored = {key: values for key, values in bare.items() if not key.startswith("pooler.")}
        if "roberta" in config["model_type"]:
            stored["embeddings.position_embeddings.weight"] = stored["embeddings.position_embeddings.weight"][2:]
    if name == "gpt-oss":  # gate and up in turn, transposed
        for key in [key for key in stored if ".experts." in key]:
            values, (place, _, what) = stored.pop(key), key.rpartition(".")
            is_bias = what.endswith("_bias")
            rows = values if is_bias else values.swapaxes(1, 2)
            parts = {"down": rows} if what.startswith("down") else {"gate": rows[:, ::2], "up": rows[:, 1::2]}
            stored |= {f"{place}.{part}_proj.{'bias' if is_bias else 'weight'}": own for part, own in parts.items()}
    found = {}
    for key, values in stored.items():
        if key.endswith("kv_b_proj.weight") and split_kv:
            heads, plain = config["num_attention_heads"], config["qk_nope_head_dim"]
            both = values.reshape(heads, -1, values.shape[-1])
            found[key.replace("kv_b", "k_b")] = both[:, :plain].swapaxes(1, 2)
            found[key.replace("kv_b", "v_b")] = both[:, plain:]
        else:
            named = re.sub("(e_score_correction)_bias$|(expert_bias)$", r"\1\2.bias", key)
            found[named] = values[:, 0] if key.endswith("conv.conv.weight") else values
    return found


def stacked(found):
    """Matrices of branches, whose names have a number, as one tensor; a matrix of one row as a vector."""
    parts, whole = {}, {}
    for name, values in found.items():
        match = re.fullmatch(r"(.*exps)\.(\d+)(\.weight)", name)
        if match:
            parts.setdefault(match[1] + match[3], {})[int(match[2])] = values
        else:
            whole[name] = values[0] if "inp_shexp" in name else values
    return whole | {name: np.stack([one[i] for i in range(len(one))]) for name, one in parts.items()}


def unnumbered(name):
    """The name of a branch's matrix without the branch's number, and the number."""
    match = re.fullmatch(r"(.*\.experts)\.(\d+)(\..*)", name)
    return (match[1] + match[3], match[2]) if match else (name, "")


def add_metadata(writer, name, config):
    """The keys of one architecture."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_dim = config.get("head_dim") or hidden // heads
    rope = config.get("rope_parameters") or {}
    local, rope = rope.get("sliding_attention"), rope.get("full_attention", rope)
    if name in ENCODERS:
        add_encoder(writer, name, config, rope, local)
        return
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    if name == "deepseek2":
        add_latent(writer, config)
    elif name != "gemma4":
        writer.add_feed_forward_length(feed_forward_length(name, config))
        writer.add_head_count_kv(head_counts(name, config))
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps") or config["norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if name == "gemma4":
        add_gemma4(writer, config, rope, local)
        return
    if name not in PLUS_ONE and name != "deepseek2":
        writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if name in BOTH_WAYS:
        writer.add_causal_attention(False)
    if local and name in ("gemma3", "gemma-embedding"):
        writer.add_rope_freq_base_swa(local["rope_theta"])
    add_rope(writer, rope, config)
    for key, add in {
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "logits_scaling": writer.add_logit_scale,
    }.items():
        if config.get(key):
            add(config[key])
    if name.startswith("lfm2"):
        writer.add_vocab_size(config["vocab_size"])
        writer.add_shortconv_l_cache(config["conv_L_cache"])
    if name in ROUTED:
        add_routed(writer, name, config)
    elif count := config.get("num_experts") or config.get("num_local_experts"):
        writer.add_expert_count(count)
        writer.add_expert_used_count(config["num_experts_per_tok"])
        if width := config["intermediate_size"] if name == "gpt-oss" else config.get("moe_intermediate_size"):
            writer.add_expert_feed_forward_length(width)
        if width := config.get("shared_expert_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(width)
    windowed = (
        name in ("gemma2", "gemma3", "gemma-embedding", "olmo2", "exaone4", "phi3", "gpt-oss")
        or config["model_type"] == "mistral"
    )
    if windowed and (config.get("sliding_window") or name == "phi3"):
        writer.add_sliding_window(config.get("sliding_window") or 0)
        if name in ("olmo2", "exaone4"):
            writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])


def add_encoder(writer, name, config, rope, local):
    """Texts of RoBERTa's kind are that much shorter."""
    offset = 2 if "roberta" in config["model_type"] else 0
    writer.add_context_length(config["max_position_embeddings"] - offset)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["norm_eps" if name == "modern-bert" else "layer_norm_eps"])
    writer.add_token_type_count(config.get("type_vocab_size", 1))
    writer.add_causal_attention(False)
    writer.add_pad_token_id(config["pad_token_id"])
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if name == "modern-bert":
        writer.add_layer_norm_rms_eps(config["norm_eps"])
        writer.add_rope_freq_base_swa(local["rope_theta"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        writer.add_sliding_window(config["local_attention"])
        writer.add_sliding_window_pattern(3)


def feed_forward_length(name, config):
    """LFM2's is two thirds of what its config says, in whole blocks."""
    if name != "lfm2" or not config["block_auto_adjust_ff_dim"]:
        return config["intermediate_size"]
    width = int(config["block_ffn_dim_multiplier"] * int(2 * config["intermediate_size"] / 3))
    return -(-width // config["block_multiple_of"]) * config["block_multiple_of"]


def head_counts(name, config):
    """Layers of LFM2 without attention have none."""
    heads = config["num_key_value_heads"]
    return [heads * (kind != "conv") for kind in config["layer_types"]] if name.startswith("lfm2") else heads


def add_latent(writer, config):
    """Keys and values as they are kept, and as the heads see them."""
    rank, rotated = config["kv_lora_rank"], config["qk_rope_head_dim"]
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count_kv(1)
    writer.add_kv_lora_rank(rank)
    writer.add_key_length(rank + rotated)
    writer.add_value_length(rank)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rotated)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rotated)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_q_lora_rank(config["q_lora_rank"] or 0)  # without one llama.cpp opens models of 26 or 27 layers alone


def add_routed(writer, name, config):
    """What ranks branches, and what is shared."""
    is_v2 = config["model_type"] == "deepseek_v2"
    writer.add_expert_count(config.get("n_routed_experts") or config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_leading_dense_block_count(config.get("first_k_dense_replace", config.get("num_dense_layers", 0)))
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SOFTMAX if is_v2 else gguf.ExpertGatingFuncType.SIGMOID)
    if name == "lfm2moe":
        return
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    if not is_v2:
        writer.add_expert_weights_norm(config["norm_topk_prob"])
    if config.get("n_group"):
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])


def add_gemma4(writer, config, rope, local):
    """Layer by layer what differs; the rope of layers without a window is plain, but for its factors."""
    layers, shared, width = config["num_hidden_layers"], config["num_kv_shared_layers"], config["intermediate_size"]
    own = config["per_layer_config"]
    full, windowed = next(iter(own.values())), [kind == "sliding_attention" for kind in config["layer_types"]]
    wide = 2 if config["use_double_wide_mlp"] else 1
    writer.add_feed_forward_length([width] * (layers - shared) + [wide * width] * shared)
    heads = config["num_key_value_heads"]
    writer.add_head_count_kv([heads if is_ else full.get("num_key_value_heads", heads) for is_ in windowed])
    writer.add_shared_kv_layers(shared)
    writer.add_embedding_length_per_layer_input(config.get("hidden_size_per_layer_input") or 0)
    writer.add_sliding_window_pattern(windowed)
    writer.add_sliding_window(config["sliding_window"])
    for add, size in (("", full["head_dim"]), ("_swa", config["head_dim"])):
        for key in ("key_length", "value_length", "rope_dimension_count"):
            getattr(writer, f"add_{key}{add}")(size)
    writer.add_rope_freq_base_swa(local["rope_theta"])
    if config["final_logit_softcapping"]:
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])


def add_rope(writer, rope, config):
    """How the frequencies are scaled."""
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if config["model_type"].startswith("deepseek") and rope.get("mscale_all_dim"):
            writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
        if rope.get("attention_factor"):
            writer.add_rope_scaling_yarn_attn_factor(rope["attention_factor"])
        for key, add in (
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(key):
                add(rope[key])
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        ratio = config["max_position_embeddings"] / original
        writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0)


def factors(config):
    """Divisors of the frequencies, a number each, where the rope has them."""
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if not rope:
        return {}
    if rope["rope_type"] == "longrope":
        both = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: np.array(rope[key], np.float32) for name, key in both.items()}
    if rope["rope_type"] == "proportional":
        size = next(iter(config["per_layer_config"].values()))["head_dim"]
        turning = int(size * rope["partial_rotary_factor"] // 2)
        return {"rope_freqs.weight": np.array([1.0] * turning + [1e30] * (size // 2 - turning), np.float32)}
    if rope["rope_type"] != "llama3":
        return {}
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found = []
    for i in range(0, head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / head_dim)
        share = rope["original_max_position_embeddings"] / wave
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        smooth = min(max((share - low) / (high - low), 0.0), 1.0)
        found.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": np.array(found, np.float32)}


def imported(folder, tokenizer, tmp_path, kind, weights="keep", **how):
    """The file of a folder, what importing it reported, and the model that came out."""
    path = write(folder, tmp_path / f"{kind}.gguf", kind, **how)
    report = import_gguf(plan_import(path, weights), tmp_path / f"{kind}-{weights}", tokenizer)
    return path, report, open_model(report.folder)
