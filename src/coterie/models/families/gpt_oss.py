"""gpt-oss: branches with biases and clipped gates, attention with sinks, a window in every other layer.

Its files hold the matrices of all branches of a layer in one tensor, transposed, with gate and up interleaved;
transposed.py reads them, to write an ordinary folder. Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.branches import CLIP, CLIP_ALPHA, BranchKeys, BranchNames
from coterie.models.choice import ChoiceKeys
from coterie.models.family import Bias, Family, Names, Window

GPT_OSS = Family(
    model_type="gpt_oss",
    causal_class="GptOssForCausalLM",
    max_positions=131_072,
    num_kv_heads=8,
    head_dim=64,
    qkv_bias=Bias.UNLESS_OFF,
    o_bias=Bias.UNLESS_OFF,
    window=Window.BY_PATTERN,
    window_tokens=128,
    window_pattern=2,
    norm_eps=1e-5,
    rope_theta=150_000.0,
    default_rope={
        **{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False},
        "original_max_position_embeddings": 4096,
    },
    keys={"num_experts": "num_local_experts"},
    usual_first=("num_experts",),
    supported_keys=(CLIP, CLIP_ALPHA),
    branches=BranchKeys(
        128,
        4,
        choice=ChoiceKeys(normalises=True),
        clipped=(1.702, 7.0),
        names=BranchNames(
            chooser="mlp.router", stacked=(), transposed=("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
        ),
    ),
    names=Names(sinks="self_attn.sinks"),
)
