"""Rows of a step on odd shapes, KV blocks tied to events, and text that stops."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from engine_world import ask
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.dtypes import DType
from coterie.core.errors import CapacityError, OversizeError
from coterie.device import Buffer, Event, Sampling
from coterie.engine.batch import Decoding, Scored, build, common_steps, cut
from coterie.engine.kv import MAX_SHAPES, KVPool
from coterie.engine.queue import Queue
from coterie.engine.request import ChoiceParams, SamplingParams
from coterie.engine.sequence import Sequence
from coterie.engine.stop_text import StopText
from coterie.graph.program import KvShape

KV = KvShape(num_layers=1, num_kv_heads=1, head_dim=2, dtype=DType.F16)  # 8 bytes a token


def sequence(number, prompt, computed=0, drawn=(), **fields):
    made = Sequence(ask(f"r{number}", "a", prompt, **fields), 100, 0.0)
    made.number = number
    made.tokens += drawn
    made.computed = computed
    return made


def test_decodes_come_first_and_a_prompt_is_cut_at_the_budget():
    a = sequence(0, range(10, 19), computed=4)
    b = sequence(1, [1, 2], computed=2, drawn=[7], end_ids=(9,), ignore_end=False, sampling=SamplingParams(0.5, seed=3))
    c = sequence(2, [5], computed=1, drawn=[8])
    d = sequence(3, [30, 31])
    batch = build(cut([a, b, c, d], 6, 8), {0: (4, 5, 6), 1: (7,), 2: (8,), 3: (9,)}, tokens_per_block=4)
    rows = batch.rows
    assert rows.tokens_T == [7, 8, 14, 15, 16, 17]
    assert rows.positions_T == [2, 1, 4, 5, 6, 7]
    assert rows.sequence_T == [0, 1, 2, 2, 2, 2]
    assert rows.lengths_B == [3, 2, 8]
    assert np.array(rows.block_tables_BM).tolist() == [[7, 0], [8, 0], [4, 5]]
    assert rows.rows_R == [0, 1]
    assert rows.sampling == (Sampling(temperature=0.5, seed=3), Sampling())
    assert rows.end_ids == ((9,), ())
    assert batch.sampled == (b, c)
    # A device copies them into arrays, which must come out rectangular.
    assert all(np.array(n, np.int32).ndim == 1 for n in (rows.tokens_T, rows.positions_T, rows.sequence_T, rows.rows_R))
    assert np.array(rows.block_tables_BM, np.int32).shape == (3, 2)


def test_a_step_may_sample_nothing():
    rows = build(cut([sequence(0, range(9))], 4, 8), {0: (2, 3, 4)}, tokens_per_block=4).rows
    assert (rows.sizes.T, rows.sizes.B, rows.sizes.R) == (4, 1, 0)
    assert np.array(rows.block_tables_BM).tolist() == [[2]]


def test_rows_that_are_left_score_prompts():
    """Of eight rows each sequence has one; the first that is scored gets the others, behind the sampled ones."""
    score = {"choice": ChoiceParams(top_logprobs=0, score_prompt=True), "reuse": False}
    a, b = sequence(0, [1], computed=1, drawn=[7]), sequence(1, range(10, 19), computed=2, **score)
    c, d = sequence(2, range(20, 25), **score), sequence(3, [30, 31])
    tables = dict.fromkeys(range(4), tuple(range(9)))
    parts = cut([a, b, c, d], 20, 8)
    assert [(part.sequence, part.count) for part in parts] == [(a, 1), (b, 5), (c, 1), (d, 2)]
    batch = build(parts, tables, tokens_per_block=1)
    assert batch.rows.tokens_T == [7, 12, 13, 14, 15, 16, 20, 30, 31]
    assert batch.rows.rows_R == [0, 8, 1, 2, 3, 4, 5, 6]
    assert len(batch.rows.sampling) == len(batch.rows.end_ids) == 8
    assert batch.sampled == (a, d)
    assert batch.scored == (Scored(b, 2, 2, 5), Scored(c, 7, 0, 1))
    b.computed = 7
    last = build(cut([b], 20, 8), tables, tokens_per_block=1)  # its last token is sampled
    assert (last.rows.rows_R, last.sampled, last.scored) == ([1, 0], (b,), (Scored(b, 1, 7, 1),))


def test_block_tables_reach_as_far_as_the_steps():
    one = sequence(0, [1, 2], computed=2, drawn=[3], max_tokens=9)
    rows = build(cut([one], 4, 8), {0: (5, 6, 7)}, tokens_per_block=2, steps=3).rows
    assert np.array(rows.block_tables_BM).tolist() == [[5, 6, 7]]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20), st.booleans()), min_size=1, max_size=9), st.data())
def test_rows_cover_every_token_once(shapes, data):
    made = []
    for number, (length, computed, decodes) in enumerate(shapes):
        done = length if decodes else min(computed, length - 1)
        made.append(sequence(number, range(length), done, [1] if decodes else []))
    budget = data.draw(st.integers(len(made), 60))
    parts = cut(made, budget, 8)
    rows = build(parts, {s.number: tuple(range(30)) for s in made}, tokens_per_block=1).rows
    assert min(budget, sum(len(s.tokens) - s.computed for s in made)) == rows.sizes.T
    assert {part.sequence.number for part in parts} >= {s.number for s in made if s.decoding}
    tokens_T, positions_T, sequence_T = (np.array(n) for n in (rows.tokens_T, rows.positions_T, rows.sequence_T))
    for row, part in enumerate(parts):
        at = positions_T[sequence_T == row].tolist()
        assert at == list(range(part.sequence.computed, part.sequence.computed + part.count))
        assert tokens_T[sequence_T == row].tolist() == [part.sequence.tokens[p] for p in at]
        assert rows.lengths_B[row] == at[-1] + 1
        last = (sequence_T == row).nonzero()[0][-1]
        assert (last in rows.rows_R) == (at[-1] == len(part.sequence.tokens) - 1)


def test_several_steps_only_when_nothing_can_happen_in_between():
    a = sequence(0, [1], computed=1, drawn=[2], max_tokens=5)
    b = sequence(1, [1], computed=1, drawn=[2], max_tokens=3)
    prompt = sequence(2, [1, 2, 3])
    assert common_steps(cut([a], 8, 8), 8) == 4
    assert common_steps(cut([a, b], 8, 8), 8) == 2
    assert common_steps(cut([a], 8, 8), 3) == 3
    assert common_steps(cut([a, prompt], 8, 8), 8) == 1
    text = sequence(3, [1], computed=1, drawn=[2], max_tokens=5, stop=("x",), detokenizer=object())
    assert common_steps(cut([a, text], 8, 8), 8) == 1


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.booleans()), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=6),
    st.integers(1, 5),
)
def test_sequences_that_decode_give_the_batches_that_are_built_anew(shapes, runs, tokens_per_block):
    made = []
    for number, (length, left, stops) in enumerate(shapes):
        fields = {"stop": ("x",), "detokenizer": object()} if stops else {"sampling": SamplingParams(0.5, seed=number)}
        made.append(sequence(number, range(length), length, [7], max_tokens=left + 1, **fields))
    tables = {s.number: tuple(range(10 * s.number, 10 * s.number + 30)) for s in made}
    kept = Decoding(cut(made, len(made) + 1, 8), tables, tokens_per_block)
    for max_steps, taken in runs:
        parts = cut(made, len(made) + 1, 8)
        anew = build(parts, tables, tokens_per_block, common_steps(parts, max_steps))
        batch = kept.batch(max_steps)
        assert batch == anew
        assert batch.rows.sizes == anew.rows.sizes
        for number, s in enumerate(made):  # so many of the steps were done, and each drew a token
            steps = min(taken, batch.steps)
            s.computed += steps
            s.tokens += [number] * steps
        if any(s.tokens_left == 0 for s in made):
            break


def pool(blocks=6, block_bytes=32):
    return KVPool(Buffer(0, "dram", 0, blocks * block_bytes + 5), block_bytes)


def test_blocks_are_free_again_only_when_the_last_step_is_finished():
    kv, event, finished = pool(), Event(1, "compute", "run"), []
    assert kv.allocate(1, 4) == (0, 1, 2, 3)
    kv.use((1,), event)
    kv.free(1)
    kv.poll(finished.__contains__)
    assert kv.free_blocks == 2
    kv.check_integrity()
    finished.append(event)
    kv.poll(finished.__contains__)
    assert kv.free_blocks == 6
    kv.check_integrity()


def test_blocks_of_a_step_that_is_said_to_be_finished_are_free_at_once():
    kv, first, second = pool(), Event(1, "compute", "run"), Event(2, "compute", "run")
    kv.allocate(1, 2)
    kv.allocate(2, 2)
    kv.use((1, 2), first)
    kv.use((2,), second)
    kv.finished(first)
    kv.free(1)
    kv.free(2)
    assert kv.free_blocks == 4, "the second step still uses those of the second owner"
    kv.poll([second].__contains__)
    assert kv.free_blocks == 6
    kv.check_integrity()


def test_a_pool_refuses_what_can_never_fit():
    kv = pool()
    assert [kv.blocks_for(tokens, KV) for tokens in (0, 1, 4, 5, 24)] == [0, 1, 1, 2, 6]
    assert kv.check_fits(24, 20, KV, "r") == 6
    numbers = r"\[r\] the KV state of 25 tokens \(%d of the prompt, .*\) needs 224 B but 192 B can be had; "
    for prompt, lever in (
        (20, "set max_tokens to at most 5"),
        (24, "max_tokens to at most 1"),
        (25, "prompt: it and max_tokens may have 25 tokens together"),
    ):
        with pytest.raises(OversizeError, match=f"{numbers % prompt}.*{lever}.* or set --kv to at least 224 B"):
            kv.check_fits(25, prompt, KV, "r")
    with pytest.raises(CapacityError, match="one token needs 8 B but 4 B"):
        pool(block_bytes=4).blocks_for(1, KV)
    with pytest.raises(CapacityError, match="one KV block"):
        KVPool(Buffer(0, "dram", 0, 31), 32)


def test_a_pool_remembers_so_many_shapes_and_lets_others_go():
    """As experts come and go, whose models are opened anew, each with a shape of its own."""

    def alive():
        gc.collect()
        return sum(type(one) is KvShape for one in gc.get_objects())  # isinstance asks proxies, which may warn

    kv, before = pool(block_bytes=96), alive()
    for number in range(3 * MAX_SHAPES):
        width = 1 + number % 5
        shape = KvShape(num_layers=1, num_kv_heads=1, head_dim=width, dtype=DType.F16)
        assert kv.tokens_per_block(shape) == kv.tokens_per_block(shape) == 96 // (4 * width)
    assert 0 < alive() - before <= MAX_SHAPES + 1


def test_a_pool_notices_a_block_in_two_places():
    kv = pool()
    with pytest.raises(ValueError, match="6 are free"):
        kv.allocate(1, 7)
    kv.allocate(1, 2)
    with pytest.raises(ValueError, match="owner 1"):
        kv.allocate(1, 1)
    kv._owned[2] = (0,)
    with pytest.raises(ValueError, match="do not add up"):
        kv.check_integrity()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["admit", "drop", "add"]), st.integers(0, 30)), max_size=60))
def test_overtaking_is_counted_as_by_hand(moves):
    queue, waiting, admitted = Queue(), {}, []
    for move, pick in moves:
        if move == "add":
            number = queue.take_number()
            waiting[number] = sequence(number, [1])
            queue.add(waiting[number])
        elif waiting:
            number = sorted(waiting)[pick % len(waiting)]
            chosen = waiting.pop(number)
            if move == "admit":
                queue.admit(chosen)
                assert chosen.overtaken == sum(other > number for other in admitted)
                admitted.append(number)
            else:
                queue.drop(chosen)
        for number in waiting:
            assert queue.overtaken(number) == sum(other > number for other in admitted)
        assert queue.oldest is waiting.get(min(waiting, default=-1))


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (("\nQ:",), ["the an", "swer is", " 4\nQ", ":no"], ["the an", "swer is", " 4", ""]),
        (("aab",), ["aaa", "b"], ["a", ""]),
        (("abc", "b"), ["abc"], ["a"]),
        (("bcd", "abcd"), ["abcd"], [""]),
        ((), ["ab", "c"], ["ab", "c"]),
    ],
)
def test_text_stops(stop, pieces, shown):
    text = StopText(stop)
    assert [text.push(piece) for piece in pieces] == shown


@settings(deadline=None)
@given(st.lists(st.text("ab", max_size=5), max_size=8), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3))
def test_how_text_is_cut_does_not_matter(pieces, stop):
    whole = "".join(pieces)
    cut_up, letter_by_letter = StopText(tuple(stop)), StopText(tuple(stop))
    first = "".join([cut_up.push(piece) for piece in pieces]) + cut_up.flush()
    second = "".join([letter_by_letter.push(letter) for letter in whole]) + letter_by_letter.flush()
    assert first == second
    assert whole.startswith(first)
    assert not any(s in first for s in stop)
    assert cut_up.stopped == any(s in whole for s in stop)


@settings(deadline=None)
@given(st.integers(1, 12), st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4), min_size=1, max_size=9))
def test_tokens_are_taken_several_at_once_as_they_are_one_by_one(max_tokens, runs):
    """Of requests whose length alone ends them, and of those that an end token may end."""
    for ends in ({"ignore_end": True, "end_ids": (3,)}, {"end_ids": (3,)}, {}):
        at_once, single = (sequence(0, [1, 2], max_tokens=max_tokens, **ends) for _ in range(2))
        for tokens in runs:
            count, text, reason = at_once.accept_all(list(tokens))
            taken = []
            for token in tokens:
                taken.append(single.accept(token))
                if taken[-1][1] is not None:
                    break
            assert (count, text, reason) == (len(taken), "", taken[-1][1])
            assert at_once.tokens == single.tokens
            if reason is not None:
                break


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.booleans(), st.integers(0, 9)), max_size=40))
def test_the_first_waiting_ones_are_those_of_a_scan(moves):
    queue, made = Queue(), []
    for expert, goes, pick in moves:
        if goes and queue.waiting:
            waiting = [s for s in made if s.number in queue.waiting.get(s.request.expert_id, {})]
            queue.admit(waiting[pick % len(waiting)])
        else:
            made.append(Sequence(ask(f"r{len(made)}", expert, [1]), 100, 0.0))
            made[-1].number = queue.take_number()
            queue.add(made[-1])
        for count in (1, 2, 3):
            oldest = sorted(next(iter(group)) for group in queue.waiting.values())
            assert [s.number for s in queue.firsts(count)] == oldest[:count]
