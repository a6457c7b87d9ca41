"""Encoders on the CPU's kernels and on the GPU's, interpreted: tokens that see all of their text.

Knows nothing about streams or where a GPU keeps things.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.interpreted import Bucket, inspect
from tests.device.random_expert import SHAPES, making, step_of

from coterie.core.dtypes import DType

# Heads of queries that share keys, widths that are no multiple of anything.
ENCODER = {
    **{"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "gelu", "layer_norm_eps": 1e-5},
    **{"rms_norm_eps": None, "type_vocab_size": 2},
}
# A window of 5 on each side of a token, on two layers of three.
WINDOWED = {
    **{"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "hidden_act": None, "rope_theta": None},
    **{"use_bidirectional_attention": True, "sliding_window": 10, "sliding_window_pattern": 3, "num_hidden_layers": 3},
    **{"tie_word_embeddings": True, "query_pre_attn_scalar": 8},
}
# Biases of attention by distance.
BIASED = {
    **{**ENCODER, "model_type": "mpnet", "architectures": ["MPNetModel"], "type_vocab_size": None},
}
SHAPES_HERE = {
    "encoder": ENCODER,
    "encoder-one-head": {**ENCODER, "num_attention_heads": 1, "num_key_value_heads": 1},
    "biased": BIASED,
    "biased-one-head": {**BIASED, "num_attention_heads": 1, "num_key_value_heads": 1},
    "windowed": WINDOWED,
}
TEXTS = ((4, 1), (1, 2), (12, 3), (70, 4))


@pytest.fixture
def make(monkeypatch):
    for name, shape in SHAPES_HERE.items():
        monkeypatch.setitem(SHAPES, name, shape)
    with making() as make_expert:
        yield make_expert


def whole(expert, *texts):
    """A step of whole texts with a row for each of their tokens."""
    step = step_of(*[(expert.prompt(*text), 0) for text in texts])
    count = len(step.tokens_T)
    return step.__class__(
        *(step.tokens_T, step.positions_T, step.sequence_T, step.block_tables_BM, step.lengths_B),
        *(np.arange(count, dtype=np.int32), (step.sampling[0],) * count, ((),) * count),
    )


def both(found, expected):
    """The vectors of both; of a program that draws tokens their logits."""
    name = "vectors" if "vectors" in found else "head/logits"
    return found[name], expected[name]


def close(found, expected, bound):
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("rule_set", ["none", "cache"])
@pytest.mark.parametrize("shape", SHAPES_HERE)
def test_the_cpu_gives_what_the_reference_gives(shape, rule_set, make):
    expert = make(shape, (DType.F32,), rule_set)
    for texts in (TEXTS, TEXTS[1:2], TEXTS[3:]):
        step = whole(expert, *texts)
        close(*both(expert.inspect(step), expert.expect(step)), 1e-5)


@pytest.mark.parametrize("dtypes", [(DType.F32,), (DType.F16, DType.F32), (DType.BF16, DType.Q8)], ids=str)
@pytest.mark.parametrize("shape", ["encoder", "biased", "windowed"])
def test_a_text_has_the_same_bits_alone_and_in_a_batch(shape, dtypes, make):
    expert = make(shape, dtypes)
    name = "head/logits" if shape == "windowed" else "vectors"
    together = expert.inspect(whole(expert, *TEXTS))[name]
    alone = [expert.inspect(whole(expert, text))[name] for text in TEXTS]
    np.testing.assert_array_equal(np.concatenate(alone), together)


@pytest.mark.parametrize("rule_set", ["none", "cache"])
@pytest.mark.parametrize("shape", SHAPES_HERE)
def test_a_gpus_kernels_give_what_the_reference_gives(shape, rule_set, make):
    expert = make(shape, (DType.F32,), rule_set)
    for texts in (TEXTS, TEXTS[1:2]):
        step = whole(expert, *texts)
        close(*both(inspect(expert, step), expert.expect(step)), 1e-5)
    step = whole(expert, *TEXTS[:2])
    padded = inspect(expert, step, most=Bucket(8, 3, 8, 500))
    close(*both(padded, expert.expect(step)), 1e-5)


def test_biases_of_the_farthest_stand_for_those_behind(make, monkeypatch):
    monkeypatch.setattr("coterie.models.distance.FARTHEST", 16)
    expert = make("biased", (DType.F32,))
    step = whole(expert, (2, 3), (70, 4))
    for found in (inspect(expert, step), expert.inspect(step)):
        close(*both(found, expert.expect(step)), 1e-5)


@pytest.mark.parametrize("shape", ["encoder", "biased"])
def test_a_gpus_kernels_round_as_those_of_decoders_do(shape, make):
    expert = make(shape, (DType.BF16,))
    step = whole(expert, *TEXTS)
    close(*both(inspect(expert, step), expert.expect(step)), 0.03)
