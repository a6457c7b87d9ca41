"""Configs with the keys that released checkpoints have: they open, and what would change the numbers is refused."""

import pytest

from coterie.core.errors import UnsupportedError
from coterie.models.config import ModelConfig

LEAST = {"vocab_size": 151_552, "hidden_act": "silu", "initializer_range": 0.02, "use_cache": True}
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
    "glm-4-9b-chat-hf": {
        **{"architectures": ["GlmForCausalLM"], "model_type": "glm", "hidden_size": 4096, "head_dim": 128},
        **{"intermediate_size": 13_696, "num_attention_heads": 32, "num_key_value_heads": 2, "num_hidden_layers": 40},
        **{"attention_bias": True, "max_position_embeddings": 131_072, "rope_theta": 10_000.0},
    },
}


def opened(name, **changes):
    return ModelConfig.from_hf({**LEAST, **RELEASED[name], **changes}, name)


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
    with pytest.raises(UnsupportedError, match="rope_interleaved = False is not run for glm4"):
        opened("GLM-4-9B-0414", rope_interleaved=False)
    with pytest.raises(UnsupportedError, match="rope_interleaved = True means interleaved rope, which is not run"):
        opened("glm-4-9b-chat-hf", model_type="llama", architectures=["LlamaForCausalLM"], rope_interleaved=True)
