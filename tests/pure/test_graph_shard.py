"""Sharding: all ranks together compute what the whole graph computes; what cannot be split is refused with numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.graphs import SPLIT, STEADY, Player, decoder, gemma, random_weights, step_sizes

from coterie.core.dtypes import DType
from coterie.core.errors import UsageError
from coterie.core.shapes import Sizes
from coterie.graph.compile import compile_graph, kv_shape
from coterie.graph.cost import collectives, op_cost, program_cost, region_cost
from coterie.graph.fuse import RULE_SETS
from coterie.graph.reference import KvState, Reference, run_ranks
from coterie.graph.shard import Split, shard, split_graph
from coterie.graph.verify import verify
from coterie.models.zoo import zoo_graph


def play(graph, *steps):
    """The logits and tokens of a few steps of the whole graph."""
    player = Player(graph)
    return [player.play(*chunks) for chunks in steps]


def play_ranks(graph, degree, *steps, odd_vocabulary=False):
    """The same steps on all ranks together: the values of each rank, per step."""
    whole = Player(graph)
    weights = random_weights(graph)
    ranks = []
    for rank in range(degree):
        found = split_graph(graph, degree, rank, odd_vocabulary)
        verify(found.graph)
        own = {
            name: array[found.splits[name].of_rank(array.shape, rank, degree)] if name in found.splits else array
            for name, array in weights.items()
        }
        ranks.append(Reference(found.graph, own))
    states = [KvState(rank.graph, whole.num_blocks, whole.tokens_per_block) for rank in ranks]
    results = []
    for chunks in steps:
        rows = whole.rows(*chunks)
        results.append(run_ranks(ranks, rows, whole.greedy(rows), states))
    return results


def check_ranks(graph, degree):
    """All ranks together give the logits of the whole graph."""
    for ranks, whole in zip(play_ranks(graph, degree, *STEPS), play(graph, *STEPS), strict=True):
        for rank in ranks:
            np.testing.assert_allclose(rank["head/logits/whole"], whole["head/logits"], rtol=0, atol=2e-5)


STEPS = [((0, [3, 1, 4, 1, 5]), (1, [9, 2, 6])), ((0, [5]), (1, [3])), ((1, [8]), (0, [7, 9]))]


@pytest.mark.parametrize("degree", [2, 4])
@pytest.mark.parametrize("shape", SPLIT)
def test_all_ranks_together_equal_the_whole(shape, degree):
    graph = decoder(**SPLIT[shape])
    wanted = play(graph, *STEPS)
    found = play_ranks(graph, degree, *STEPS)
    logits = next(op.inputs[0] for op in graph.ops if op.kind == "sample")
    for ranks, whole in zip(found, wanted, strict=True):
        for rank in ranks:
            np.testing.assert_allclose(rank[f"{logits}/whole"], whole[logits], rtol=0, atol=2e-5)
            np.testing.assert_array_equal(rank["next_tokens"], whole["next_tokens"])


@pytest.mark.parametrize("shape", [{}, {"tied_embeddings": True}, gemma(2)], ids=["apart", "tied", "capped"])
def test_a_vocabulary_that_does_not_divide_is_every_ranks(shape):
    graph = decoder(**{"vocab_size": 37, **shape})
    logits = next(op.inputs[0] for op in graph.ops if op.kind == "sample")
    wanted, found = play(graph, *STEPS), play_ranks(graph, 2, *STEPS, odd_vocabulary=True)
    for ranks, whole in zip(found, wanted, strict=True):
        for rank in ranks:
            np.testing.assert_allclose(rank[logits], whole[logits], rtol=0, atol=2e-5)
    even = decoder(vocab_size=40)
    assert shard(even, 2, odd_vocabulary=True) == shard(even, 2)


def test_one_rank_alone_is_told_that_it_needs_the_others():
    player = Player(shard(decoder(vocab_size=40), 2))
    with pytest.raises(UsageError, match=r"all_reduce needs the values of all 2 ranks; interpret .* run_ranks"):
        player.play((0, [1, 2]))


def test_one_rank_is_the_graph_itself():
    graph = decoder()
    assert shard(graph, 1) is graph


WRONG = {
    "vocabulary": (decoder(), 2, "weight has 37 rows, which do not split over 2 ranks; use a degree that divides 37"),
    "heads": (decoder(vocab_size=48), 8, "layers.0/q has 4 heads, which do not split over 8 ranks"),
    "kv heads": (decoder(vocab_size=36), 3, "2 key/value heads can neither be split nor repeated evenly over 3 ranks"),
    "columns": (decoder(vocab_size=40, intermediate_size=22), 4, "gate has 22 columns, which do not split over 4"),
    "no ranks": (decoder(), 0, "rank 0 of 0 ranks does not exist"),
    "nothing to split": (zoo_graph("flash-fft-conv-1m"), 8, "none of its 97 ops can be split over 8 ranks"),
    "scaled biases": (
        decoder(vocab_size=40, residual_scale=0.5, o_bias=True),
        2,
        "layers.0/o scales a sum of all ranks and its bias",
    ),
    "again": (shard(decoder(vocab_size=40), 2), 2, "one rank's already"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_split_is_refused(what):
    graph, degree, sentence = WRONG[what]
    with pytest.raises(UsageError, match=sentence):
        shard(graph, degree)


def test_parts_of_a_split():
    assert [Split(0, 2).of_rank((6, 5), rank, 4) for rank in range(4)] == [(slice(0, 3),)] * 2 + [(slice(3, 6),)] * 2
    assert Split(1, 2).of_rank((6, 4), 1, 2) == (slice(None), slice(2, 4))


@settings(STEADY, max_examples=15)
@given(st.sampled_from([2, 4]), st.sampled_from(list(SPLIT)), step_sizes())
def test_bytes_and_flops_of_ranks_add_up(degree, shape, sizes):
    """Weights: each part is held by parts-many ranks' share; no flop of a linear or of attention is lost or doubled."""
    graph = decoder(**SPLIT[shape])
    found = split_graph(graph, degree)
    for whole, own in zip(graph.weights, found.graph.weights, strict=True):
        parts = found.splits[whole.name].parts if whole.name in found.splits else 1
        assert own.name == whole.name
        assert np.prod(own.shape) * parts == np.prod(whole.shape)
    for kind in ("attention", "linear"):
        flops = [sum(op_cost(g, op, sizes).flops for op in g.ops if op.kind == kind) for g in (graph, found.graph)]
        moved = again = 0
        if (
            kind == "linear"
        ):  # biases behind an exchange are ops of their own; heads held by several are projected twice
            moved = sum(op_cost(graph, op, sizes).flops for op in found.graph.ops if op.kind == "add_bias")
            heads = kv_shape(graph).num_kv_heads
            twice = [op for op in graph.ops if op.name.endswith(("/k", "/v")) and op.kind == "linear"]
            times = max(degree // heads, 1)
            for op in twice:  # where all heads are normed together, every rank has those that ranks share
                whole = shape == "olmo2" and times > 1 and op.name.endswith("/k")
                again += op_cost(graph, op, sizes).flops * ((degree if whole else times) - 1)
            sums = [op for op in graph.ops if op.name.endswith(("/o", "/down")) and "scale" in op.attrs]
            again += len(sums) * 12 * sizes.T * (degree - 1)  # every rank scales its part of a sum, all 12 of a token
        assert flops[1] * degree == flops[0] - moved + again


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-70b", "mistral-7b", "bloom-176b", "falcon-40b"])
@pytest.mark.parametrize("degree", [2, 8, 16])
def test_models_of_the_zoo_on_many_sockets(name, degree):
    graph = zoo_graph(name)
    if (name, degree) == ("falcon-40b", 16):
        with pytest.raises(UsageError, match="qkv has 8 groups of heads, which do not split over 16 ranks"):
            shard(graph, degree)
        return
    own = shard(graph, degree)
    sizes = Sizes.decode(1, 4096)
    program = compile_graph(own, "section")
    cost, whole = program_cost(program, sizes), program_cost(compile_graph(graph, "section"), sizes)
    assert whole.weight_bytes / degree <= cost.weight_bytes < 1.1 * whole.weight_bytes / degree
    layers = len(program.regions) - 2
    exchanges = [collectives(program, region, sizes) for region in program.regions]
    hidden, vocab = 2 * graph.values["embed/x"].shape[1], 2 * program.vocab_size
    assert [(e.kind, e.bytes, e.ranks) for e in exchanges[0]] == [("all_reduce", hidden, degree)]
    assert all([(e.kind, e.bytes) for e in row] == [("all_reduce", hidden)] * 2 for row in exchanges[1:-1])
    assert [(e.kind, e.bytes) for e in exchanges[-1]] == [("all_gather", vocab)]
    heads = kv_shape(graph).num_kv_heads
    assert program.kv.num_kv_heads == max(1, heads // degree)
    assert layers == program.kv.num_layers


@pytest.mark.parametrize("rule_set", RULE_SETS)
def test_a_sharded_graph_fuses_and_prices_under_every_rule_set(rule_set):
    program = compile_graph(shard(decoder((DType.BF16,), vocab_size=40), 2), rule_set)
    sizes = Sizes.prefill(2, 5)
    assert sum(len(collectives(program, region, sizes)) for region in program.regions) == 1 + 2 * 2 + 1
    assert all(region_cost(program, region, sizes).total_bytes > 0 for region in program.regions)
