"""What `sample` means: limits, edges, ties, frequencies, and a random number that depends on (seed, position) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pure.graphs import STEADY, Choice

from coterie.graph.sampling import _MANY, _among_all, _by_count, _order, draw, uniform

LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40).map(lambda x: np.array(x, np.float32))
SEEDS = st.integers(0, 2**64 - 1)
POSITIONS = st.integers(0, 2**31 - 1)
OFTEN = settings(STEADY, max_examples=100)


def drawn(logits, count=400, **choice):
    """The set of tokens that come in many draws."""
    return {draw(np.asarray(logits, np.float32), Choice(**{"temperature": 1.0} | choice), p) for p in range(count)}


def softmax(logits):
    p = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return p / p.sum()


def test_uniform_is_splitmix64():
    """The first outputs of splitmix64 from state 0 are published; position p of seed 0 is output p."""
    published = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)
    for position, bits in enumerate(published):
        assert uniform(0, position) == (bits >> 11) * 2.0**-53


@OFTEN
@given(SEEDS, POSITIONS)
def test_uniform_is_in_the_unit_interval(seed, position):
    assert 0 <= uniform(seed, position) < 1


@pytest.mark.parametrize("seed", [0, 1, 12345, 2**64 - 1])
def test_uniform_is_flat_and_unlike_its_neighbours(seed):
    numbers = np.array([uniform(seed, p) for p in range(4096)])
    assert abs(numbers.mean() - 0.5) < 4 * (1 / 12 / 4096) ** 0.5
    counts = np.histogram(numbers, bins=16, range=(0, 1))[0]
    assert ((counts - 256) ** 2 / 256).sum() < 37.7  # chi-squared of 15 degrees of freedom, one in a thousand
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / 64
    other = np.array([uniform((seed + 1) % 2**64, p) for p in range(4096)])
    assert abs(np.corrcoef(numbers, other)[0, 1]) < 4 / 64


@OFTEN
@given(LOGITS, SEEDS, POSITIONS, st.floats(0.1, 5), st.integers(0, 50), st.floats(0.01, 1), st.floats(0, 1))
def test_what_is_drawn_is_within_every_limit(logits, seed, position, temperature, top_k, top_p, min_p):
    token = draw(logits, Choice(temperature, top_k, top_p, min_p, seed), position)
    z = logits / np.float32(temperature)
    order = sorted(range(len(z)), key=lambda i: (-z[i], i))
    rank = order.index(token)
    kept = order[: top_k or len(order)]
    p = softmax(z[kept])
    assert token in kept
    assert rank == 0 or p[rank] >= min_p * p[0] * (1 - 1e-12)
    assert rank == 0 or p[:rank].sum() < top_p + 1e-12


@OFTEN
@given(st.lists(st.sampled_from([-np.inf, -2.0, 0.5, 1.0, 7.0]), min_size=1, max_size=60), st.integers(0, 70))
def test_what_need_not_be_sorted_changes_no_order(logits, top_k):
    """Ties at the edge of top-k go by index; what has no chance comes last, or not at all."""
    z = np.array(logits, np.float32)
    order = np.argsort(-z, kind="stable")[: top_k or None]
    possible = order[z[order] > -np.inf]
    assert _order(z, top_k).tolist() == (possible if len(possible) else order).tolist()


TOP_P = st.one_of(st.floats(0, 1), st.sampled_from([1e-9, 0.25, 0.5, 0.75, 0.9, 1.0]))
MIN_P = st.one_of(st.just(0.0), st.floats(0, 1), st.sampled_from([1e-12, 0.25, 1.0]))
UNIFORM = st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1 - 2.0**-53]))
SOME = st.sampled_from([-np.inf, -40.0, -2.0, 0.5, 1.0, 7.0])
TIED = st.lists(SOME, min_size=1, max_size=60).filter(lambda z: max(z) > -np.inf)


@OFTEN
@given(st.one_of(LOGITS, TIED), UNIFORM, TOP_P, MIN_P)
def test_counted_it_is_the_token_of_the_definition_or_left_to_it(logits, u, top_p, min_p):
    z, choice = np.array(logits, np.float32), Choice(1.0, top_p=top_p, min_p=min_p)
    assert _by_count(z, choice, u) in (None, _among_all(z, choice, u))


@pytest.mark.parametrize("shape", ["peaked", "even", "tied", "masked", "far"])
@pytest.mark.parametrize("top_p", [0.3, 0.95, 1.0])
@pytest.mark.parametrize("min_p", [0.0, 0.02])
def test_many_tokens_are_counted_and_drawn_as_by_the_definition(shape, top_p, min_p):
    """And hardly any draw is so near to a border that it is left to the definition."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal(_MANY).astype(np.float32) * np.float32({"peaked": 5, "far": 100}.get(shape, 0.1))
    if shape == "tied":
        z = np.round(z * 40) / np.float32(8)
    if shape == "masked":
        z[rng.random(_MANY) < 0.9] = -np.inf
    left = 0
    for position in range(40):
        choice = Choice(1.0, top_p=top_p, min_p=min_p, seed=1)
        u = uniform(choice.seed, position)
        counted, wanted = _by_count(z, choice, u), _among_all(z, choice, u)
        assert draw(z, choice, position) == wanted
        assert counted in (None, wanted)
        left += counted is None
    assert left <= (1 if shape != "far" else 40)


def test_what_lies_at_a_border_is_left_to_the_definition():
    """Of 4096 equals half of the mass is 2048 exactly, where the last bit of a sum decides."""
    z = np.zeros(_MANY, np.float32)
    assert _by_count(z, Choice(1.0, top_p=0.5), 0.3) is None
    assert _by_count(z, Choice(1.0, min_p=1.0), 0.3) is None
    assert _by_count(z, Choice(1.0), 0.25) is None
    assert _by_count(z, Choice(1.0), 0.2501) == 1024
    for z in (np.full(_MANY, -np.inf, np.float32), np.full(_MANY, np.inf, np.float32)):
        assert _by_count(z, Choice(1.0), 0.3) is None


@OFTEN
@given(LOGITS, SEEDS, POSITIONS)
def test_limits_of_one_are_greedy(logits, seed, position):
    greedy = int(np.argmax(logits))
    assert draw(logits, Choice(), position) == greedy
    assert draw(logits, Choice(1.0, top_k=1, seed=seed), position) == greedy
    assert draw(logits, Choice(1.0, top_p=1e-9, seed=seed), position) == greedy
    # logits may differ by less than a probability can tell
    likeliest = draw(logits, Choice(1.0, min_p=1.0, seed=seed), position)
    assert np.exp(np.float64(logits[likeliest]) - np.float64(logits[greedy])) == 1


@OFTEN
@given(LOGITS, SEEDS, POSITIONS, st.floats(0.1, 5))
def test_no_limits_are_no_limits(logits, seed, position, temperature):
    plain = draw(logits, Choice(temperature, seed=seed), position)
    wide = Choice(temperature, top_k=len(logits), top_p=1.0, min_p=0.0, seed=seed)
    assert draw(logits, wide, position) == plain == draw(logits, Choice(temperature, seed=seed), position)


@pytest.mark.parametrize("choice", [Choice(), Choice(1.0), Choice(0.7, top_k=2, top_p=0.5, min_p=0.1)], ids=str)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_row_with_a_nan_draws_no_token(choice, at):
    logits = np.array([1, 3, 2], np.float32)
    logits[at] = np.nan
    assert draw(logits, choice, 0) == -1


def test_ties_go_to_the_lowest_index():
    assert draw(np.array([1, 3, 3, 2], np.float32), Choice(), 0) == 1
    assert drawn([1, 3, 3, 3], top_k=2) == {1, 2}
    assert drawn([2, 2, 2, 2], top_p=0.5) == {0, 1}


def test_top_k_keeps_the_likeliest():
    assert drawn([0.1, 0.4, 0.2, 0.3], top_k=2) == {1, 3}
    assert drawn([0.1, 0.4, 0.2, 0.3], top_k=9) == {0, 1, 2, 3}


def test_top_p_keeps_the_shortest_prefix_that_reaches_it():
    logits = np.log([0.5, 0.25, 0.125, 0.125])  # exact in binary, so the border is a border
    assert drawn(logits, top_p=0.4) == {0}
    assert drawn(logits, top_p=0.51) == {0, 1}
    assert drawn(logits, top_p=0.74) == {0, 1}
    assert drawn(logits, top_p=0.9) == {0, 1, 2, 3}
    assert drawn(logits, top_p=0.86) == {0, 1, 2}
    assert drawn(np.zeros(4), top_p=0.5) == {0, 1}
    assert drawn(np.zeros(4), top_p=0.5 + 1e-9) == {0, 1, 2}


def test_top_p_is_of_the_softmax_after_top_k():
    """0.4 and 0.3 of all are 0.57 and 0.43 of the two that are kept."""
    logits = np.log([0.4, 0.3, 0.2, 0.1])
    assert drawn(logits, top_k=2, top_p=0.55) == {0}
    assert drawn(logits, top_p=0.55) == {0, 1}


def test_min_p_is_a_share_of_the_likeliest():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert drawn(logits, min_p=0.59) == {0, 1}
    assert drawn(logits, min_p=0.61) == {0}
    assert drawn(logits, min_p=0.29) == {0, 1, 2}
    assert drawn(np.zeros(3), min_p=1.0) == {0, 1, 2}


def test_min_p_and_top_p_both_hold():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert drawn(logits, min_p=0.29, top_p=0.6) == {0, 1}
    assert drawn(logits, min_p=0.59, top_p=0.99) == {0, 1}


def test_a_low_temperature_sharpens():
    assert drawn([1.0, 1.5, 1.4], temperature=0.002) == {1}
    assert drawn([1.0, 1.5, 1.4], temperature=50.0) == {0, 1, 2}


def test_masked_tokens_are_never_drawn():
    assert drawn([-np.inf, 0.0, -np.inf, 1.0]) == {1, 3}


@pytest.mark.parametrize(
    "choice", [Choice(1.0), Choice(0.7, seed=3), Choice(1.0, top_k=3, seed=2), Choice(1.3, top_p=0.8)]
)
def test_frequencies_are_the_renormalised_softmax(choice):
    logits, count = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15], np.float32)), 6000
    counts = np.bincount([draw(logits, choice, p) for p in range(count)], minlength=5)
    p = softmax(logits / np.float32(choice.temperature))
    order = np.argsort(-p)[: choice.top_k or 5]
    kept = p[order] / p[order].sum()
    order = order[: int(np.searchsorted(np.cumsum(kept), choice.top_p)) + 1] if choice.top_p < 1 else order
    wanted = np.zeros(5)
    wanted[order] = p[order] / p[order].sum()
    assert not counts[wanted == 0].any()
    deviation = np.sqrt(count * wanted * (1 - wanted))
    assert (np.abs(counts - count * wanted) <= 4 * deviation).all()


def test_other_seeds_and_positions_are_other_draws():
    logits = np.zeros(1000, np.float32)
    by_position = [draw(logits, Choice(1.0, seed=5), p) for p in range(50)]
    by_seed = [draw(logits, Choice(1.0, seed=s), 5) for s in range(50)]
    assert len(set(by_position)) > 40
    assert len(set(by_seed)) > 40
    assert by_position == [draw(logits, Choice(1.0, seed=5), p) for p in range(50)]
