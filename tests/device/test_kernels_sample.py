"""The native sampler draws what the reference draws, and depends on nothing but logits, settings, seed and position.

Knows nothing about programs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.device.native import call, ints

from coterie.device import Sampling
from coterie.devices.real.changes import SETTING, encode_changes, ids_of, note
from coterie.devices.real.step import encode_sampling
from coterie.engine.history import History
from coterie.engine.request import ChoiceParams
from coterie.graph.sampling import BIAS_ONLY, Changes, changed, draw, uniform
from coterie.kernels import cpu as kernels

SETTINGS = [
    Sampling(temperature=t, top_k=k, top_p=p, min_p=m, seed=s)
    for t, k, p, m, s in product((0.3, 1.0, 4.0), (0, 1, 7, 10_000), (1.0, 0.9, 0.2), (0.0, 0.05), (1, 2**64 - 1))
]


@pytest.fixture(scope="module")
def team():
    return kernels.Team(2)


def native(team, logits_RV, settings, positions):
    tokens = np.full(len(settings), -1, dtype=np.int32)
    rows = ints(range(len(settings)))[::-1].copy()  # positions are those of the rows, not of the tokens' order
    by_token = ints(positions)[::-1].copy()
    words, blocks = encode_sampling(settings), [encode_changes(s.changes, 1) if s.changes else None for s in settings]
    words[:, SETTING] = [0 if block is None else kernels.address(block) for block in blocks]
    operands = {"logits": logits_RV, "settings": words, "positions": by_token, "rows": rows}
    call(team, "sample", **operands, tokens=tokens, R=len(settings), V=logits_RV.shape[1])
    return tokens.tolist()


@pytest.mark.parametrize("V", [1, 2, 50, 1003])
def test_draws_are_those_of_the_reference(team, V):
    rng = np.random.default_rng(V)
    logits = (3 * rng.standard_normal((len(SETTINGS), V))).astype(np.float32)
    for first in range(0, 4000, 400):
        positions = [first + i for i in range(len(SETTINGS))]
        expected = [draw(row, s, p) for row, s, p in zip(logits, SETTINGS, positions, strict=True)]
        assert native(team, logits, SETTINGS, positions) == expected


@pytest.mark.parametrize("V", [15, 17, 1003, 6000])
@pytest.mark.parametrize("spread", [0.1, 5.0, 40.0, 1e30])
def test_draws_are_those_of_the_reference_wherever_the_mass_lies(team, V, spread):
    """In the first few tokens or in all of them, in sorted logits too, and where they overflow over the temperature."""
    rng = np.random.default_rng(V)
    logits = (spread * rng.standard_normal((len(SETTINGS), V))).astype(np.float32)
    logits[::3].sort(axis=1)
    logits[1::3, V // 2 :] = -np.inf
    settings = [replace(s, temperature=1e-6) if row % 9 == 8 and spread < 1e30 else s for row, s in enumerate(SETTINGS)]
    positions = range(len(SETTINGS))
    expected = [draw(row, s, p) for row, s, p in zip(logits, settings, positions, strict=True)]
    assert native(team, logits, settings, positions) == expected


@pytest.mark.parametrize("V", [5, 300])
def test_ties_go_to_the_lowest_index(team, V):
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (len(SETTINGS), V)).astype(np.float32)
    for positions in ([i] * len(SETTINGS) for i in range(20)):
        expected = [draw(row, s, p) for row, s, p in zip(logits, SETTINGS, positions, strict=True)]
        assert native(team, logits, SETTINGS, positions) == expected
    greedy = [Sampling()] * len(logits)
    assert native(team, logits, greedy, [0] * len(logits)) == np.argmax(logits, axis=1).tolist()


def test_greedy_of_negative_and_infinite_logits(team):
    logits = np.array([[-5, -2, -2, -9], [-np.inf, -np.inf, 1, -np.inf], [-1, np.inf, 3, np.inf]], dtype=np.float32)
    assert native(team, logits, [Sampling()] * 3, [0, 0, 0]) == [1, 2, 1]


def test_masked_tokens_are_never_drawn(team):
    logits = np.full((200, 40), -np.inf, dtype=np.float32)
    logits[:, [3, 17]] = [0.0, 1.0]
    drawn = native(team, logits, [Sampling(temperature=1.0, seed=5)] * 200, range(200))
    assert set(drawn) == {3, 17}


@pytest.mark.parametrize("at", [0, 17, 99])
def test_a_row_with_a_nan_draws_no_token_and_the_others_are_as_before(team, at):
    logits = np.random.default_rng(at).standard_normal((len(SETTINGS) + 1, 100)).astype(np.float32)
    settings, positions = [Sampling(), *SETTINGS], list(range(len(logits)))
    before = native(team, logits, settings, positions)
    logits[::2, at] = np.nan
    drawn = native(team, logits, settings, positions)
    assert drawn[::2] == [-1] * len(drawn[::2]) == [draw(logits[0], s, 0) for s in settings[::2]]
    assert drawn[1::2] == before[1::2]


def test_frequencies_are_the_softmax(team):
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.tile(np.log(p).astype(np.float32), (20_000, 1))
    drawn = native(team, logits, [Sampling(temperature=1.0, seed=11)] * len(logits), range(len(logits)))
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, p, atol=0.012)  # three standard deviations of a share of one half


def test_a_large_vocabulary_with_flat_logits(team):
    logits = np.zeros((3, 150_000), dtype=np.float32)
    settings = [Sampling(temperature=1.0, seed=s) for s in (1, 2, 3)]
    expected = [min(int(uniform(s, 7) * 150_000), 149_999) for s in (1, 2, 3)]
    np.testing.assert_allclose(native(team, logits, settings, [7, 7, 7]), expected, atol=1)


def test_no_rows(team):
    assert native(team, np.zeros((0, 5), dtype=np.float32), [], []) == []


def changes_of(V, seed, prompt, answer):
    """What an engine would say after this prompt and answer, with a bias of one token in three."""
    rng = np.random.default_rng(seed)
    bias = tuple((token, float(rng.normal())) for token in range(0, V, 3))
    params = ChoiceParams(None, rng.uniform(-2, 2), rng.uniform(-2, 2), rng.uniform(0.5, 2), bias[: seed % 5])
    history = History(params, prompt)
    for token in answer:
        history.note(token)
    return history


@pytest.mark.parametrize("V", [1, 2, 50, 1003])
def test_draws_from_changed_logits_are_those_of_the_reference_and_logits_stay(team, V):
    rng = np.random.default_rng(V)
    logits = np.round(3 * rng.standard_normal((len(SETTINGS), V)), 1).astype(np.float32)  # with ties
    logits[::5] = -np.abs(logits[::5])
    logits[3, V // 2] = np.nan
    logits[6, 1 : V // 2] = -np.inf
    settings, wanted, before = [], [], logits.copy()
    for row, plain in enumerate((Sampling(), *SETTINGS[1:])):
        prompt, answer = rng.integers(0, V, row % 7 + 1).tolist(), rng.integers(0, V, 2 * (row % 4)).tolist()
        behind = tuple(rng.integers(0, V, row % 3).tolist())
        changes = changes_of(V, row, prompt, answer).changes(behind) if row % 4 else None
        settings.append(replace(plain, changes=changes))
        wanted.append(draw(logits[row], settings[-1], row))
    plain = [replace(s, changes=None) for s in settings]
    assert native(team, logits, settings, range(len(settings))) == wanted
    np.testing.assert_array_equal(logits, before)
    assert native(team, logits, plain, range(len(settings))) == [
        draw(row, s, p) for p, (row, s) in enumerate(zip(logits, plain, strict=True))
    ]
    assert V < 50 or wanted != native(team, logits, plain, range(len(settings)))


@pytest.mark.parametrize("V", [1, 2, 17, 300, 5000])
@pytest.mark.parametrize("bias", [0.0, 100.0, -100.0, np.inf, -np.inf])
def test_infinities_and_what_is_made_certain_or_impossible_are_as_in_the_reference(team, V, bias):
    """In logits, in what is added to them, and where one is added to the other; a vocabulary of one token too."""
    rng = np.random.default_rng(V)
    logits = rng.standard_normal((len(SETTINGS), V)).astype(np.float32)
    certain = rng.integers(V)
    logits[1::5, certain] = np.inf
    logits[2::5, V // 3 :] = -np.inf
    logits[3::5] = -np.inf
    settings = []
    for row, plain in enumerate((Sampling(), *SETTINGS[1:])):
        ids = np.unique([certain, *rng.permutation(V)[:4]]).astype(np.int32)
        times, added = rng.integers(BIAS_ONLY, 4, len(ids)).astype(np.int32), np.full(len(ids), bias, np.float32)
        settings.append(replace(plain, changes=Changes(1.3, 2.0, -2.0, ids, times, added) if row % 3 else None))
    with np.errstate(invalid="ignore"):
        wanted = [draw(row, s, p) for p, (row, s) in enumerate(zip(logits, settings, strict=True))]
    assert native(team, logits, settings, range(len(settings))) == wanted
    assert np.isfinite(bias) or wanted.count(-1) > 0


@given(st.lists(st.integers(0, 9), max_size=12), st.lists(st.integers(0, 9), max_size=6), st.integers(0, 4))
def test_tokens_that_are_noted_count_as_if_they_had_been_known(answer, later, seed):
    history = changes_of(10, seed, [1, 2], answer)
    block = encode_changes(history.changes(tuple(later[:2])), steps=1 + len(later[2:]))
    for token in later[2:]:
        note(block, token)
    logits = np.linspace(-1, 1, 10, dtype=np.float32)
    found = changed(logits, history.changes(tuple(later)))
    for token in later:
        history.note(token)
    np.testing.assert_array_equal(found, changed(logits, history.changes()))
    np.testing.assert_array_equal(sorted(ids_of(block)), sorted(history.changes().ids_N))
