"""Low-rank changes beside products: the graph with them computes what summed weights compute, however it is cut."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from tests.pure.graphs import Player, decoder, gemma, random_weights
from tests.pure.test_graph_shard import STEPS, play_ranks

from coterie.core.dtypes import DType
from coterie.graph.compile import compile_graph
from coterie.graph.fuse import fuse
from coterie.graph.ir import Kind, Op, Value
from coterie.graph.low_rank import LowRank, linear_weights, with_low_rank
from coterie.graph.program import architecture_key
from coterie.graph.reference import Reference
from coterie.graph.verify import verify

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def changed(graph, parts=ALL, rank=2, scale=1.5):
    """A graph with changes beside every product with a weight so called."""
    changes = {}
    for weight in linear_weights(graph):
        if weight.removesuffix(".weight").endswith(parts):
            rows, columns = graph.values[weight].shape
            a = Value(f"{weight}.A", (rank, columns), DType.F32, Kind.WEIGHT)
            changes[weight] = LowRank(a, Value(f"{weight}.B", (rows, rank), DType.F32, Kind.WEIGHT), scale)
    return with_low_rank(graph, changes), changes


def played(graph, weights, steps=STEPS):
    player = Player(graph)
    player.reference = Reference(graph, weights)
    return [player.play(*chunks) for chunks in steps]


def summed(weights, changes):
    """The weights that a merged model has, in float64 before they are rounded once."""
    found = {name: array for name, array in weights.items() if not name.endswith((".A", ".B"))}
    for name, change in changes.items():
        product = weights[change.b.name].astype(np.float64) @ weights[change.a.name].astype(np.float64)
        found[name] = (weights[name] + change.scale * product).astype(np.float32)
    return found


@pytest.mark.parametrize(
    "shape", [{}, {"residual_scale": 0.6, "logits_scale": 3.0}, gemma(2), {"o_bias": True}], ids=str
)
def test_changes_beside_products_are_those_of_summed_weights(shape):
    plain = decoder(**shape)
    graph, changes = changed(plain)
    verify(graph)
    weights = random_weights(graph)
    logits = next(op.inputs[0] for op in graph.ops if op.kind == "sample")
    together = zip(played(graph, weights), played(plain, summed(weights, changes)), strict=True)
    alone = played(plain, {name: array for name, array in weights.items() if name in plain.values})
    for (ours, merged), without in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours[logits], merged[logits], rtol=0, atol=3e-5 * np.abs(merged[logits]).max())
        assert np.abs(ours[logits] - without[logits]).max() > 0.05 * np.abs(merged[logits]).max()


def kernels(graph, stage="layers.0"):
    return [region.kernel for region in fuse(graph, "cache") if region.stage == stage]


def test_only_regions_with_a_changed_product_fall_apart():
    plain = decoder()
    qkv, attention, o, gate_up, down = kernels(plain)
    low = ["linear", "linear_add"]  # x A^T, then y + scale * u B^T
    assert kernels(changed(plain, ("o_proj",))[0]) == [qkv, attention, o, *low, gate_up, down]
    assert kernels(changed(plain, ("down_proj",))[0]) == [qkv, attention, o, gate_up, down, *low]
    apart = ["rms_norm", "linear", *low, "linear", "linear", *low, "rope", "rope", "kv_append"]
    assert kernels(changed(plain, ("q_proj", "v_proj"))[0]) == [*apart, attention, o, gate_up, down]
    apart = ["rms_norm", "linear", *low, "linear", "silu", "mul"]
    assert kernels(changed(plain, ("gate_proj",))[0]) == [qkv, attention, o, *apart, down]
    head = kernels(changed(plain, ("lm_head",))[0], "head")
    assert head == ["take_rows", "rms_norm", "linear", *low, "sample"]


def test_a_matrix_that_several_read_is_multiplied_once():
    """Parts of a joined matrix have rows of B each, and one A."""
    plain = decoder()
    changes = changed(plain, ("q_proj", "k_proj", "v_proj"))[1]
    first = next(iter(changes.values())).a
    layer = {name: LowRank(first, change.b, 1.0) for name, change in changes.items() if "layers.0" in name}
    graph = with_low_rank(plain, layer)
    verify(graph)
    assert sum(first.name in op.inputs for op in graph.ops) == 1
    assert len(graph.ops) == len(plain.ops) + 1 + 2 * 3


def test_a_product_that_more_than_its_residual_reads_is_changed_for_all():
    plain = decoder()
    at = next(i for i, op in enumerate(plain.ops) if op.kind == "linear" and plain.ops[i + 1].kind == "add")
    y, stage = plain.ops[at].outputs[0], plain.ops[at].stage
    twice = Op("add", "twice", stage, (y, y), ("twice",), MappingProxyType({}))
    values = {**plain.values, "twice": replace(plain.values[y], name="twice")}
    ops = (*plain.ops[: at + 2], twice, *plain.ops[at + 2 :])
    grown, _ = changed(replace(plain, values=MappingProxyType(values), ops=ops), ("o_proj",))
    made = {name: op.kind for op in grown.ops for name in op.outputs}
    assert (made[y], made[f"{y}.base"]) == ("add", "linear")


def test_equal_shapes_share_programs_and_others_do_not():
    plain = decoder()
    key = architecture_key(changed(plain)[0])
    assert key == architecture_key(changed(plain)[0])
    others = (changed(plain, rank=3), changed(plain, scale=2.0), changed(plain, ALL[:-1]))
    assert len({key, architecture_key(plain), *(architecture_key(graph) for graph, _ in others)}) == 5


def test_a_weight_that_no_product_reads_is_refused():
    graph, changes = changed(decoder())
    with pytest.raises(ValueError, match=r"no linear op of .* reads model\.norm\.weight"):
        with_low_rank(decoder(), {"model.norm.weight": next(iter(changes.values()))})
    assert graph.weights[0].name == decoder().weights[0].name


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize(
    "shape", [{"vocab_size": 40}, {"vocab_size": 37}, {"vocab_size": 40, "qk_norm": True}], ids=str
)
def test_all_ranks_together_equal_the_whole(shape, rank, degree):
    """A is split as the columns that a rank has, B as the rows; what lies between is every rank's."""
    graph, _ = changed(decoder(**shape), rank=rank)
    wanted = played(graph, random_weights(graph))
    for ranks, whole in zip(play_ranks(graph, degree, *STEPS, odd_vocabulary=True), wanted, strict=True):
        for found in ranks:
            logits = found.get("head/logits/whole", found["head/logits"])
            np.testing.assert_allclose(logits, whole["head/logits"], rtol=0, atol=4e-5)


def test_programs_compile_by_every_set_of_kernels():
    graph, changes = changed(decoder())
    for rule_set in ("none", "cache", "section", "served"):
        program = compile_graph(graph, rule_set)
        assert {change.a.name for change in changes.values()} <= set(program.weights)
