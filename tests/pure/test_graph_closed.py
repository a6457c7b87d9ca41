"""A region's cost by its closed form is what counting gives, for whatever sizes; and what has no form is counted."""

from __future__ import annotations

import operator
import random

import pytest
from tests.pure.graphs import decoder

from coterie.core.shapes import Sizes
from coterie.graph import closed
from coterie.graph.branch.ops import MATRIX_READERS
from coterie.graph.closed import ClosedCost
from coterie.graph.compile import compile_graph
from coterie.graph.cost import Cost, reads_batch, reads_context, region_cost
from coterie.graph.eager.rewrite import expand
from coterie.graph.shard import shard
from coterie.models.zoo import model_names, zoo_graph


def some_sizes(count, seed=5):
    """Decode, prefill and both; windows of 4096 are now within the contexts and now not."""
    rng = random.Random(seed)
    for _ in range(count):
        batch = rng.randint(1, 40)
        tokens = batch + rng.choice([0, 0, rng.randint(1, 3000)])
        context = tokens + rng.choice([0, rng.randint(0, 400), rng.randint(0, 40_000 * batch)])
        yield Sizes(tokens, batch, rng.randint(0, batch), context, context + rng.randint(0, 10**7))


def check(program, count):
    forms = {region.index: ClosedCost(program, region) for region in program.regions[:40] + program.regions[-4:]}
    for sizes in some_sizes(count):
        for index, form in forms.items():
            assert form.of(sizes) == region_cost(program, program.regions[index], sizes), program.regions[index].name
    return [program.regions[index].kernel for index, form in forms.items() if form.is_counted]


@pytest.mark.parametrize("rule_set", ["none", "cache", "section"])
@pytest.mark.parametrize("name", model_names())
def test_regions_of_every_model_have_a_form_that_counts_right(name, rule_set):
    program = compile_graph(zoo_graph(name), rule_set)
    # How many branches are read is no sum of multiples of sizes.
    counted = {region.kernel for region in program.regions if any(op.kind in MATRIX_READERS for op in region.ops)}
    assert set(check(program, 12)) == counted


def test_one_ranks_regions_and_packed_and_uneven_ones():
    assert check(compile_graph(shard(zoo_graph("llama-2-7b"), 8, odd_vocabulary=True), "cache"), 20) == []
    assert check(compile_graph(shard(zoo_graph("mistral-7b"), 4), "section"), 30) == []


def test_every_score_of_padded_contexts_is_counted_anew():
    counted = check(compile_graph(expand(decoder()), "none"), 30)
    assert set(counted) >= {"scores", "mix"}
    assert "linear" not in counted


def test_a_window_has_a_form_for_each_side(monkeypatch):
    program = compile_graph(zoo_graph("mistral-7b"), "none")
    attention = next(region for region in program.regions if region.kernel == "attention")
    within, beyond = Sizes.decode(2, 100), Sizes.decode(2, 5000)
    asked = (within, beyond, Sizes.prefill(3, 4000), Sizes.prefill(1, 9000)) * 2
    expected = [region_cost(program, attention, sizes) for sizes in asked]
    form, one = ClosedCost(program, attention), ClosedCost(program, attention)
    assert [form.of(sizes) for sizes in asked] == expected
    assert form.of(within).kv_read_bytes / 100 == form.of(beyond).kv_read_bytes / 4096
    assert not form.is_counted
    monkeypatch.setattr(closed, "MAX_FORMS", 1)
    assert [one.of(sizes) for sizes in asked] == expected
    assert one.is_counted, "the sides are more than the one form that is kept"


@pytest.mark.parametrize("equal", [operator.eq, lambda a, b: not operator.ne(a, b)])
def test_sizes_that_are_equal_have_a_form_of_their_own(equal, monkeypatch):
    def counted(program, region, sizes):
        return Cost(flops=7 * sizes.T if equal(sizes.T, sizes.B) else 3 * sizes.B)

    program = compile_graph(decoder(), "cache")
    monkeypatch.setattr(closed, "region_cost", counted)
    form = ClosedCost(program, program.regions[0])
    asked = [Sizes.decode(4, 9), Sizes.prefill(2, 8), Sizes.decode(6, 9), Sizes.prefill(1, 5)] * 2
    assert [form.of(sizes).flops for sizes in asked] == [28, 6, 42, 3] * 2
    assert not form.is_counted


def test_what_looks_a_size_up_is_counted_anew(monkeypatch):
    def counted(program, region, sizes):
        return Cost(flops={1: 10, 2: 20}.get(sizes.B, 0))

    program = compile_graph(decoder(), "cache")
    monkeypatch.setattr(closed, "region_cost", counted)
    form = ClosedCost(program, program.regions[0])
    assert [form.of(Sizes.decode(n, 9)).flops for n in (1, 2, 3)] == [10, 20, 0]
    assert form.is_counted


def test_a_mistake_of_counting_is_not_hidden(monkeypatch):
    def wrong(program, region, sizes):
        raise TypeError("of its own")

    program = compile_graph(decoder(), "cache")
    monkeypatch.setattr(closed, "region_cost", wrong)
    with pytest.raises(TypeError, match="of its own"):
        ClosedCost(program, program.regions[0]).of(Sizes.decode(1, 9))


@pytest.mark.parametrize("rule_set", ["none", "cache", "section"])
@pytest.mark.parametrize("name", ["llama-2-7b", "llava-1.5-7b", "falcon-40b"])
def test_what_depends_on_neither_context_nor_batch_costs_the_same_in_any(name, rule_set):
    program = compile_graph(zoo_graph(name), rule_set)
    for region in program.regions[:40] + program.regions[-4:]:
        if reads_context(program, region):
            continue
        by_b, by_r = reads_batch(program, region)
        for sizes in some_sizes(4):
            least = Sizes(sizes.T, sizes.B if by_b else 1, sizes.R if by_r else 1, sizes.T, sizes.T)
            assert region_cost(program, region, least) == region_cost(program, region, sizes)
