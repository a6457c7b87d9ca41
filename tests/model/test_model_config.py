"""Config keys become serving names, of every family, rope and key style."""

import json

import pytest
import torch
import transformers
from tests.model import tiny
from tests.model.configs import RAW, config, family

from coterie.core.errors import CheckpointError
from coterie.models.config import ModelConfig
from coterie.models.family import FeedForward


@pytest.mark.parametrize(
    ("model_type", "row"),
    [
        ("phi3", "Phi3"),
        ("smollm3", "SmolLM3"),
        ("granite", "Granite"),
        ("seed_oss", "SeedOss"),
        ("exaone4", "Exaone4"),
        ("ernie4_5", "Ernie4_5"),
        ("ministral", "Ministral"),
        ("ministral3", "Ministral3"),
        ("hunyuan_v1_dense", "HunYuanDenseV1"),
        ("glm", "Glm"),
        ("glm4", "Glm4"),
        ("helium", "Helium"),
        ("stablelm", "StableLm"),
        ("starcoder2", "Starcoder2"),
        ("phi", "Phi"),
    ],
)
def test_keys_that_are_left_out_mean_what_transformers_takes(model_type, row):
    """A config of the fewest keys, as the family's config class completes it."""
    least = {
        "model_type": model_type,
        "vocab_size": 61,
        "hidden_size": 256 if model_type in ("stablelm", "phi") else 64,
        "intermediate_size": 32,
    }
    least |= {"num_hidden_layers": 5, "num_attention_heads": 20 if model_type == "helium" else 32}
    whole = json.loads(getattr(transformers, f"{row}Config")(**least).to_json_string(use_diff=False))
    assert ModelConfig.from_hf(least, "config.json") == ModelConfig.from_hf(whole, "config.json")


def test_blocks_stand_side_by_side_where_the_config_says_so():
    rotated = {"head_dim": 16, "partial_rotary_factor": 0.25}
    assert family("stablelm", **rotated).parallel_norms == 0
    assert family("stablelm", **rotated, use_parallel_residual=True).parallel_norms == 1
    assert family("phi", **rotated, hidden_act="gelu_new").parallel_norms == 1


def test_serving_names():
    c = config()
    assert (c.family, c.vocab_size, c.hidden_size, c.intermediate_size) == ("llama", 257, 48, 68)
    assert (c.num_layers, c.num_heads, c.num_kv_heads, c.head_dim, c.norm_eps) == (2, 4, 2, 12, 1e-5)
    assert (c.windows, c.max_context, c.tied_embeddings) == ((0, 0), 64, False)
    assert (c.qkv_bias, c.o_bias, c.mlp_bias, c.qk_norm) == (False, False, False, False)


ROWS = ["llama-head20", "llama-head80", "qwen3", "llama-head6", "phi3-partial"]


@pytest.mark.parametrize(("row", "rope"), [case for case in tiny.EVERY_CASE if case[0] in ROWS])
def test_frequencies_are_those_of_transformers(row, rope):
    theirs = tiny.make(row, rope)
    ours = ModelConfig.from_hf(json.loads(theirs.config.to_json_string(use_diff=False)), "config.json").rope
    rotary = theirs.model.rotary_emb
    torch.testing.assert_close(torch.tensor(ours.inv_freq), rotary.inv_freq, rtol=3e-7, atol=0)
    assert ours.scale == pytest.approx(rotary.attention_scaling, rel=1e-12)


def test_older_and_newer_rope_keys_mean_the_same():
    for rope in (tiny.rope_of(name, 6) for name in tiny.ROPES):
        older = {key: value for key, value in rope.items() if key not in ("rope_theta", "rope_type")}
        wanted = config(rope_parameters=rope)
        assert config(rope_theta=rope["rope_theta"], rope_scaling={**older, "type": rope["rope_type"]}) == wanted
        assert config(rope_theta=rope["rope_theta"], rope_scaling={**older, "rope_type": rope["rope_type"]}) == wanted
    assert config(rope_scaling=None) == config(rope_theta=10000.0) == config(rope_parameters=None)
    assert config(rope_theta=500000) != config()


@pytest.mark.parametrize(
    ("rope", "wanted"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 64),
        ({"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 32}, 32),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}, 64),
        (
            {
                "rope_type": "llama3",
                "factor": 8,
                "low_freq_factor": 1,
                "high_freq_factor": 4,
                "original_max_position_embeddings": 16,
            },
            64,
        ),
        ({"rope_type": "longrope", "original_max_position_embeddings": 32, "short_factor": [1.5] * 6}, 32),
        ({"rope_type": "longrope", "original_max_position_embeddings": 99, "short_factor": [1] * 6}, 64),
    ],
)
def test_context_limits(rope, wanted):
    assert config(rope_parameters=rope).max_context == wanted


def test_defaults_of_each_family():
    assert config(drop=("num_key_value_heads",)).num_kv_heads == 4
    assert config(num_key_value_heads=None).num_kv_heads == 4
    assert family("mistral").windows == (4096, 4096)
    assert family("mistral", sliding_window=None).windows == (0, 0)
    assert family("mistral", sliding_window=9).windows == (9, 9)
    assert family("qwen2").windows == (0, 0)
    assert family("qwen2", sliding_window=9, use_sliding_window=False).windows == (0, 0)
    assert family("qwen2", sliding_window=9, use_sliding_window=True, max_window_layers=1).windows == (0, 9)
    assert family("qwen2", sliding_window=9, use_sliding_window=True).windows == (0, 0)
    types = ["sliding_attention", "full_attention"]
    assert family("qwen3", sliding_window=9, use_sliding_window=True, layer_types=types).windows == (9, 0)
    assert family("qwen3").head_dim == 128
    assert family("qwen3").qk_norm
    assert (family("qwen2").qkv_bias, family("qwen2").o_bias) == (True, False)
    assert (family("qwen3", attention_bias=True).qkv_bias, family("qwen3", attention_bias=True).o_bias) == (True, True)
    olmo2 = family("olmo2", attention_bias=True)
    assert (olmo2.qkv_bias, olmo2.o_bias, olmo2.mlp_bias, olmo2.qk_norm) == (True, True, False, True)
    assert olmo2.qk_norm_all_heads
    assert family("phi3").windows == family("phi3", sliding_window=None).windows == (0, 0)
    assert family("phi3", sliding_window=2047).windows == (2047, 2047)
    assert (family("phi3", drop=("rms_norm_eps",)).norm_eps, family("phi3").qkv_bias) == (1e-5, False)
    assert family("smollm3").layers_without_rope == family("smollm3", no_rope_layers=[1, 1]).layers_without_rope == ()
    assert family("smollm3", num_hidden_layers=9).layers_without_rope == (3, 7)
    assert family("smollm3", num_hidden_layers=3, no_rope_layer_interval=2).layers_without_rope == (1,)
    assert family("smollm3", no_rope_layers=[0, 1]).layers_without_rope == (0,)
    off, on = {"sliding_window": 9, "no_rope_layers": [1, 0]}, {"use_sliding_window": True}
    assert [family("smollm3", **off).windows, family("smollm3", **off, **on).windows] == [(0, 0), (0, 9)]
    assert family("smollm3", **off, **on, layer_types=types).windows == (9, 0)
    assert family("smollm3").tied_embeddings is False
    assert family("smollm3", drop=("tie_word_embeddings", "num_key_value_heads")).tied_embeddings
    assert family("smollm3").rope.inv_freq != config().rope.inv_freq == family("granite").rope.inv_freq
    assert (family("seed_oss").qkv_bias, family("seed_oss").o_bias, family("seed_oss").head_dim) == (True, False, 128)
    exaone = family("exaone4", num_hidden_layers=5)
    assert (exaone.windows, exaone.layers_without_rope) == ((4096, 4096, 4096, 0, 4096), (3,))
    exaone = family("exaone4", sliding_window=9, sliding_window_pattern="LG", layer_types=types)
    assert (exaone.windows, exaone.layers_without_rope) == ((9, 0), (1,))
    exaone = family("exaone4", sliding_window=None, sliding_window_pattern=None, layer_types=["full_attention"] * 2)
    assert (exaone.windows, exaone.layers_without_rope) == ((0, 0), ())
    plain = family("granite")
    assert (plain.embed_scale, plain.attention_scale, plain.residual_scale, plain.logits_scale) == (1, 1, 1, 1)
    assert config().attention_scale is None
    assert family("granite", logits_scaling=8.0).logits_scale == 0.125
    assert config(mlp_bias=True).mlp_bias
    assert config(drop=("model_type",)).family == "llama"
    assert config(hidden_act="swish") == config()


@pytest.mark.parametrize("name", ["Olmo2", "Olmo3", "Gemma", "Gemma2", "Gemma3Text", "VaultGemma"])
def test_what_a_config_leaves_out_is_what_transformers_takes(name):
    sizes = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 68, "num_hidden_layers": 13}
    sizes["num_attention_heads"] = 32
    theirs = getattr(transformers, f"{name}Config")(**sizes)
    everything = json.loads(theirs.to_json_string(use_diff=False))
    short = ModelConfig.from_hf({**sizes, "model_type": theirs.model_type}, "short")
    assert short == ModelConfig.from_hf(everything, "long")


GEMMA3 = {"model_type": "gemma3_text", "head_dim": 16, "sliding_window": 9}


def test_older_and_newer_keys_of_gemma3_mean_the_same():
    """Frequencies of both kinds of layers, as transformers has them; the context is what the scaling has given."""
    scaled = {"rope_type": "linear", "factor": 8.0}
    older = {"rope_scaling": scaled, "rope_theta": 3e5, "rope_local_base_freq": 7000.0, "sliding_window_pattern": 2}
    ropes = {"full_attention": {**scaled, "rope_theta": 3e5}, "sliding_attention": {"rope_theta": 7000.0}}
    types = ["sliding_attention", "full_attention"]
    found = config(drop=("architectures",), **GEMMA3, **older)
    assert found == config(drop=("architectures",), **GEMMA3, rope_parameters=ropes, layer_types=types)
    assert (found.windows, found.max_context) == ((9, 0), 64)
    plain = {key: RAW[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    theirs = transformers.Gemma3TextConfig(**plain, head_dim=16, **older, num_attention_heads=4, num_key_value_heads=2)
    rotary = transformers.Gemma3ForCausalLM(theirs).model.rotary_emb
    for rope, kind in ((found.rope, "full_attention"), (found.local_rope, "sliding_attention")):
        inv_freq = getattr(rotary, f"{kind}_inv_freq")
        torch.testing.assert_close(torch.tensor(rope.inv_freq), inv_freq, rtol=3e-7, atol=0)


def test_gelu_of_gemma_is_the_form_that_transformers_takes():
    assert family("gemma", hidden_act="gelu").feed_forward is FeedForward.GATED_GELU_TANH
    assert family("gemma2", hidden_activation="gelu").feed_forward is FeedForward.GATED_GELU
    assert family("gemma2", hidden_act="gelu").feed_forward is FeedForward.GATED_GELU_TANH
    assert family("gemma3_text", hidden_activation="silu").feed_forward is FeedForward.GATED_SILU


def test_caps_of_gemma2():
    capped = family("gemma2")
    assert (capped.attention_cap, capped.logits_cap, capped.attention_scale) == (50.0, 30.0, 1 / 16)
    free = family("gemma2", attn_logit_softcapping=None, final_logit_softcapping=None, query_pre_attn_scalar=4)
    assert (free.attention_cap, free.logits_cap, free.attention_scale) == (0.0, 0.0, 0.5)


def test_a_layer_with_a_window_that_is_off():
    with pytest.raises(CheckpointError, match="names sliding_attention without a window"):
        family("qwen2", layer_types=["sliding_attention", "full_attention"])
    with pytest.raises(CheckpointError, match="names sliding_attention without a window"):
        family("gemma2", sliding_window=None)
