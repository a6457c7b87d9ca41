"""BERT and what is built like it (RoBERTa, XLM-RoBERTa): encoders with learned positions and norms behind the sums.

Most models for embeddings are such: all-MiniLM, BGE, E5, GTE; multilingual-e5 and bge-m3.
Knows nothing about how an encoder is built (encoder_blocks.py).
"""

from dataclasses import replace

from coterie.models.encoder import EncoderKeys
from coterie.models.family import Bias, Family, FeedForward, Names, Norm

_KEYS = EncoderKeys(
    model="bert.",
    types="embeddings.token_type_embeddings.weight",
    required={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
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
    runs=("hidden_act",),
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

_OF_ROBERTA = replace(_KEYS, model="roberta.", first_position=2)  # behind that of what fills texts up
ROBERTA = replace(
    BERT, model_type="roberta", causal_class="RobertaModel", max_positions=514, norm_eps=1e-12, encoder=_OF_ROBERTA
)
XLM_ROBERTA = replace(ROBERTA, model_type="xlm-roberta", causal_class="XLMRobertaModel")
