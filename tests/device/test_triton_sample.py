"""The GPU's sampler, interpreted, draws what the reference draws: every setting, ties, NaN, any number of logits.

Knows nothing about programs.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from tests.device.interpreted import WIDE, Bucket, call
from tests.device.native import ints

from coterie.device import Sampling
from coterie.devices.real.step import encode_sampling
from coterie.graph.sampling import draw

SETTINGS = [
    Sampling(temperature=t, top_k=k, top_p=p, min_p=m, seed=s)
    for t, k, p, m, s in product((0.3, 4.0), (0, 1, 7, 10_000), (1.0, 0.9, 0.2), (0.0, 0.05), (1, 2**64 - 1))
]
SHORT = replace(WIDE, vocabulary=32, vocabulary_search=16)  # so that rows of few logits are read in several pieces


def sampled(logits_RV, settings, positions, tiles=SHORT):
    R, V = logits_RV.shape
    tokens = np.full(R, -7, np.int32)
    rows = ints(range(R))[::-1].copy()  # positions are those of the rows, not of the tokens' order
    by_token = ints(positions)[::-1].copy()
    operands = {"logits": logits_RV, "settings": encode_sampling(settings), "positions": by_token, "rows": rows}
    call("sample", Bucket(R, R, R, 1), tiles, **operands, tokens=tokens, R=R, V=V)
    return tokens.tolist()


def expected(logits_RV, settings, positions):
    return [draw(row, s, int(p)) for row, s, p in zip(logits_RV, settings, positions, strict=True)]


@pytest.mark.parametrize(("V", "tiles", "every"), [(1, WIDE, 31), (2, WIDE, 31), (50, SHORT, 35), (1003, WIDE, 11)])
def test_draws_are_those_of_the_reference(V, tiles, every):
    check_draws(V, tiles, SETTINGS[::every])


@pytest.mark.long
@pytest.mark.parametrize(("V", "tiles"), [(2, SHORT), (50, SHORT), (1003, WIDE), (5000, WIDE)])
def test_draws_by_every_setting_are_those_of_the_reference(V, tiles):
    check_draws(V, tiles, SETTINGS)


def check_draws(V, tiles, settings):
    logits = (3 * np.random.default_rng(V).standard_normal((len(settings), V))).astype(np.float32)
    positions = [7 * i for i in range(len(settings))]
    assert sampled(logits, settings, positions, tiles) == expected(logits, settings, positions)


@pytest.mark.parametrize("every", [13, pytest.param(1, marks=pytest.mark.long)])
def test_ties_go_to_the_lowest_index(every):
    settings = SETTINGS[::every]
    logits = np.random.default_rng(0).integers(0, 3, (len(settings), 60)).astype(np.float32)
    positions = list(range(len(settings)))
    assert sampled(logits, settings, positions, WIDE) == expected(logits, settings, positions)
    greedy = [Sampling()] * len(settings)
    assert sampled(logits, greedy, positions) == np.argmax(logits, axis=1).tolist()


def test_greedy_of_negative_zero_and_infinite_logits():
    rows = [
        [-5, -2, -2, -9],
        [-np.inf, -np.inf, 1, -np.inf],
        [-1, np.inf, 3, np.inf],
        [-0.0, 0.0, -1, 0],
        [-np.inf] * 4,
    ]
    logits = np.array(rows, np.float32)
    assert sampled(logits, [Sampling()] * 5, [0] * 5) == [1, 2, 1, 0, 0]


def test_masked_tokens_are_never_drawn():
    logits = np.full((6, 20), -np.inf, np.float32)
    logits[:, [3, 17]] = [0.0, 1.0]
    settings = [Sampling(temperature=1.0, seed=5)] * 6
    drawn = sampled(logits, settings, range(6))
    assert drawn == expected(logits, settings, range(6))
    assert set(drawn) <= {3, 17}


@pytest.mark.parametrize("at", [0, pytest.param(39, marks=pytest.mark.long)])
def test_a_row_with_a_nan_draws_no_token_and_the_others_are_as_before(at):
    settings = [Sampling(), *SETTINGS[:3]]
    logits = np.random.default_rng(at).standard_normal((4, 40)).astype(np.float32)
    before = sampled(logits, settings, range(4))
    logits[::2, at] = np.nan
    after = sampled(logits, settings, range(4))
    assert after[::2] == [-1, -1]
    assert after[1::2] == before[1::2]


def test_no_rows():
    assert sampled(np.zeros((0, 5), np.float32), [], []) == []
