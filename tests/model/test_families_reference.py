"""Families that only modelled machines run: the reference gives what transformers gives, with equal random weights."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
import torch
from tests.pure.graphs import Choice
from transformers import AutoConfig, AutoModelForCausalLM

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.graph.reference import KvState, Reference
from coterie.models.config import ModelConfig
from coterie.models.model import open_model
from coterie.models.registry import decoder_graph

COMMON = {"vocab_size": 61, "hidden_size": 24}
FALCON = {"new_decoder_architecture": True, "parallel_attn": True, "alibi": False, "num_hidden_layers": 2}
OPT = {"num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 36, "word_embed_proj_dim": 24}
OPT |= {"max_position_embeddings": 16}
TINY = {
    "bloom": {"model_type": "bloom", **COMMON, "n_layer": 2, "n_head": 4},
    "bloom, 3 heads": {"model_type": "bloom", **COMMON, "n_layer": 2, "n_head": 3},
    "opt": {"model_type": "opt", **COMMON, **OPT, "activation_function": "relu"},
    "opt, gelu": {"model_type": "opt", **COMMON, **OPT, "activation_function": "gelu"},
    "falcon": {"model_type": "falcon", **COMMON, **FALCON, "num_attention_heads": 6, "num_kv_heads": 2, "bias": False},
    "falcon, biases": {
        "model_type": "falcon",
        **COMMON,
        **FALCON,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "bias": True,
    },
    "falcon, one norm": {
        **{"model_type": "falcon", **COMMON, **FALCON, "num_attention_heads": 4, "num_kv_heads": 4, "bias": False},
        "num_ln_in_parallel_attn": 1,
    },
}


def theirs(raw):
    """A random model of transformers in which no norm is the identity and no bias is zero."""
    raw = dict(raw)
    torch.manual_seed(0)
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", TINY)
def test_the_reference_agrees_with_transformers(name):
    raw, tokens = TINY[name], np.arange(11) * 7 % 61
    model = theirs(raw)
    with torch.no_grad():
        wanted = model(torch.tensor(tokens)[None]).logits[0].numpy()
    graph = decoder_graph(ModelConfig.from_hf(raw, name), defaultdict(lambda: DType.F32))
    weights = {key: value.numpy() for key, value in model.state_dict().items()}
    reference = Reference(graph, {value.name: weights[value.name] for value in graph.weights})
    state, found = KvState(graph, 4, 4), []
    for chunk in (tokens[:6], tokens[6:]):
        positions = np.arange(len(chunk)) + len(found)
        rows = {
            "tokens": chunk,
            "positions": positions,
            "sequence": np.zeros(len(chunk), int),
            "block_tables": np.array([[2, 0, 3, 1]]),
            "rows": np.arange(len(chunk)),
        }
        found += list(reference.run(rows, [Choice()] * len(chunk), state)["head/logits"])
    np.testing.assert_allclose(np.array(found), wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", ["bloom", "falcon", "opt"])
def test_a_checkpoint_is_refused_in_a_sentence(name, tmp_path):
    theirs(TINY[name]).save_pretrained(tmp_path)
    sentence = rf"config\.json\] {name} has ops that no real device has kernels for; only modelled machines run it"
    with pytest.raises(UnsupportedError, match=sentence):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("falcon", {"alibi": True}, "alibi"),
        ("falcon", {"new_decoder_architecture": False}, "new_decoder_architecture = False is not supported for falcon"),
        ("opt", {"activation_function": "tanh"}, "activation_function 'tanh' is not supported for opt"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before = False is not supported for opt"),
        ("opt", {"word_embed_proj_dim": 12}, "word_embed_proj_dim 12 beside hidden_size 24 is not supported for opt"),
        (
            "bloom",
            {"apply_residual_connection_post_layernorm": True},
            "post_layernorm = True is not supported for bloom",
        ),
    ],
)
def test_what_changes_the_numbers_is_refused(name, change, sentence):
    with pytest.raises(UnsupportedError, match=sentence):
        ModelConfig.from_hf({**TINY[name], **change}, name)
