"""BERT and its relatives (RoBERTa, XLM-RoBERTa and others): post-norm encoders with learned positions.

Most embedding models are of these families: all-MiniLM, BGE, E5, GTE; multilingual-e5 and bge-m3. MPNet
(all-mpnet-base, multi-qa-mpnet) adds attention biases by distance, from one table shared by its layers. Nomic's BERT
(nomic-embed-text) has rope instead of a table of positions, and gated feed-forward blocks; so has GTE's
(gte-multilingual), in transformers' version.
Knows nothing about how an encoder is built (encoder_blocks.py).
"""

from dataclasses import replace

from coterie.models.encoder import EncoderKeys, HeadKeys
from coterie.models.family import FIXED_NTK, Bias, Family, FeedForward, Names, Norm

_KEYS = EncoderKeys(
    model="bert.",
    types="embeddings.token_type_embeddings.weight",
    required={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    head=(HeadKeys("pooler.dense", "tanh"), HeadKeys("classifier")),
)

BERT = Family(
    model_type="bert",
    causal_class="BertModel",
    max_positions=512,
    qkv_bias=Bias.ALWAYS,
    o_bias=Bias.ALWAYS,
    mlp_bias=Bias.ALWAYS,
    norm=Norm.LAYER,
    norm_eps=1e-12,
    feed_forward=FeedForward.GELU,
    feed_forwards={
        "gelu": FeedForward.GELU,
        "gelu_new": FeedForward.GELU_TANH,
        "gelu_pytorch_tanh": FeedForward.GELU_TANH,
    },
    activation_key="hidden_act",
    supported_keys=("hidden_act",),
    tied_embeddings=True,
    encoder=_KEYS,
    names=Names(
        embed="embeddings.word_embeddings.weight",
        embed_norm="embeddings.LayerNorm",
        positions="embeddings.position_embeddings.weight",
        types=_KEYS.types,
        layer="encoder.layer.{}.",
        q="attention.self.query",
        k="attention.self.key",
        v="attention.self.value",
        o="attention.output.dense",
        attention_out_norm="attention.output.LayerNorm",
        up="intermediate.dense",
        down="output.dense",
        feed_forward_out_norm="output.LayerNorm",
    ),
    keys={"rms_norm_eps": "layer_norm_eps"},
)

_OF_ROBERTA = replace(
    _KEYS,
    model="roberta.",
    first_position=2,  # positions 0 and 1 are for padding
    head=(HeadKeys("classifier.dense", "tanh"), HeadKeys("classifier.out_proj")),
)
ROBERTA = replace(
    BERT, model_type="roberta", causal_class="RobertaModel", max_positions=514, norm_eps=1e-12, encoder=_OF_ROBERTA
)
XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta", causal_class="XLMRobertaModel")

MPNET = replace(
    BERT,
    model_type="mpnet",
    causal_class="MPNetModel",
    encoder=replace(_OF_ROBERTA, model="mpnet.", types="", required={"relative_attention_num_buckets": 32}, buckets=32),
    names=replace(
        BERT.names,
        types="",
        distances="encoder.relative_attention_bias.weight",
        q="attention.attn.q",
        k="attention.attn.k",
        v="attention.attn.v",
        o="attention.attn.o",
        attention_out_norm="attention.LayerNorm",
    ),
)

# Jina's embeddings v2: ALiBi instead of a table of positions, and gated feed-forward blocks.
JINA_BERT = replace(
    BERT,
    model_type="jina_bert",
    causal_class="JinaBertModel",
    max_positions=8192,
    alibi=True,
    mlp_bias=Bias.NEVER,
    down_bias=True,
    feed_forward=FeedForward.GATED_GELU,
    feed_forwards={"gelu": FeedForward.GATED_GELU},
    encoder=replace(_KEYS, own_code=True, required={"position_embedding_type": "alibi", "feed_forward_type": "geglu"}),
    names=replace(
        BERT.names,
        positions="",
        gate="mlp.gate",
        up="mlp.up",
        down="mlp.wo",
        feed_forward_out_norm="mlp.layernorm",
        joined={"mlp.gated_layers": ("mlp.gate", "mlp.up")},
    ),
)

NOMIC_BERT = replace(
    BERT,
    model_type="nomic_bert",
    causal_class="NomicBertModel",
    max_positions=8192,
    qkv_bias=Bias.NEVER,
    o_bias=Bias.NEVER,
    mlp_bias=Bias.NEVER,
    feed_forward=FeedForward.GATED_SILU,
    feed_forwards={"swiglu": FeedForward.GATED_SILU},
    activation_key="activation_function",
    supported_keys=(),
    rope_theta=1000.0,
    encoder=replace(
        _KEYS,
        model="",
        own_code=True,
        head=(),
        required={
            **{"prenorm": False, "use_rms_norm": False, "parallel_block": False, "causal": False},
            **{"qkv_proj_bias": False, "mlp_fc1_bias": False, "mlp_fc2_bias": False, "rotary_emb_fraction": 1.0},
            **{"rotary_emb_interleaved": False, "rotary_emb_scale_base": None},
        },
        scaled_rope=("rotary_scaling_factor", "max_trained_positions", 2048),  # plain up to that length
    ),
    names=Names(
        embed="embeddings.word_embeddings.weight",
        embed_norm="emb_ln",
        types=_KEYS.types,
        layer="encoder.layers.{}.",
        q="attn.Wq",
        k="attn.Wk",
        v="attn.Wv",
        o="attn.out_proj",
        attention_out_norm="norm1",
        up="mlp.fc11",
        gate="mlp.fc12",
        down="mlp.fc2",
        feed_forward_out_norm="norm2",
        joined={"attn.Wqkv": ("attn.Wq", "attn.Wk", "attn.Wv")},
    ),
    keys={
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "max_position_embeddings": "n_positions",
        "rope_theta": "rotary_emb_base",
        "rms_norm_eps": "layer_norm_epsilon",
    },
    usual_first=(
        *("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size"),
        "max_position_embeddings",
    ),
)

# Jina's embeddings v3 in transformers' version, without the adapters that the original folders contain.
JINA_V3 = replace(
    XLM_ROBERTA,
    model_type="jina_embeddings_v3",
    causal_class="JinaEmbeddingsV3Model",
    max_positions=8194,
    norm_eps=1e-5,
    rope_theta=20_000.0,
    encoder=replace(_OF_ROBERTA, first_position=0, required=None),
    names=replace(
        NOMIC_BERT.names,
        q="mixer.Wq",
        k="mixer.Wk",
        v="mixer.Wv",
        o="mixer.out_proj",
        up="mlp.fc1",
        gate="",
        joined={"mixer.Wqkv": ("mixer.Wq", "mixer.Wk", "mixer.Wv")},
    ),
)

GTE = replace(
    BERT,
    model_type="gte",
    causal_class="GteModel",
    max_positions=8192,
    mlp_bias=Bias.NEVER,
    down_bias=True,
    feed_forward=FeedForward.GATED_GELU,
    feed_forwards={"gelu": FeedForward.GATED_GELU, "gelu_pytorch_tanh": FeedForward.GATED_GELU_TANH},
    rope_theta=160_000.0,
    rope_kinds={"ntk": FIXED_NTK},  # in Alibaba's own configs
    encoder=replace(
        _KEYS,
        model="gte.",
        older_prefix="new.",
        own_code=True,
        required={"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False},
    ),
    names=replace(
        BERT.names,
        positions="",
        q="attention.q_proj",
        k="attention.k_proj",
        v="attention.v_proj",
        o="attention.o_proj",
        attention_out_norm="attn_ln",
        up="mlp.up_proj",
        gate="mlp.gate_proj",
        down="mlp.down_proj",
        feed_forward_out_norm="mlp_ln",
        joined={
            "attention.qkv_proj": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
            "mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj"),
        },
    ),
)
