"""Every op that has a normal form, tile by tile: the models of the zoo in small, and random graphs walked in any order.

Knows nothing about time.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pytest
from graphs import STEADY, Choice, decoder, gemma, gpt, of_family, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from section_checks import check_outputs, check_plan, check_run, check_sockets, run_graph
from test_dataflow_interpret import lived, many
from test_dataflow_interpret_sockets import linked, sharded, training_sockets
from test_dataflow_interpret_sums import step_of
from test_dataflow_sections import SOCKET, chip

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Sizes
from coterie.dataflow.deadlock import shallow
from coterie.dataflow.interpret import Interpreter
from coterie.dataflow.mapping import Mapped, map_section
from coterie.dataflow.nest import NESTS
from coterie.dataflow.sections import sections_of
from coterie.graph.branch.ops import BRANCH_OPS
from coterie.graph.delta_net.ops import DELTA_OPS
from coterie.graph.eager.ops import EAGER_OPS
from coterie.graph.eager.rewrite import expand
from coterie.graph.ir import GraphBuilder, Kind
from coterie.graph.latent.ops import LATENT_OPS
from coterie.graph.layer.ops import LAYER_OPS
from coterie.graph.ops import BF16, OPS
from coterie.graph.reference import KvState, Reference
from coterie.graph.rounding import with_rounding
from coterie.graph.scan.ops import SCAN_OPS
from coterie.models.families.llava import llava_graph
from coterie.models.family import FeedForward, Names
from coterie.models.monarch import fft_conv_graph, monarch_example
from coterie.models.rope import Rope

IMAGE = 59
LLAVA = {
    "model_type": "llava",
    "image_token_index": IMAGE,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "text_config": {
        **{"model_type": "llama", "vocab_size": 60, "hidden_size": 24, "intermediate_size": 40},
        **{"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
        **{"rms_norm_eps": 1e-5, "tie_word_embeddings": False},
    },
    "vision_config": {
        **{"model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 36, "num_hidden_layers": 2},
        **{"num_attention_heads": 2, "image_size": 6, "patch_size": 2, "hidden_act": "quick_gelu"},
    },
}
PATCHES = 9


def seen(images):
    """A step that reads a prompt with an image for each sequence: its graph, values before and after, and sizes."""
    graph, dice = llava_graph(LLAVA, "tiny", defaultdict(lambda: DType.F32), DType.F32), np.random.default_rng(2)
    prompt = [5, *[IMAGE] * PATCHES, 7, 11]
    n = len(prompt)
    rows = {
        "tokens": np.array(prompt * images),
        "positions": np.tile(np.arange(n), images),
        "sequence": np.repeat(np.arange(images), n),
        "block_tables": np.arange(3 * images).reshape(images, 3),
        "rows": np.arange(n * images),
        "patches": dice.standard_normal((PATCHES * images, 12)).astype(np.float32),
    }
    weights = random_weights(graph)
    values = Reference(graph, weights).run(rows, [Choice()] * n * images, KvState(graph, 3 * images, 4))
    sizes = Sizes(n * images, images, n * images, n * images, images * n * (n + 1) // 2)
    return graph, values, KvState(graph, 3 * images, 4), sizes


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("how", ["best", "stage"])
def test_a_model_that_sees_is_its_reference_tile_by_tile(images, how):
    graph, values, state, sizes = seen(images)
    plan = sections_of(graph, sizes, chip(pcus=60, pmus=200), how, share_equal=False)
    known = check_plan(graph, plan, values, state, [Choice()] * sizes.R, block=3)
    np.testing.assert_array_equal(known["next_tokens"], values["next_tokens"])


FAMILIES = {
    "growing": {
        **{"rope": Rope("default", (), 1.0, 512, growth=0.4, growth_step=2), "interleaved": True},
        "feed_forward": FeedForward.RELU_SQUARED,
    },
    "sinks": {"names": Names(sinks="self_attn.sinks"), "windows": (3, 0)},
    "bloom": of_family("bloom", num_kv_heads=4),
    "falcon": of_family("falcon", num_kv_heads=2, head_dim=4),
    "falcon with two norms": of_family("falcon", num_kv_heads=1, head_dim=4, parallel_norms=2),
    "opt": of_family("opt", num_kv_heads=4, density=0.5),
    **{f"gemma {n}": gemma(n) for n in (1, 2, 3)},
    "olmo2": of_family("olmo2"),
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("sequences", "past", "tokens"), [(1, 0, 7), (3, 5, 1), (2, 2, 4)])
def test_families_are_their_references_tile_by_tile(name, sequences, past, tokens):
    """ALiBi, parallel attention, fused projections, learned positions, sparse weights."""
    graph = decoder(**FAMILIES[name])
    state, values, sizes = many(graph, sequences, past, tokens)
    plan = sections_of(graph, sizes, chip(pmus=120), share_equal=False)
    check_plan(graph, plan, values, state, [Choice()] * sizes.R, block=3)


@pytest.mark.parametrize("changes", [{}, gemma(2), {"names": Names(sinks="self_attn.sinks")}])
def test_what_is_rounded_to_bfloat16_is_rounded_in_sections_too(changes):
    """All keys of a token in one block, so that exponentials are rounded beside the largest of all."""
    graph = with_rounding(decoder((DType.BF16,), **changes), BF16)
    state, values, sizes = many(graph, 2, 3, 4)
    plan = sections_of(graph, sizes, chip(pmus=120), share_equal=False)
    check_plan(graph, plan, values, state, [Choice()] * sizes.R, block=16)


def interpreted():
    """Kinds of the ops of plans that run as they must."""
    for graph in (decoder(), *(decoder(**FAMILIES[name]) for name in ("bloom", "falcon", "opt", "gemma 2", "growing"))):
        _, state, values, sizes = lived(graph, 2, 3)
        plan = sections_of(graph, sizes, chip(pmus=120), share_equal=False)
        check_plan(graph, plan, values, state, [Choice()] * sizes.R)
        yield graph
    graph, values, state, sizes = seen(1)
    check_plan(
        graph, sections_of(graph, sizes, chip(pcus=60, pmus=200), share_equal=False), values, state, [Choice()] * 12
    )
    yield graph
    for graph in (fft_conv_graph((3, 2), DType.F32), monarch_example(DType.F32)):
        sizes, dice = Sizes.prefill(1, 1), np.random.default_rng(0)
        values = {v.name: v for v in graph.values.values() if v.kind in (Kind.INPUT, Kind.WEIGHT)}
        values = {n: dice.standard_normal([sizes.of(d) for d in v.shape]).astype(np.float32) for n, v in values.items()}
        plan = sections_of(graph, sizes, SOCKET)
        check_plan(graph, plan, run_graph(graph, values), rtol=1e-3, atol=1e-2)
        yield graph
    for graph in (decoder(num_layers=1, windows=(0,), residual_scale=0.7), gpt("tanh", 1.0)):
        train, values, sizes = step_of(graph, (5,))
        plan = sections_of(train, sizes, chip(pmus=160), share_equal=False)
        check_plan(train, plan, values, KvState(train, 64, 4), rtol=5e-4)
        yield train
    graphs, parts, states, _, sizes = sharded(decoder(vocab_size=40, o_bias=True), 2, 0, (3,))
    plans = [sections_of(g, sizes, linked(pmus=120), "best", 2, share_equal=False) for g in graphs]
    check_sockets(graphs, plans, parts, states, [Choice()] * sizes.R)
    yield graphs[0]
    yield from training_sockets(decoder(num_kv_heads=4, vocab_size=40, num_layers=1, windows=(0,)), 2, (3,), "best")[0]


def test_every_op_that_has_a_normal_form_is_interpreted():
    kinds = {op.kind for graph in interpreted() for op in graph.ops}
    assert kinds == set(NESTS)


def test_the_kernels_of_pytorch_have_no_normal_form_and_are_refused_by_name():
    # A scale is what the gradient of a scaled product has too; which branches are read is not known before a step; a
    # delta net or a state space takes one token after the other; what layers have of their own, biases by distance and
    # xielu are not mapped yet.
    others = set(BRANCH_OPS) | set(DELTA_OPS) | set(LATENT_OPS) | set(LAYER_OPS) | set(SCAN_OPS)
    others |= {"relative_attention", "xielu"}
    assert set(OPS) - set(NESTS) == (set(EAGER_OPS) - {"scale"}) | others
    graph = expand(decoder())
    first = next(op for op in graph.ops if op.kind not in NESTS)
    with pytest.raises(UnsupportedError, match=rf"{re.escape(first.name)}\] op {first.kind} has no normal form"):
        sections_of(graph, Sizes.prefill(1, 4), chip())


class _Grown:
    """A random graph of rows and columns, grown op by op from what it has."""

    def __init__(self, draw):
        self.draw, self.b, self.count = draw, GraphBuilder("random", "s"), 0
        self.pool = [self.new((draw(SIZE), draw(SIZE)), Kind.INPUT)]

    def new(self, shape, kind=Kind.TENSOR):
        self.count += 1
        return self.b.value(f"v{self.count}", shape, DType.F32, kind)

    def weight(self, *shape):
        return self.new(shape, Kind.WEIGHT)

    def op(self, kind, inputs, shape, **attrs):
        y = self.new(shape)
        self.b.op(kind, f"op{self.count}", inputs, (y,), **attrs)
        return y

    def pick(self):
        return self.draw(st.sampled_from(self.pool[-4:]))

    def grow(self):
        x = self.pick()
        rows, columns = self.b.shape(x)
        kind = self.draw(st.sampled_from(KINDS))
        self.pool.append(getattr(self, kind)(x, rows, columns))

    def linear(self, x, rows, columns):
        n = self.draw(SIZE)
        bias = self.weight(n) if self.draw(st.booleans()) else ""
        return self.op("linear", (x, self.weight(n, columns), bias), (rows, n))

    def linear_dx(self, x, rows, columns):
        k = self.draw(SIZE)
        return self.op("linear_dx", (x, self.weight(columns, k)), (rows, k))

    def linear_dw(self, x, rows, columns):
        others = [y for y in self.pool if self.b.shape(y)[0] == rows]
        y = self.draw(st.sampled_from(others))
        if y == x:
            return self.unary(x, rows, columns)
        return self.op("linear_dw", (x, y, ""), (columns, self.b.shape(y)[1]))

    def unary(self, x, rows, columns):
        return self.op(self.draw(st.sampled_from(["silu", "relu"])), (x,), (rows, columns))

    def norm(self, x, rows, columns):
        return self.op("rms_norm", (x, self.weight(columns)), (rows, columns), eps=1e-3)

    def join(self, x, rows, columns):
        others = [y for y in self.pool if self.b.shape(y) == (rows, columns) and y != x]
        if not others:
            return self.unary(x, rows, columns)
        kind = self.draw(st.sampled_from(["add", "sub", "mul"]))
        return self.op(kind, (x, self.draw(st.sampled_from(others))), (rows, columns))

    def table(self, x, rows, columns):
        size = rows // self.draw(st.sampled_from([n for n in range(1, rows + 1) if rows % n == 0]))
        kind = self.draw(st.sampled_from(["mul_table", "add_table"]))
        return self.op(kind, (x, self.weight(size, columns)), (rows, columns))

    def swap(self, x, rows, columns):
        middle = self.draw(st.sampled_from([n for n in (1, 2, 3) if rows % n == 0]))
        outer = self.draw(st.sampled_from([n for n in range(1, rows // middle + 1) if rows // middle % n == 0]))
        shape = (rows * columns // outer, outer)
        return self.op("swap", (x,), shape, outer=outer, middle=middle, inner=columns)

    def groups(self, x, rows, columns):
        if rows == 1:
            return self.unary(x, rows, columns)
        group = self.draw(st.sampled_from([n for n in range(2, rows + 1) if rows % n == 0]))
        if self.draw(st.booleans()):
            return self.op("drop_first", (x,), (rows // group * (group - 1), columns), group=group)
        shape = (rows // group * (group + 1), columns)
        return self.op("first_row", (x, self.weight(columns)), shape, group=group)

    def attention(self, x, rows, columns):
        if rows == 1:
            return self.unary(x, rows, columns)
        group = self.draw(st.sampled_from([n for n in range(2, rows + 1) if rows % n == 0]))
        shape = (rows, 2, 3)
        parts = tuple(self.op("linear", (x, self.weight(6, columns), ""), shape) for _ in "qkv")
        y = self.op("group_attention", parts, shape, group=group, scale=0.5)
        heads = self.op("take_heads", (y,), (rows, 1, 3), of=2, first=self.draw(st.integers(0, 1)), count=1)
        return self.op("linear", (heads, self.weight(columns, 3), ""), (rows, columns))


SIZE = st.sampled_from([2, 3, 4, 6, 8, 12])
KINDS = [
    *("linear", "linear", "linear_dx", "linear_dw", "unary", "norm", "join", "join"),
    *("table", "swap", "swap", "groups", "attention"),
]


@st.composite
def grown(draw):
    """A graph of two to nine ops."""
    graph = _Grown(draw)
    for _ in range(draw(st.integers(2, 9))):
        graph.grow()
    return graph.b.build()


@settings(STEADY, max_examples=60)
@given(grown(), st.sampled_from([None, 1, 2, 3, 4, 6]), st.integers(0, 99), st.integers(1, 5))
def test_random_graphs_are_their_references_tile_by_tile(graph, tiles, seed, block):
    sizes, dice = Sizes.prefill(1, 1), np.random.default_rng(seed)
    entering = [v for v in graph.values.values() if v.kind in (Kind.INPUT, Kind.WEIGHT)]
    values = {v.name: 0.5 * dice.standard_normal(v.shape).astype(np.float32) for v in entering}
    wanted = run_graph(graph, values)
    mapped = map_section(graph, graph.ops, sizes, SOCKET, tiles=tiles)
    assert isinstance(mapped, Mapped)
    ran = Interpreter(graph, mapped, key_block=block).run(values)
    check_run(ran, mapped)
    check_outputs(ran, wanted, rtol=1e-3, atol=1e-3)
    read = {name for op in graph.ops for name in op.inputs}
    assert set(ran.outputs) == {name for op in graph.ops for name in op.outputs if name not in read}
    assert not shallow(mapped.machine())
    assert mapped.l0_s <= mapped.l1_s <= mapped.l2_s() * (1 + 1e-9)


def rows_of(kind, inputs, out, **attrs):
    """A graph of one op on rows and weights of these shapes."""
    b = GraphBuilder("one", "s")
    names = [b.value(n, s, DType.F32, Kind.INPUT if n == "x" else Kind.WEIGHT) for n, s in inputs.items()]
    b.value("y", out, DType.F32, Kind.OUTPUT)
    b.op(kind, "op", tuple(names), ("y",), **attrs)
    graph, dice = b.build(), np.random.default_rng(0)
    return graph, {n: dice.standard_normal(s).astype(np.float32) for n, s in inputs.items()}


@pytest.mark.parametrize(
    ("kind", "rows", "out", "attrs"),
    [
        ("swap", (6, 4), (8, 3), {"outer": 3, "middle": 2, "inner": 4}),
        ("drop_first", (6, 4), (4, 4), {"group": 3}),
        ("take_heads", (5, 6, 2), (5, 4, 2), {"of": 3, "first": 1, "count": 2}),
    ],
)
def test_a_section_of_a_view_alone_copies(kind, rows, out, attrs):
    graph, values = rows_of(kind, {"x": rows}, out, **attrs)
    mapped = map_section(graph, graph.ops, Sizes.prefill(1, 1), SOCKET)
    assert isinstance(mapped, Mapped)
    assert [stage.kind for stage in mapped.stages] == [kind]
    assert 0 < mapped.l0_s <= mapped.l1_s <= mapped.l2_s()
    ran = Interpreter(graph, mapped).run(values)
    check_run(ran, mapped)
    check_outputs(ran, run_graph(graph, values))
    assert ran.moved == {**dict.fromkeys(ran.moved, 0), "input": ran.moved["output"], "output": 4 * int(np.prod(out))}


def test_a_row_before_each_of_many_small_groups():
    """More groups than rows in each: (3 + 1) * 5 rows of five groups of three."""
    graph, values = rows_of("first_row", {"x": (15, 4), "row": (4,)}, (20, 4), group=3)
    mapped = map_section(graph, graph.ops, Sizes.prefill(1, 1), SOCKET, tiles=5)
    assert isinstance(mapped, Mapped)
    assert (mapped.walk.loops, mapped.walk.tiles_of(0)) == (("g",), 5)
    ran = Interpreter(graph, mapped).run(values)
    check_run(ran, mapped)
    check_outputs(ran, run_graph(graph, values))


@pytest.mark.long
def test_a_thousand_random_graphs():
    claim = test_random_graphs_are_their_references_tile_by_tile.hypothesis.inner_test
    cases = (grown(), st.sampled_from([None, 1, 2, 3, 4, 6]), st.integers(0, 99), st.integers(1, 5))
    settings(STEADY, max_examples=1000)(given(*cases)(claim))()
