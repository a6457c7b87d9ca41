"""What every device must keep of programs without a head: vectors in place of tokens, over the same KV state.

Knows nothing about which device it is given.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.device.contract import PROMPT, needs_bytes, prompt_rows
from tests.device.programs import headless, loaded, rows

from coterie.core.errors import UnsupportedError
from coterie.device import Sampling
from coterie.graph.compile import compile_graph

OTHER = [40, 41, 42, 43, 44, 45, 46]


def of_all(step, count):
    """The same step with a row for each of its tokens."""
    return dataclasses.replace(
        step, rows_R=np.arange(count, dtype=np.int32), sampling=(Sampling(),) * count, end_ids=((),) * count
    )


def vectors(desk, step):
    event = desk.run(step)
    desk.wait(event)
    return desk.device.vectors(event, range(len(step.rows_R)))


def test_vectors_are_what_the_last_norm_makes_of_the_rows(desk):
    needs_bytes(desk.device)
    bare = headless(loaded(desk))
    step = rows([(PROMPT, 0), ([1], 0), (OTHER, 0)])
    unshared = desk.device.load(compile_graph(desk.graph, "none", share_buffers=False))
    expected = desk.device.inspect(unshared, desk.binding(step))["head/norm"]
    for _ in range(2):  # the second time captured, on a device that captures
        event = bare.run(step)
        assert bare.tokens(event) == [[]]
        found = desk.device.vectors(event, [2, 0, 1])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected[[2, 0, 1]], rtol=1e-5, atol=1e-5)
    found[:] = 0  # they are the caller's
    assert desk.device.vectors(event, [0]).any()


def test_a_vector_is_the_same_alone_in_a_batch_and_in_pieces(desk):
    needs_bytes(desk.device)
    bare = headless(loaded(desk))
    whole = vectors(bare, of_all(prompt_rows(), len(PROMPT)))
    assert whole.shape == (len(PROMPT), 32)
    count = len(PROMPT) + 1 + len(OTHER)
    together = vectors(bare, of_all(rows([(PROMPT, 0), ([1], 0), (OTHER, 0)]), count))
    np.testing.assert_array_equal(together[: len(PROMPT)], whole)
    np.testing.assert_array_equal(vectors(bare, prompt_rows()), whole[-1:])
    for cut in (1, 2, 4):
        begun = vectors(bare, of_all(rows([(PROMPT[:cut], 0)]), cut))
        rest = vectors(bare, of_all(rows([(PROMPT[cut:], cut)]), len(PROMPT) - cut))
        np.testing.assert_array_equal(np.concatenate([begun, rest]), whole)


def test_both_programs_share_the_kv_state(desk):
    """What one has computed of a prompt the other goes on with."""
    needs_bytes(desk.device)
    bare = headless(loaded(desk))
    drawn, vector = desk.tokens(desk.run(prompt_rows())), vectors(bare, prompt_rows())
    desk.wait(bare.run(rows([(PROMPT[:3], 0)])))
    assert desk.tokens(desk.run(rows([(PROMPT[3:], 3)]))) == drawn
    desk.wait(desk.run(rows([(PROMPT[:2], 0)])))
    np.testing.assert_array_equal(vectors(bare, rows([(PROMPT[2:], 2)])), vector)


def test_a_step_of_no_rows_gives_no_vectors(desk):
    needs_bytes(desk.device)
    bare = headless(loaded(desk))
    begun = dataclasses.replace(rows([(PROMPT[:3], 0)]), rows_R=np.zeros(0, np.int32), sampling=(), end_ids=())
    assert vectors(bare, begun).shape == (0, 32)


def test_vectors_behind_gates(desk):
    needs_bytes(desk.device)
    bare = headless(desk)
    event = bare.run(prompt_rows(), gates=desk.fetch())
    desk.wait(event)
    found = desk.device.vectors(event, [0])
    np.testing.assert_array_equal(vectors(bare, prompt_rows()), found)


def test_who_draws_has_no_vectors_and_who_gives_vectors_no_logits(desk):
    needs_bytes(desk.device)
    bare = headless(loaded(desk))
    drew = desk.run(prompt_rows())
    desk.wait(drew)
    with pytest.raises(ValueError, match="tokens and logits, and no vectors"):
        desk.device.vectors(drew, [0])
    gave = bare.run(prompt_rows())
    desk.wait(gave)
    with pytest.raises(ValueError, match="vectors, and no logits"):
        desk.device.logits(gave, [0])
    with pytest.raises(ValueError, match="are gone"):
        desk.device.vectors(drew, [0])
    with pytest.raises(ValueError, match="rows"):
        desk.device.vectors(gave, [1])


def test_who_computes_no_numbers_has_no_vectors(desk):
    if not desk.device.synthetic():
        pytest.skip("this device computes numbers")
    event = headless(loaded(desk)).run(prompt_rows())
    desk.wait(event)
    with pytest.raises(UnsupportedError, match="no numbers"):
        desk.device.vectors(event, [0])
