"""Gradients by rules per op against differences of the loss, weight by weight.

Knows nothing about machines.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from graphs import GPTS, STEADY, TRAINABLE, Choice, Player, decoder, of_family, random_weights, with_values
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coterie.core.dtypes import DType
from coterie.core.errors import UnsupportedError
from coterie.core.shapes import Sizes, Symbol
from coterie.graph.backward.build import TARGETS, training_graph
from coterie.graph.cost import op_cost
from coterie.graph.ir import Kind, Value
from coterie.graph.reference import KvState, Reference, Step, run_op
from coterie.graph.verify import verify
from coterie.models.rope import Rope
from coterie.models.zoo import zoo_graph


def loss(graph, weights, rows, targets):
    """The mean cross-entropy of a forward pass, in float64 from its float32 logits."""
    state = KvState(graph, 64, 4)
    values = Reference(graph, weights).run(rows, [Choice()] * len(targets), state)
    logits = values["head/logits"].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(targets)), targets]))


SCALES = {"embed_scale": 3.5, "residual_scale": 0.6, "logits_scale": 0.25}


@settings(STEADY, max_examples=3)
@given(st.one_of(TRAINABLE, GPTS), st.integers(0, 99))
@example(decoder(rotated=4, qk_norm=True, layers_without_rope=(1,)), 1)
@example(decoder(qkv_bias=True, windows=(3, 0), **SCALES), 2)
def test_gradients_are_slopes_of_the_loss(graph, seed):
    train = training_graph(graph)
    verify(train)
    player, dice = Player(graph), np.random.default_rng(seed)
    V = graph.values["head/logits"].shape[-1]
    rows = player.rows((0, dice.integers(0, V, 5).tolist()), (1, dice.integers(0, V, 3).tolist()))
    targets = dice.integers(0, V, 8).astype(np.int32)
    weights = random_weights(graph)
    given_ = {**rows, TARGETS: targets}
    values = Reference(train, weights).run(given_, [], KvState(train, 64, 4))
    slopes = {v.name: values[v.name] for v in train.values.values() if v.kind is Kind.OUTPUT}
    assert len(slopes) == len(graph.weights), "one gradient for each weight"
    for name, weight in weights.items():
        (found,) = [slope for key, slope in slopes.items() if key.endswith(f".{name}")]
        assert found.shape == weight.shape
        way = dice.standard_normal(weight.shape).astype(np.float32)
        if graph.values[name].density != 1.0:
            assert not found[weight == 0].any(), "what is left out has no gradient"
            way[weight == 0] = 0
        way /= np.linalg.norm(way)
        ends = [
            loss(graph, {**weights, name: weight + sign * np.float32(2e-2) * way}, rows, targets) for sign in (1, -1)
        ]
        assert float((found * way).sum()) == pytest.approx((ends[0] - ends[1]) / 4e-2, abs=2e-3, rel=0.02), name


def test_a_backward_pass_costs_about_twice_the_forward_pass():
    graph, sizes = zoo_graph("llama-2-7b"), Sizes(4096, 1, 4096, 4096, 4096 * 4097 // 2)
    train = training_graph(graph)
    verify(train)
    flops = [
        sum(op_cost(train, op, sizes).flops for op in train.ops if op.stage.endswith(".grad") == back)
        for back in (0, 1)
    ]
    assert 1.95 < flops[1] / flops[0] < 2.15
    assert len(train.stages) == 2 * len(graph.stages)


def test_an_op_without_a_rule_is_named():
    with pytest.raises(UnsupportedError, match=r"bloom.*op alibi_attention has no gradient"):
        training_graph(zoo_graph("bloom-176b"))


REFUSED = {
    "norms all heads": (
        {"qk_norm": True, "qk_norm_all_heads": True},
        "k_norm.* a norm over all heads together",
    ),
    "offset": ({"norm_offset": 1.0}, "head/norm.* over all heads together, or with an offset, has no gradient"),
    "growth of queries": (
        {"rope": Rope("default", (), 1.0, 512, growth=0.1, growth_step=3)},
        "layers.1/attention.* attention whose queries grow has no gradient",
    ),
    "cap of scores": ({"attention_cap": 2.0}, "layers.1/attention.* capped attention has no gradient"),
    "cap of logits": ({"logits_cap": 2.0}, "op softcap has no gradient"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_gradient_is_refused(what):
    shape, sentence = REFUSED[what]
    with pytest.raises(UnsupportedError, match=sentence):
        training_graph(decoder(**shape))


@pytest.mark.long
def test_gradients_of_forty_decoders():
    claim = test_gradients_are_slopes_of_the_loss.hypothesis.inner_test
    settings(STEADY, max_examples=40)(given(st.one_of(TRAINABLE, GPTS), st.integers(0, 99))(claim))()


@pytest.mark.parametrize("form", ["erf", "tanh", "sigmoid"])
def test_the_slope_of_each_form_of_gelu(form):
    x = np.linspace(-5, 5, 41, dtype=np.float32)[None]
    graph = decoder(**of_family("opt", num_kv_heads=4))
    (op,) = [op for op in graph.ops if op.name == "layers.0/relu"]
    attrs = {"form": form}
    forward = replace(op, kind="gelu", attrs=attrs)
    back = replace(op, kind="gelu_dx", attrs=attrs, inputs=("dy", op.inputs[0]), outputs=("dx",))

    def run(which, **values):
        step = Step(
            with_values(graph, *(Value(n, (Symbol.T, 1), DType.F32, Kind.TENSOR) for n in ("dy", "dx"))), values, None
        )
        run_op(step, which)
        return step.values[which.outputs[0]]

    found = run(back, **{"dy": np.ones_like(x), op.inputs[0]: x})
    ends = [run(forward, **{op.inputs[0]: x + np.float32(sign * 1e-2)}) for sign in (1, -1)]
    np.testing.assert_allclose(found, (ends[0] - ends[1]) / 2e-2, atol=1e-3)
