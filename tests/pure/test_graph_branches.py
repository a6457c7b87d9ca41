"""Graphs of layers with branches: what is legal, what a step costs, how ranks split them."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from tests.pure.graphs import change_op, change_operand, change_value, check_refused, decoder, the_op, with_values
from tests.pure.test_graph_shard import check_ranks

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.graph.branch.cost import branches_read
from coterie.graph.branch.ops import CHOOSE, MATRIX_READERS
from coterie.graph.branch.reference import BRANCH_RUN
from coterie.graph.closed import ClosedCost
from coterie.graph.compile import compile_graph
from coterie.graph.cost import op_cost, region_cost
from coterie.graph.ops import BF16, INT8, ROUNDING
from coterie.graph.program import architecture_key
from coterie.graph.rounding import with_rounding
from coterie.graph.shard import shard
from coterie.graph.verify import verify
from coterie.models.branches import Branches, BranchNames
from coterie.models.choice import Choice

BRANCHES = Branches(5, 2, 8, Choice(normalised=True), frozenset((1,)), BranchNames())
CHOICES = (
    *(Choice(), Choice(biased=True), Choice(sigmoid=True), Choice(scale=2.5), Choice(normalised=True, min_sum=1e-3)),
    *(Choice(groups=5, taken_groups=taken, group_best=1) for taken in (2, 3)),
)
GATE_UP, DOWN, CHOSEN = "layers.1/branch_gate_up", "layers.1/branch_down", "layers.1/chosen"
MATRIX = "model.layers.1.mlp.experts.3.up_proj.weight"


def branched(dtypes=(DType.F32,), **changes):
    """A decoder whose second layer has branches."""
    return decoder(dtypes, **{"vocab_size": 40, "branches": BRANCHES, **changes})


def attribute(graph, name, key, value):
    return change_op(graph, name, attrs=MappingProxyType({**the_op(graph, name).attrs, key: value}))


def grouped(graph, groups, taken, best):
    for key, value in (("groups", groups), ("taken_groups", taken), ("group_best", best)):
        graph = attribute(graph, CHOSEN, key, value)
    return graph


WRONG = {
    "more than there are": (lambda g: attribute(g, CHOSEN, "top_k", 6), ["top_k is 6", "a number from 1 to E"]),
    "none": (lambda g: attribute(g, CHOSEN, "top_k", 0), ["top_k is 0"]),
    "scores": (lambda g: attribute(g, CHOSEN, "scores", "tanh"), ["scores is 'tanh'", "'sigmoid', or nothing"]),
    "a sum of what is not divided": (
        lambda g: attribute(attribute(g, CHOSEN, "normalise", 0), CHOSEN, "added_sum", 0.5),
        ["added_sum is 0.5 where weights are not normalised"],
    ),
    "a least sum": (lambda g: attribute(g, CHOSEN, "least_sum", 1.0), ["least_sum is 1.0"]),
    "groups": (lambda g: grouped(g, 2, 1, 1), ["groups is 2 and taken_groups 1 of 5 branches"]),
    "more groups": (lambda g: grouped(g, 5, 6, 1), ["taken_groups 6"]),
    "groups of one": (lambda g: grouped(g, 5, 2, 2), ["group_best is 2 of groups of 1"]),
    "few in groups": (lambda g: grouped(g, 5, 1, 1), ["top_k is 2 of 1 groups of 1"]),
    "no number of groups": (lambda g: attribute(g, CHOSEN, "groups", 5), ["taken_groups None"]),
    "a bias of another length": (
        lambda g: change_operand(g, CHOSEN, 1, "model.layers.1.input_layernorm.weight"),
        ["has shape (12,), wanted is (5,)"],
    ),
    "a flag": (lambda g: attribute(g, CHOSEN, "normalise", 2), ["normalise is 2", "give 0 or 1"]),
    "another number": (lambda g: attribute(g, GATE_UP, "top_k", 3), ["top_k is 3 where 2 are chosen"]),
    "weights of no choice": (
        lambda g: change_operand(g, DOWN, 1, "layers.1/chooser"),
        ["layers.1/chooser is not what choose_branches gives"],
    ),
    "a matrix less": (
        lambda g: change_op(g, DOWN, inputs=the_op(g, DOWN).inputs[:-1]),
        ["4 matrices for 5 branches", "give 1 for each"],
    ),
    "half a pair": (lambda g: change_op(g, GATE_UP, inputs=the_op(g, GATE_UP).inputs[:-1]), ["it has 11 inputs"]),
    "a type": (lambda g: change_value(g, MATRIX, dtype=DType.BF16), [MATRIX, "BF16", "one type"]),
    "a shape": (lambda g: change_value(g, MATRIX, shape=(8, 13)), [MATRIX, "(8, 13)"]),
    "rounding of what is not packed": (lambda g: attribute(g, DOWN, ROUNDING, INT8), ["rounding is 'int8'"]),
    "rounding to bfloat16": (lambda g: attribute(g, GATE_UP, ROUNDING, BF16), ["rounding is 'bf16'", "F32"]),
    "a scale": (lambda g: attribute(g, CHOSEN, "scale", 0.0), ["its scale is 0.0"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named(wrong):
    check_refused(branched(), *WRONG[wrong])


def test_of_equal_branches_the_first_are_taken_and_none_that_is_taken_weighs_0():
    logits = np.zeros((2, 40), np.float32)
    logits[1, 1:] = -300
    weights = BRANCH_RUN[CHOOSE](None, the_op(branched(), CHOSEN), [logits, None])
    np.testing.assert_array_equal(np.nonzero(weights), [[0, 0, 1, 1], [0, 1, 0, 1]])
    np.testing.assert_allclose(weights[:, :2], [[0.5, 0.5], [1, 1e-30]], rtol=1e-6)
    logits = np.zeros((1, 300), np.float32)
    logits[0, ::3] = 1.0  # an order that a sort which is not stable would lose
    np.testing.assert_array_equal(
        np.nonzero(BRANCH_RUN[CHOOSE](None, the_op(branched(), CHOSEN), [logits, None])), [[0, 0], [0, 3]]
    )


def test_regions_of_a_layer_with_branches():
    program = compile_graph(branched(), "cache")
    kernels = [region.kernel for region in program.regions if region.stage == "layers.1"]
    assert kernels == [
        *("norm_qkv_rope_append", "attention", "linear_add"),
        *("rms_norm", "linear", "choose_branches", "branch_gate_up", "branch_down_add"),
    ]


SHARED = replace(BRANCHES, shared=8, names=BranchNames())
WEIGHED = replace(SHARED, names=BranchNames(shared_chooser="mlp.shared_gate"))
GROUPED = Choice(True, True, True, 2.5, 1e-20, 3, 2, 2)


def test_a_branch_that_all_tokens_take_is_a_plain_block_or_the_one_branch_of_a_choice():
    found = {}
    for branches in (SHARED, WEIGHED):
        program = compile_graph(branched(branches=branches), "cache")
        kernels = [region.kernel for region in program.regions if region.stage == "layers.1"]
        assert kernels[:4] == ["norm_qkv_rope_append", "attention", "linear_add", "rms_norm"]
        assert kernels[-4:] == ["linear", "choose_branches", "branch_gate_up", "branch_down_add"]
        found[branches] = kernels[4:-4]
    assert found == {
        SHARED: ["norm_gate_up_silu_mul", "linear_add"],
        WEIGHED: ["linear", "choose_branches", "branch_gate_up", "branch_down_add"],
    }


def test_the_key_is_that_of_the_choice_too():
    keys = {architecture_key(branched(branches=replace(BRANCHES, **changes))) for changes in ({}, {"taken": 3})}
    keys |= {architecture_key(branched(branches=replace(BRANCHES, choice=choice))) for choice in CHOICES}
    assert len(keys | {architecture_key(decoder())}) == 2 + len(CHOICES) + 1


@pytest.mark.parametrize(
    ("degree", "branches"),
    [(2, BRANCHES), (4, BRANCHES), (2, SHARED), (4, replace(WEIGHED, count=6, choice=GROUPED))],
)
def test_all_ranks_together_equal_the_whole(degree, branches):
    graph = branched(branches=branches)
    check_ranks(graph, degree)


def test_branches_that_do_not_split_are_refused():
    with pytest.raises(UsageError, match=r"a branch of .* has 8 columns, which do not split over 3 ranks"):
        shard(branched(vocab_size=42, num_heads=6, num_kv_heads=3, intermediate_size=21), 3)


@pytest.mark.parametrize(("dtype", "to"), [(DType.Q8, INT8), (DType.BF16, BF16)])
def test_rounding_reaches_the_branches(dtype, to):
    graph = branched()
    matrices = [replace(v, dtype=dtype) for v in graph.weights if ".experts." in v.name]
    rounded = with_rounding(with_values(graph, *matrices), to)
    assert {op.name for op in rounded.ops if ROUNDING in op.attrs} == {GATE_UP, DOWN}
    verify(rounded)


def test_one_token_reads_the_branches_that_it_takes():
    graph = branched()
    cost = op_cost(graph, the_op(graph, GATE_UP), Sizes.decode(1, 7))
    assert cost.weight_bytes == pytest.approx(2 * 2 * 8 * 12 * 4, abs=10)  # of each matrix a mean, rounded
    assert cost.flops == 2 * 8 * (4 * 12 + 5)
    assert cost.output_bytes == 2 * 8 * 4
    down = op_cost(graph, the_op(graph, DOWN), Sizes.decode(1, 7))
    assert down.weight_bytes == pytest.approx(2 * 12 * 8 * 4, abs=5)
    assert down.flops == 2 * 12 * (2 * 8 + 2)
    assert op_cost(graph, the_op(graph, GATE_UP), Sizes.prefill(1, 4000)).weight_bytes == 2 * 5 * 8 * 12 * 4
    assert op_cost(graph, the_op(graph, GATE_UP), Sizes(0, 0, 0, 0, 0)).weight_bytes == 0


@pytest.mark.parametrize(("tokens", "branches", "taken"), [(1, 128, 8), (8, 128, 8), (30, 8, 2), (5, 3, 3), (0, 4, 1)])
def test_as_many_branches_are_read_as_random_choices_find(tokens, branches, taken):
    rng = np.random.default_rng(0)
    found = [len({int(e) for _ in range(tokens) for e in rng.permutation(branches)[:taken]}) for _ in range(300)]
    assert branches_read(tokens, branches, taken) == pytest.approx(np.mean(found), rel=0.02)


def test_a_region_with_branches_is_counted_anew():
    """How many are read is no sum of multiples of sizes."""
    program = compile_graph(branched(), "cache")
    for region in program.regions:
        form = ClosedCost(program, region)
        for tokens in (1, 2, 40):
            sizes = Sizes.prefill(1, tokens)
            assert form.of(sizes) == region_cost(program, region, sizes)
        assert form.is_counted == any(op.kind in MATRIX_READERS for op in region.ops), region.name
