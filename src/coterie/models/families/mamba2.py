"""Mamba-2: each layer is a state space and nothing else; there is no attention.

Positions do not matter, so the model sets no limit to a sequence's length; max_positions is our own bound.
Knows nothing about how a decoder is built (single_blocks.py).
"""

from coterie.models.family import Family, FeedForward, Names
from coterie.models.state_space import ScanKeys, ScanNames, Where

BACKBONE = (("backbone.", "model."), ("model.embeddings.", "model.embed_tokens."))
NAMES = ScanNames(place="mixer.")
KEYS = ScanKeys(
    groups=("n_groups", 8),
    taps=("conv_kernel", 4),
    expand=("expand", 2),
    conv_bias="use_conv_bias",
    bias="use_bias",
    names=NAMES,
    where=Where.ALL,
    heads=("num_heads", 128),
    dim=("head_dim", 64),
    state=("state_size", 128),
)

MAMBA2 = Family(
    model_type="mamba2",
    causal_class="Mamba2ForCausalLM",
    max_positions=1 << 20,
    head_dim=64,
    norm_eps=1e-5,
    feed_forward=FeedForward.GELU,  # unused: no layer has a feed-forward block
    state_spaces=KEYS,
    single_blocks=True,
    keys={"num_attention_heads": "num_heads", "rms_norm_eps": "layer_norm_epsilon"},
    names=Names(attention_norm="norm", norm="model.norm_f", joined=NAMES.parts, stored=BACKBONE),
)
