"""Sparse weights: what is stored and computed, from a config to bytes, flops, sections and gradients.

Knows nothing about which patterns a machine is fast with.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from graphs import STEADY, Player, change_value, decoder, random_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dataflow_sections import chip, layer

from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UnsupportedError, UsageError
from coterie.core.shapes import Sizes
from coterie.dataflow.mapping import Mapped, map_section
from coterie.graph.backward.build import training_graph
from coterie.graph.cost import op_cost
from coterie.graph.ir import Kind
from coterie.graph.program import architecture_key
from coterie.graph.reference import Reference
from coterie.graph.shard import shard
from coterie.graph.stored import value_bytes
from coterie.graph.verify import verify
from coterie.models.config import ModelConfig
from coterie.models.model import synthetic_model
from coterie.models.zoo import zoo_config, zoo_graph, zoo_model

STEP = Sizes(6, 1, 6, 6, 21)
UP = "model.layers.0.mlp.up_proj.weight"  # 20 x 12


def test_elements_that_are_left_out_cost_nothing_but_a_bit():
    dense, sparse = decoder(), decoder(density=0.25)
    weight = sparse.values[UP]
    assert value_bytes(weight, STEP) == 60 * 4 + 30, "a quarter of 240 elements, and a bit for each"
    assert value_bytes(replace(weight, density=1.0), STEP) == 240 * 4
    for graph, share in ((dense, 1.0), (sparse, 0.25)):
        up = next(op for op in graph.ops if op.name == "layers.0/up")
        cost = op_cost(graph, up, STEP)
        assert cost.flops == 6 * 2 * 240 * share
        assert cost.weight_bytes == value_bytes(graph.values[UP], STEP)
    assert {v.name for v in sparse.weights if v.density == 1.0} == {
        v.name for v in dense.weights if len(v.shape) == 1 or "embed" in v.name or "lm_head" in v.name
    }
    assert architecture_key(dense) != architecture_key(sparse)


def test_gradients_cost_what_their_weights_have():
    train = training_graph(decoder(density=0.25))
    verify(train)
    dw = next(op for op in train.ops if op.kind == "linear_dw" and op.inputs[2] == UP)
    cost = op_cost(train, dw, STEP)
    assert cost.flops == 2 * 6 * 60
    assert cost.output_bytes == 60 * 4, "the pattern is the weight's"
    assert cost.weight_bytes == 30, "of which it reads nothing else"
    assert cost.input_bytes == 6 * (20 + 12) * 4


def test_a_sparse_weight_is_a_dense_one_with_zeros():
    sparse = decoder(density=0.25)
    dense = replace(
        sparse, values={n: replace(v, density=1.0) if v.density != 1.0 else v for n, v in sparse.values.items()}
    )
    weights = random_weights(sparse)
    results = []
    for graph in (sparse, dense):
        player = Player(graph)
        player.reference = Reference(graph, weights)
        results.append(player.play((0, [3, 1, 4]), (1, [5, 9])))
    np.testing.assert_array_equal(*(found["head/logits"] for found in results))
    weights[UP][weights[UP] == 0] = 1.0
    with pytest.raises(UsageError, match=r"up_proj.weight has 240 of 240 elements, its density is 0.25; set "):
        Reference(sparse, weights)


@pytest.mark.parametrize(
    ("name", "changes", "sentence"),
    [
        (UP, {"density": 0.0}, r"up\] linear: .*up_proj.weight, F32, has a density of 0; give 1, or in a linear's"),
        (UP, {"density": 1.5}, r"has a density of 1\.5"),
        (UP, {"density": 0.5, "dtype": DType.Q8}, r"Q8, has a density of 0\.5"),
        ("model.norm.weight", {"density": 0.5}, r"rms_norm: model.norm.weight, F32, has a density of 0\.5"),
        ("model.embed_tokens.weight", {"density": 0.5}, r"embed: .*has a density of 0\.5"),
    ],
)
def test_a_density_that_cannot_be_is_refused(name, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        verify(change_value(decoder(), name, **changes))


def test_a_gradient_has_the_pattern_of_its_weight():
    train = training_graph(decoder(density=0.25))
    made = next(op.outputs[0] for op in train.ops if op.kind == "linear_dw" and op.inputs[2])
    with pytest.raises(UsageError, match=r"has a density of 1, its weight one of 0\.25; make them agree"):
        verify(change_value(train, made, density=1.0))


@settings(STEADY, max_examples=15)
@given(st.sampled_from([(0.5, 0.25), (1.0, 0.125), (0.125, 0.0625)]), st.integers(1, 30))
def test_fewer_elements_are_never_slower_nor_larger(densities, tokens):
    """Laid out with the same tiles: less arithmetic a stage, fewer bytes to hold and to read."""
    found = []
    for density in densities:
        graph = decoder(density=density, hidden_size=24, intermediate_size=40)
        mapped = map_section(graph, layer(graph), Sizes.prefill(1, tokens), chip(pmus=400), tiles=1)
        assert isinstance(mapped, Mapped)
        assert mapped.l0_s <= mapped.l1_s <= mapped.l2_s() * (1 + 1e-9)
        found.append(mapped)
    more, less = found
    assert less.l0_s <= more.l0_s
    assert less.balance.slowest_cycles <= more.balance.slowest_cycles
    assert less.memory_bytes <= more.memory_bytes
    assert less.sram_bytes <= more.sram_bytes


def test_sparse_gpt_has_the_elements_that_the_paper_says():
    """Table III: 13B, 87.5 % sparse. Of 12.85e9 parameters the layers' matrices are 12 x L x D^2."""
    graph = zoo_graph("sparse-gpt-13b")
    linears = 12 * 40 * 5120**2
    sparse = [v for v in graph.weights if v.density != 1.0]
    assert sum(int(v.shape[0]) * int(v.shape[1]) for v in sparse) == linears
    assert {v.density for v in sparse} == {0.125}
    assert sum(value_bytes(v, STEP) for v in sparse) == linears // 8 * 2 + linears // 8
    model = zoo_model("sparse-gpt-13b")
    assert model.layout.size_bytes == pytest.approx(sum(value_bytes(v, STEP) for v in graph.weights), rel=1e-5)
    one = shard(graph, 8)
    assert sum(value_bytes(v, STEP) for v in one.weights if v.density != 1.0) == linears // 8 * 3 // 8


def section(**changes):
    inner = {
        "format": "sparse-bitmask",
        "global_sparsity": 0.5,
        "targets": ["Linear"],
        "ignore": ["lm_head"],
        **changes,
    }
    return {"compression_config": {"quant_method": "compressed-tensors", "sparsity_config": inner}}


def raw(**changes):
    return {**zoo_config("llama-2-7b"), "num_hidden_layers": 1, **changes}


def test_a_config_says_how_sparse_its_linears_are():
    assert ModelConfig.from_hf(raw(), "c").density == 1.0
    assert ModelConfig.from_hf(raw(**section()), "c").density == 0.5
    assert ModelConfig.from_hf(raw(**section(global_sparsity=0)), "c").density == 1.0
    assert json.dumps(section())  # it is what a config.json can hold


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        (
            section(format="dense"),
            UnsupportedError,
            "format is 'dense'; Coterie runs 'sparse-bitmask'",
        ),
        (section(ignore=[]), UnsupportedError, r"ignore is \[\]"),
        (section(global_sparsity=1), CheckpointError, "global_sparsity is 1; it must be a number from 0 to 0.9999"),
        (section(global_sparsity="half"), CheckpointError, "global_sparsity is 'half'"),
        (section(global_sparsity=True), CheckpointError, "global_sparsity is True"),
        (
            {"compression_config": {"quant_method": "other"}},
            UnsupportedError,
            "compressed weights, which are not supported",
        ),
        ({"compression_config": 3}, CheckpointError, "compression_config is 3; it must be an object"),
        (
            {"compression_config": {**section()["compression_config"], "config_groups": {"group_0": {}}}},
            UnsupportedError,
            "compressed weights",
        ),
    ],
)
def test_what_a_config_may_not_say(changes, error, sentence):
    with pytest.raises(error, match=sentence):
        ModelConfig.from_hf(raw(**changes), "c")


def test_weights_are_not_both_sparse_and_packed():
    packed = {"quantization_config": {"quant_method": "coterie", "version": 1, "bits": 8, "embedding_bits": None}}
    with pytest.raises(UnsupportedError, match="both sparse and packed"):
        synthetic_model(raw(**section(), **packed), "c")


def test_masks_leave_inputs_alone():
    assert all(v.density == 1.0 for v in decoder(density=0.25).values.values() if v.kind is not Kind.WEIGHT)
