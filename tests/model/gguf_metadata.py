"""The metadata of GGUF files as llama.cpp's converters write it: sizes, ropes, branches, and what families add."""

import math

import gguf

ROUTED = ("glm4moe", "lfm2moe", "deepseek2")
ENCODERS = ("bert", "nomic-bert", "modern-bert")
BOTH_WAYS = ("gemma-embedding", "eurobert")
PLUS_ONE = ("gemma", "gemma2", "gemma3", "gemma-embedding")


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
