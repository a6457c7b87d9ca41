"""Phi-3 and Phi-4 (dense): Llama whose files join q, k and v, and gate and up; rope may be partial.

Knows nothing about how a decoder is built (blocks.py).
"""

from coterie.models.family import NAMES, Family, Names, Window

PHI3 = Family(
    model_type="phi3",
    causal_class="Phi3ForCausalLM",
    max_positions=4096,
    original_positions=4096,
    norm_eps=1e-5,
    window=Window.EVERY_LAYER,
    window_tokens=None,
    rope_kinds={"su": "longrope", "yarn": "longrope"},
    partial_rope=True,
    names=Names(
        joined={
            "self_attn.qkv_proj": (NAMES.q, NAMES.k, NAMES.v),
            "mlp.gate_up_proj": (NAMES.gate, NAMES.up),
        }
    ),
)
