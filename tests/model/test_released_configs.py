"""Configs with the keys that released checkpoints have: they open, and what would change the numbers is refused."""

import pytest

from coterie.core.errors import UnsupportedError
from coterie.models.config import ModelConfig

MINIMAL = {"vocab_size": 151_552, "hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
RELEASED = {
    "ERNIE-4.5-0.3B": {
        **{"architectures": ["Ernie4_5ForCausalLM"], "model_type": "ernie4_5", "hidden_size": 1024, "head_dim": 128},
        **{"intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 2, "num_hidden_layers": 18},
        **{"rms_norm_eps": 1e-5, "rope_theta": 500_000.0, "rope_scaling": None, "use_bias": False},
        **{"max_position_embeddings": 131_072, "tie_word_embeddings": True, "torch_dtype": "bfloat16"},
    },
    "GLM-4-9B-0414": {
        **{"architectures": ["Glm4ForCausalLM"], "model_type": "glm4", "hidden_size": 4096, "head_dim": 128},
        **{"intermediate_size": 13_696, "num_attention_heads": 32, "num_key_value_heads": 2, "num_hidden_layers": 40},
        **{"attention_bias": False, "attention_dropout": 0.0, "partial_rotary_factor": 0.5, "rope_theta": 10_000.0},
        **{"max_position_embeddings": 32_768, "rms_norm_eps": 1e-5, "pad_token_id": 151_329},
    },
    "Ministral-3-8B-Base-2512": {
        **{"architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3", "image_token_index": 10},
        **{"multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2},
        **{"vision_feature_layer": -1, "vision_config": {"model_type": "pixtral", "hidden_size": 1024}},
        "text_config": {
            **{"model_type": "ministral3", "hidden_size": 4096, "head_dim": 128, "intermediate_size": 14_336},
            **{"num_attention_heads": 32, "num_hidden_layers": 34, "num_key_value_heads": 8, "vocab_size": 131_072},
            **{"max_position_embeddings": 262_144, "rms_norm_eps": 1e-5, "sliding_window": None, "hidden_act": "silu"},
            "rope_parameters": {
                **{"rope_type": "yarn", "type": "yarn", "factor": 16.0, "rope_theta": 1_000_000.0, "mscale": 1.0},
                **{"original_max_position_embeddings": 16_384, "beta_fast": 32.0, "beta_slow": 1.0},
                **{"mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
            },
        },
    },
    "granite-4.0-micro": {
        **{"architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid", "hidden_size": 2560},
        **{"num_attention_heads": 40, "num_key_value_heads": 8, "num_hidden_layers": 40, "intermediate_size": 8192},
        **{"shared_intermediate_size": 8192, "layer_types": ["attention"] * 40, "num_local_experts": 0},
        **{"num_experts_per_tok": 0, "router_aux_loss_coef": 0.01, "output_router_logits": False},
        **{"mamba_n_heads": 128, "mamba_d_state": 256, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_d_head": 40},
        **{"mamba_chunk_size": 256, "mamba_conv_bias": True, "mamba_proj_bias": False, "mamba_n_groups": 1},
        **{"attention_multiplier": 0.015625, "embedding_multiplier": 12, "logits_scaling": 10.0},
        **{"residual_multiplier": 0.22, "attention_bias": False, "attention_dropout": 0.0, "init_method": "mup"},
        **{"normalization_function": "rmsnorm", "position_embedding_type": "rope", "rope_theta": 10_000_000},
        **{"rope_scaling": None, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "vocab_size": 100_352},
        "max_position_embeddings": 131_072,
    },
    "Hunyuan-7B-Instruct": {
        **{"architectures": ["HunYuanDenseV1ForCausalLM"], "model_type": "hunyuan_v1_dense", "hidden_size": 4096},
        **{"intermediate_size": 14_336, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32},
        **{"head_dim": 128, "attention_head_dim": 128, "use_qk_norm": True, "use_cla": False, "cla_share_factor": 2},
        **{"mlp_bias": False, "attention_bias": False, "norm_type": "rms", "max_position_embeddings": 32_768},
        **{"rope_theta": 10_000.0, "tie_word_embeddings": True, "pretraining_tp": 1, "org_vocab_size": 128_167},
        "rope_scaling": {
            **{"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0},
            "mscale_all_dim": 0.0,
        },
    },
    "AFM-4.5B": {
        **{"architectures": ["ArceeForCausalLM"], "model_type": "arcee", "hidden_act": "relu2", "hidden_size": 2560},
        **{"intermediate_size": 18_432, "num_attention_heads": 20, "num_key_value_heads": 4, "num_hidden_layers": 36},
        **{"head_dim": 128, "attention_bias": False, "mlp_bias": False, "max_position_embeddings": 65_536},
        "rope_scaling": {
            **{"rope_type": "yarn", "type": "yarn", "factor": 20.0, "original_max_position_embeddings": 4096},
            **{"beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0},
        },
    },
    "glm-4-9b-chat-hf": {
        **{"architectures": ["GlmForCausalLM"], "model_type": "glm", "hidden_size": 4096, "head_dim": 128},
        **{"intermediate_size": 13_696, "num_attention_heads": 32, "num_key_value_heads": 2, "num_hidden_layers": 40},
        **{"attention_bias": True, "max_position_embeddings": 131_072, "rope_theta": 10_000.0},
    },
}


def opened(name, **changes):
    return ModelConfig.from_hf({**MINIMAL, **RELEASED[name], **changes}, name)


@pytest.mark.parametrize(
    ("name", "biased", "rotated", "tied"),
    [
        ("ERNIE-4.5-0.3B", (False, False, False), 128, True),
        ("GLM-4-9B-0414", (False, False, False), 64, False),
        ("glm-4-9b-chat-hf", (True, False, False), 64, False),
    ],
)
def test_neighbours_are_turned(name, biased, rotated, tied):
    c = opened(name)
    assert (c.qkv_bias, c.o_bias, c.mlp_bias) == biased
    assert (2 * len(c.rope.inv_freq), c.rope.interleaved, c.tied_embeddings) == (rotated, True, tied)
    assert (c.head_dim, c.num_kv_heads) == (128, 2)


def test_what_changes_the_numbers():
    assert opened("ERNIE-4.5-0.3B", use_bias=True).mlp_bias
    assert opened("ERNIE-4.5-0.3B", head_dim=None).head_dim == 64
    with pytest.raises(UnsupportedError, match="rope_interleaved = False is not supported for glm4"):
        opened("GLM-4-9B-0414", rope_interleaved=False)
    with pytest.raises(
        UnsupportedError, match="rope_interleaved = True means interleaved rope, which is not supported"
    ):
        opened("glm-4-9b-chat-hf", model_type="llama", architectures=["LlamaForCausalLM"], rope_interleaved=True)


def test_queries_that_grow():
    c = opened("Ministral-3-8B-Base-2512")
    rope = c.rope
    assert (c.family, rope.kind, rope.scale, rope.growth, rope.growth_step) == ("ministral3", "yarn", 1, 0.1, 16_384)
    assert (c.max_context, set(c.windows), c.tied_embeddings) == (262_144, {0}, False)
    text = RELEASED["Ministral-3-8B-Base-2512"]["text_config"]
    with pytest.raises(UnsupportedError, match=r"llama_4_scaling_beta = 0.1 means queries that grow .* for mistral"):
        ModelConfig.from_hf({**text, "model_type": "mistral"}, "config.json")


def test_granite_4_that_is_dense():
    c = opened("granite-4.0-micro")
    assert (c.intermediate_size, c.head_dim, c.layers_without_rope, c.tied_embeddings) == (8192, 64, (), True)
    assert (c.embed_scale, c.attention_scale, c.residual_scale, c.logits_scale) == (12, 0.015625, 0.22, 0.1)
    for nope in ({"position_embedding_type": "nope"}, {"position_embedding_type": None}):
        assert opened("granite-4.0-micro", **nope).layers_without_rope == tuple(range(40))
    assert (c.state_spaces, c.branches) == (None, None)
    for types, layers in ((["mamba"] * 36 + ["attention"] * 4, 36), (None, 40)):
        assert len(opened("granite-4.0-micro", layer_types=types).state_spaces.layers) == layers
    for said, count in ((None, 8), (62, 62)):
        assert opened("granite-4.0-micro", num_local_experts=said, num_experts_per_tok=2).branches.count == count
    with pytest.raises(UnsupportedError, match="shared_intermediate_size is missing"):
        opened("granite-4.0-micro", shared_intermediate_size=None)


def test_arcee():
    c = opened("AFM-4.5B")
    assert (c.feed_forward.value, c.rope.kind, c.max_context) == ("relu_squared", "yarn", 81_920)
    with pytest.raises(UnsupportedError, match="hidden_act 'silu' is not supported for arcee; Coterie runs relu2"):
        opened("AFM-4.5B", hidden_act="silu")


def test_hunyuan():
    c, plain = opened("Hunyuan-7B-Instruct"), opened("Hunyuan-7B-Instruct", rope_scaling=None)
    assert (c.qk_norm_after_rope, c.max_context, c.tied_embeddings) == (True, 32_768, True)
    last = 10_000.0 ** (-126 / 128)
    assert plain.rope.inv_freq[-1] == pytest.approx(last, rel=1e-6)
    assert c.rope.inv_freq[-1] == pytest.approx(last / 1000, rel=1e-6)  # 1000 ** (128 / 126 * 126 / 128)
    for off in ({"use_qk_norm": False}, {"use_cla": True}):
        with pytest.raises(UnsupportedError, match="is not supported for hunyuan_v1_dense"):
            opened("Hunyuan-7B-Instruct", **off)
