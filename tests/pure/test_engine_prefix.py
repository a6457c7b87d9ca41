"""KV blocks that are shared: who may use which, what goes first, and that no block is ever in two hands by mistake."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.core.dtypes import DType
from coterie.device import Buffer, Event
from coterie.engine.kv import KVPool
from coterie.graph.program import KvShape

KV = KvShape(num_layers=1, num_kv_heads=1, head_dim=2, dtype=DType.F16)  # 8 bytes a token, so 4 tokens a block
LONG = tuple(range(100, 120))  # five blocks


def pool(blocks=8, **settings):
    return KVPool(Buffer(0, "dram", 0, blocks * 32), 32, **settings)


def start(kv, owner, tokens, key="a", blocks=None):
    """A new owner's tokens that it need not compute."""
    kv.reserve(owner, -(-len(tokens) // 4) if blocks is None else blocks)
    found = kv.begin(owner, key, tokens, KV)
    kv.check_integrity()
    return found


def serve(kv, owner, tokens, key="a"):
    """An owner comes, computes all of its tokens and goes; its blocks and the tokens that it had not to compute."""
    found = start(kv, owner, tokens, key)
    blocks = kv.blocks(owner)
    kv.free(owner, tokens)
    kv.check_integrity()
    return blocks, found


@pytest.mark.parametrize(("length", "found"), [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (12, 8), (13, 8), (20, 8)])
def test_whole_blocks_that_begin_alike_are_shared_and_the_last_token_is_computed(length, found):
    kv = pool()
    first, none = serve(kv, 1, LONG[:11])
    assert none == 0
    assert start(kv, 2, LONG[:length]) == found
    blocks = kv.blocks(2)
    assert blocks[: found // 4] == first[: found // 4]
    assert not set(blocks[found // 4 :]) & set(first[: found // 4])


@pytest.mark.parametrize(
    ("tokens", "key", "found"),
    [
        ((*LONG[:7], 0, *LONG[8:]), "a", 4),  # one token of the second block differs
        ((0, *LONG[1:]), "a", 0),
        (LONG[4:], "a", 0),  # the same tokens at other places
        (LONG, "b", 0),
        (LONG, "a", 16),
    ],
)
def test_only_the_same_tokens_at_the_same_places_of_the_same_key_are_shared(tokens, key, found):
    kv = pool(16)
    serve(kv, 1, LONG)
    assert start(kv, 2, tokens, key) == found


def test_tokens_are_compared_and_not_a_digest_of_them():
    assert hash((-1,)) == hash((-2,)), "two numbers of one digest, for this test"
    kv = pool()
    serve(kv, 1, (-1, -1, -1, -1))
    assert start(kv, 2, (-2, -2, -2, -2, 5)) == 0
    assert start(kv, 3, (-1, -1, -1, -1, 5)) == 4


def test_what_is_running_is_shared_as_far_as_it_is_computed():
    kv = pool(20)
    start(kv, 1, LONG)
    kv.publish(1, LONG[:3])
    assert start(kv, 2, LONG) == 0
    kv.publish(1, LONG[:11])
    assert start(kv, 3, LONG) == 8
    assert kv.blocks(3)[:2] == kv.blocks(1)[:2]
    kv.publish(2, LONG[:12])  # the same tokens again: the second block is not known twice
    assert start(kv, 4, LONG) == 8
    kv.check_integrity()


def test_a_shared_block_counts_for_each_owner_until_it_goes():
    kv = pool(8)
    start(kv, 1, LONG[:12])
    kv.publish(1, LONG[:12])
    assert start(kv, 2, LONG[:12]) == 8
    assert kv.free_blocks == 8 - 3 - 3, "as if nothing was shared"
    kv.free(1, LONG[:12])
    assert kv.free_blocks == 5
    shared = kv.blocks(2)[:2]
    assert not set(shared) & set(kv.allocate(3, 5)), "a block in use was given away"
    kv.check_integrity()
    kv.free(2, LONG[:12])
    kv.free(3)
    assert kv.free_blocks == 8
    assert start(kv, 4, LONG[:12]) == 8


def known(kv, tokens, key="a"):
    """How many blocks of these tokens could be shared."""
    level, count = kv._prefixes._roots.get(key, {}), 0
    while (part := tuple(tokens[4 * count : 4 * count + 4])) in level:
        level, count = level[part].children, count + 1
    return count


def test_what_was_used_longest_ago_goes_first_and_the_last_block_of_a_chain_before_its_first():
    kv = pool(8)
    a, b = tuple(range(12)), tuple(range(50, 62))
    serve(kv, 1, a)
    serve(kv, 2, b)
    serve(kv, 3, a[:9])  # two blocks of the first are used again
    kv.allocate(4, 2)
    assert (known(kv, a), known(kv, b)) == (3, 3), "free blocks go before any that are known"
    left = []
    for owner in range(5, 11):
        kv.allocate(owner, 1)
        kv.check_integrity()
        left.append((known(kv, a), known(kv, b)))
    assert left == [(2, 3), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0)]


def test_copies_are_given_back_and_what_is_behind_them_is_kept():
    kv = pool(8)
    start(kv, 1, LONG[:9])
    start(kv, 2, LONG[:14])  # both compute the same two blocks, as neither was there
    kv.free(1, LONG[:9])
    kv.free(2, LONG[:14])
    kv.check_integrity()
    assert len(kv._free) == 5
    assert start(kv, 3, LONG) == 12


def test_what_failed_is_not_shared_nor_what_stands_on_it():
    kv = pool(16)
    serve(kv, 1, LONG[:12])
    assert start(kv, 2, LONG) == 12
    assert start(kv, 3, LONG[:12]) == 8
    kv.publish(2, LONG[:16])
    kv.forget(2)
    kv.check_integrity()
    assert known(kv, LONG) == 0
    kv.free(2, ())
    assert set(kv.blocks(3)).isdisjoint(kv.allocate(4, 10)), "the third still has what it shared"
    kv.publish(3, LONG[:12])
    kv.free(3, LONG[:12])
    assert known(kv, LONG) == 0, "nor is it known again by whom it was shared with"
    kv.free(4)
    kv.check_integrity()
    assert (kv.free_blocks, len(kv._free)) == (16, 16)


def test_all_that_a_key_has_computed_is_forgotten_but_not_what_others_did():
    kv = pool(16)
    for key in "ab":
        serve(kv, 1, LONG[:12], key)
    assert start(kv, 2, LONG[:9]) == 8
    kv.forget_all("a")
    kv.check_integrity()
    assert (known(kv, LONG, "a"), known(kv, LONG, "b")) == (0, 3)
    kv.free(2, LONG[:9])
    assert known(kv, LONG, "a") == 0


def test_blocks_can_be_shared_or_taken_only_when_the_last_step_is_finished():
    kv, event, finished = pool(4), Event(1, "compute", "run"), []
    start(kv, 1, LONG[:9])
    kv.use((1,), event)
    kv.free(1, LONG[:8])
    kv.poll(finished.__contains__)
    kv.check_integrity()
    assert (kv.free_blocks, known(kv, LONG)) == (1, 0)
    finished.append(event)
    kv.poll(finished.__contains__)
    kv.check_integrity()
    assert (kv.free_blocks, known(kv, LONG)) == (4, 2)


def test_an_owner_that_never_began_gives_its_promise_back():
    kv = pool(4)
    kv.reserve(1, 3)
    with pytest.raises(ValueError, match="owner 2 wants 2 blocks; 1 are free"):
        kv.allocate(2, 2)
    with pytest.raises(ValueError, match="owner 1 wants 1"):
        kv.reserve(1, 1)
    kv.check_integrity()
    kv.free(1)
    assert kv.free_blocks == 4


def test_a_pool_notices_wrong_counts():
    for harm, words in [
        (lambda kv: setattr(next(iter(kv._prefixes._roots["a"].values())), "num_users", 2), "counts 2 users but has 1"),
        (lambda kv: setattr(kv, "_promised", 3), "3 KV blocks are promised"),
        (lambda kv: kv._free.append(kv.blocks(1)[0]), "do not add up"),
        (lambda kv: kv._owned.update({1: kv._owned[1][::-1]}), "do not add up"),
        (lambda kv: kv._prefixes._unused.popitem(), "wait, not just those"),
        (lambda kv: kv._prefixes._unused.move_to_end(next(iter(kv._prefixes._unused))), "would go before"),
    ]:
        kv = pool(8)
        serve(kv, 2, LONG[:16])
        assert start(kv, 1, LONG[:6]) == 4
        harm(kv)
        with pytest.raises(ValueError, match=words):
            kv.check_integrity()


moves = st.lists(
    st.tuples(
        st.sampled_from(
            ["admit", "admit", "begin", "compute", "compute", "keep", "end", "end", "abort", "fail", "poll"]
        ),
        st.integers(0, 7),
        st.lists(st.integers(0, 1), min_size=1, max_size=30),
        st.sampled_from("ab"),
    ),
    max_size=70,
)


@settings(max_examples=150, deadline=None)
@given(moves, st.integers(6, 14))
def test_no_block_is_in_two_hands_and_what_is_shared_holds_what_it_should(moves, blocks):
    """Against a device that remembers, for each place, the key and all tokens up to it."""
    kv, content, running, issued, finished = pool(blocks), {}, {}, [], set()
    for number, (move, pick, tokens, key) in enumerate(moves):
        need = -(-len(tokens) // 4)
        if move == "admit" and need <= kv.free_blocks:
            kv.reserve(number, need)
            running[number] = [key, tuple(tokens), None]
        elif move == "poll":
            finished.update(issued)
            kv.poll(finished.__contains__)
        elif running:
            owner = sorted(running)[pick % len(running)]
            name, its, computed = running[owner]
            if computed is None:
                if move == "begin":
                    others = {b for other in running if running[other][2] is not None for b in kv.blocks(other)}
                    running[owner][2] = found = kv.begin(owner, name, its, KV)
                    assert found % 4 == 0
                    assert found < len(its)
                    for place in range(found):
                        assert content[kv.blocks(owner)[place // 4], place % 4] == (name, its[: place + 1])
                    assert others.isdisjoint(kv.blocks(owner)[found // 4 :])
            elif move == "compute":
                until = min(len(its), computed + 1 + pick)
                for place in range(computed, until):
                    block = kv.blocks(owner)[place // 4]
                    used = [other for other in running if running[other][2] is not None and block in kv.blocks(other)]
                    assert used == [owner], "it writes into a block that others use"
                    content[block, place % 4] = name, its[: place + 1]
                running[owner][2] = until
                if pick % 2:
                    issued.append(Event(len(issued), "compute", "run"))
                    kv.use((owner,), issued[-1])
            elif move == "keep":
                kv.publish(owner, its[:computed])
            if move in ("end", "abort"):
                kv.free(owner, its[: running.pop(owner)[2] or 0])
            elif move == "fail":
                kv.forget(owner)
                kv.free(owner)
                del running[owner]
        kv.check_integrity()
        for node in kv._prefixes.nodes():
            assert [content[node.block, place][1][-1] for place in range(4)] == list(node.tokens)
    for owner in running:
        kv.free(owner)
    kv.poll(lambda event: True)
    kv.check_integrity()
    assert kv.free_blocks == blocks
    kv.allocate(-1, blocks)  # each one can be had
    kv.check_integrity()
