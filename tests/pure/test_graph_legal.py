"""Every op of every table refuses a result of another shape, operands of another type, and attributes out of range."""

from __future__ import annotations

from collections import defaultdict

import pytest
from tests.pure.graphs import change_op, change_value, decoder, gemma, of_family, the_op

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Times
from coterie.graph.eager.legal import EAGER_LEGAL
from coterie.graph.eager.rewrite import expand
from coterie.graph.ir import Kind
from coterie.graph.legal import LEGAL
from coterie.graph.shard import shard
from coterie.graph.verify import verify
from coterie.models.config import ModelConfig
from coterie.models.families.llava import llava_graph
from coterie.models.family import FeedForward
from coterie.models.monarch import fft_conv_graph, monarch_example
from coterie.models.registry import decoder_graph, weight_shapes
from coterie.models.zoo import zoo_config

LLAVA = llava_graph(zoo_config("llava-1.5-7b"), "llava", defaultdict(lambda: DType.BF16), DType.BF16)
WHOLE = [
    decoder(qkv_bias=True, o_bias=True, windows=(3, 0)),
    decoder(**of_family("bloom", num_kv_heads=4)),
    decoder(**of_family("falcon", head_dim=4)),
    decoder(**of_family("opt", num_kv_heads=4)),
    decoder(**gemma(2)),
    decoder(feed_forward=FeedForward.RELU_SQUARED),
    decoder(feed_forward=FeedForward.XIELU),
    shard(decoder(**of_family("bloom", num_kv_heads=4, vocab_size=40)), 2),
    LLAVA,
    fft_conv_graph((2, 3)),
    monarch_example(),
]
ENCODER = ModelConfig.from_hf(
    {
        **{"model_type": "mpnet", "architectures": ["MPNetModel"], "vocab_size": 31, "max_position_embeddings": 9},
        **{"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2},
    },
    "here",
)
GRAPHS = [
    *WHOLE,
    *(expand(graph) for graph in WHOLE),
    expand(decoder((DType.BF16,))),
    decoder_graph(ENCODER, dict.fromkeys(weight_shapes(ENCODER), DType.F32), samples_tokens=False),
]
# The first graph in which an op is found.
FIRST = {op.kind: (graph, op) for graph in reversed(GRAPHS) for op in reversed(graph.ops)}
NO_ACTIVATIONS = {"embed", "embed_part", "to_float", "mask", "alibi", "sample", "cast"}


def test_every_op_of_the_tables_is_in_some_graph():
    assert set(FIRST) == set(LEGAL) | set(EAGER_LEGAL)


@pytest.mark.parametrize("kind", FIRST)
def test_a_result_of_another_shape_is_refused(kind):
    graph, op = FIRST[kind]
    y = graph.values[op.outputs[0]]
    if y.kind is Kind.STATE:
        pytest.skip("the state has its own checks")
    wider = (*y.shape[:-1], y.shape[-1] + 1) if isinstance(y.shape[-1], int) else (*y.shape, 3)
    with pytest.raises(UsageError, match=r"shape|numbers|channels"):
        verify(change_value(graph, y.name, shape=wider))


@pytest.mark.parametrize("kind", sorted(set(FIRST) - NO_ACTIVATIONS))
def test_operands_of_two_types_are_refused(kind):
    graph, op = FIRST[kind]
    name = op.inputs[0]
    if graph.values[name].kind is not Kind.TENSOR:
        pytest.skip("its first operand is no activation")
    narrow = DType.F16 if graph.values[name].dtype is not DType.F16 else DType.F32
    with pytest.raises(UsageError, match="give the activations of an op one type") as caught:
        verify(change_value(graph, name, dtype=narrow))
    assert narrow.value in str(caught.value)
    assert name in str(caught.value)


OUT_OF_RANGE = {
    "take_heads": ({"of": 3, "first": 2, "count": 2}, "2 from 2 on of each 3"),
    "slice": ({"first": 2, "count": 9}, "9 from 2 on of 6 numbers"),
    "gelu": ({"form": "cubic"}, "its form is 'cubic'"),
    "group_attention": ({"group": 5, "scale": 1.0}, "not in groups of 5 rows"),
    "drop_first": ({"group": 5}, "not in groups of 5 rows"),
    "swap": ({"outer": 7, "middle": 1, "inner": 3}, "not in groups of 7 rows"),
    "all_reduce": ({"ranks": 1}, "1 ranks exchange nothing"),
    "embed_part": ({"first_row": -1}, "first_row is -1"),
    "embed": ({"scale": 0.0}, "its scale is 0.0"),
    "softcap": ({"cap": 0.0}, "its cap is 0.0"),
    "attention": ({"layer": 0, "scale": 1.0, "window": 0, "cap": -1.0}, "its cap is -1.0"),
    "rms_norm": ({"eps": 1e-6, "offset": float("nan")}, "its offset is nan"),
    "kv_cat": ({"layer": 0, "which": 2}, "which is 2"),
    "group_mix": ({"group": 5}, "not in groups of 5 rows"),
}


@pytest.mark.parametrize("kind", OUT_OF_RANGE)
def test_an_attribute_out_of_range_is_refused(kind):
    attrs, sentence = OUT_OF_RANGE[kind]
    graph, op = FIRST[kind] if kind != "gelu" else (WHOLE[1], the_op(WHOLE[1], "layers.0/gelu"))
    with pytest.raises(UsageError, match=sentence) as caught:
        verify(change_op(graph, op.name, attrs=attrs))
    assert op.name in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "attrs", "sentence"),
    [
        ("rope", {"scale": 1.0, "interleaved": 2}, "interleaved is 2; give 0 or 1"),
        ("attention", {"growth": 0.1}, "its growth is 0.1 every None; give a number above 0 and a number of tokens"),
        ("attention", {"every": 8}, "its growth is None every 8"),
        ("attention", {"growth": -0.1, "every": 8}, "its growth is -0.1 every 8"),
        ("attention", {"growth": 0.1, "every": 0}, "its growth is 0.1 every 0"),
    ],
)
def test_what_positions_do_is_in_range(kind, attrs, sentence):
    graph, op = FIRST[kind]
    with pytest.raises(UsageError, match=sentence):
        verify(change_op(graph, op.name, attrs={**op.attrs, **attrs}))


def test_constants_have_a_number_for_each_head():
    graph = change_value(WHOLE[1], "slopes", data=(0.5, 0.25))
    with pytest.raises(UsageError, match="slopes has 2 numbers; give a constant of 4"):
        verify(graph)


def test_keys_are_cached_once():
    graph = expand(decoder())
    with pytest.raises(UsageError, match="layer 0 of kv is appended to twice"):
        verify(change_op(graph, "layers.0/kv_append/values", attrs={"layer": 0, "which": 0}))
    late = change_op(expand(decoder()), "layers.1/kv_append/keys", attrs={"layer": 0, "which": 0})
    with pytest.raises(UsageError, match="layer 0 of kv is appended to twice"):
        verify(late)


def test_rows_of_a_sequence_do_not_mix_with_tokens():
    graph = change_value(WHOLE[0], "embed/x", shape=(Times(2), 12))
    with pytest.raises(UsageError, match="its first dimension must be T"):
        verify(graph)
