"""ModernBERT: an encoder built like a decoder: norms before the blocks, gated gelu, a window in most layers.

The window reaches half of `local_attention` to each side; layers with one have a rope of their own. The first layer has
no norm before attention: the embedding has one. gte-modernbert and granite-embedding are of this family.
Knows nothing about how its graph is built (blocks.py).
"""

from coterie.models.encoder import EncoderKeys, HeadKeys
from coterie.models.family import Bias, Family, FeedForward, Names, Norm, Window

MODERNBERT = Family(
    model_type="modernbert",
    causal_class="ModernBertModel",
    max_positions=8192,
    qkv_bias=Bias.BY_CONFIG,
    o_bias=Bias.BY_CONFIG,
    mlp_bias=Bias.BY_CONFIG,
    norm=Norm.LAYER,
    norm_bias=False,
    norm_eps=1e-5,
    feed_forward=FeedForward.GATED_GELU,
    feed_forwards={"gelu": FeedForward.GATED_GELU, "gelu_pytorch_tanh": FeedForward.GATED_GELU_TANH},
    activation_key="hidden_activation",
    supported_keys=("hidden_activation",),
    window=Window.BY_PATTERN,
    window_pattern=3,
    pattern_key="global_attn_every_n_layers",
    pattern_first=0,
    window_tokens=128,
    both_sides_key="local_attention",
    rope_by_window=True,
    rope_theta=160_000.0,
    local_rope_theta=10_000.0,
    local_rope_key="local_rope_theta",
    tied_embeddings=True,
    encoder=EncoderKeys(
        model="model.",
        unread=("head.", "decoder.", "classifier."),
        post_norm=False,
        first_norm=False,
        head=(HeadKeys("head.dense", "gelu", "classifier_activation", "head.norm"), HeadKeys("classifier")),
        pools_by_config=True,
    ),
    names=Names(
        embed="embeddings.tok_embeddings.weight",
        embed_norm="embeddings.norm",
        layer="layers.{}.",
        attention_norm="attn_norm",
        feed_forward_norm="mlp_norm",
        q="attn.Wq",
        k="attn.Wk",
        v="attn.Wv",
        o="attn.Wo",
        gate="mlp.Wgate",
        up="mlp.Wup",
        down="mlp.Wo",
        norm="final_norm",
        joined={"attn.Wqkv": ("attn.Wq", "attn.Wk", "attn.Wv"), "mlp.Wi": ("mlp.Wgate", "mlp.Wup")},
    ),
    required={"norm_bias": False},
    keys={"rms_norm_eps": "norm_eps", "rope_theta": "global_rope_theta"},
)
