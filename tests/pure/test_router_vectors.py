"""The knn router by vectors: what is like what, against plain arithmetic, and its decisions."""

from __future__ import annotations

import numpy as np
import pytest

from coterie.composition.router import Prompt
from coterie.composition.routers.knn import Example, KnnRouter
from coterie.composition.routers.llm import ROUTER
from coterie.composition.routers.vector_neighbours import SHRINK, VectorNeighbours


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def plainly(examples_ND, labels, vector_D):
    """The same by the whole matrix that divides each direction, with no axes."""
    examples, vector = unit(examples_ND.astype(np.float64)), unit(vector_D.astype(np.float64))
    mean = examples.mean(axis=0)
    away = examples - mean
    scatter, axes = np.linalg.eigh(away.T @ away)
    least = SHRINK * np.trace(away.T @ away) / min(examples.shape)
    white = axes / np.sqrt(np.maximum(scatter, 0) + least) @ axes.T
    e, q = unit(away @ white), unit((vector - mean) @ white)
    sums = unit(np.stack([e[np.array(labels) == label].sum(axis=0) for label in range(max(labels) + 1)]))
    return np.sqrt(np.maximum(e @ q, 0) * np.maximum(sums @ q, 0)[labels])


@pytest.mark.parametrize(("count", "width"), [(2, 5), (7, 5), (5, 40), (40, 40), (60, 9)])
def test_likeness_is_that_of_plain_arithmetic(count, width):
    rng = np.random.default_rng(count)
    examples, labels = rng.standard_normal((count, width)).astype(np.float32) + 3, [i % 2 for i in range(count)]
    found = VectorNeighbours([str(i) for i in range(count)], labels, examples)
    for vector in (examples[0], rng.standard_normal(width).astype(np.float32) + 3):
        np.testing.assert_allclose(found.similarities(vector), plainly(examples, labels, vector), atol=1e-7)


def test_an_example_is_most_like_itself_whatever_its_length():
    rng = np.random.default_rng(1)
    examples, labels = rng.standard_normal((12, 30)).astype(np.float32) + 2, [i % 3 for i in range(12)]
    found = VectorNeighbours([f"text {i}" for i in range(12)], labels, examples)
    assert len(found) == 12
    for place in range(12):
        nearest = found.nearest(7 * examples[place], 4)
        assert (nearest[0].text, nearest[0].label) == (f"text {place}", place % 3)
        assert 0.5 < nearest[0].similarity <= 1
        assert [one.similarity for one in nearest] == sorted([one.similarity for one in nearest], reverse=True)


def test_examples_that_are_all_alike_give_numbers():
    found = VectorNeighbours(["a", "b"], [0, 1], np.ones((2, 4), np.float32))
    assert np.isfinite(found.similarities(np.ones(4))).all()
    assert np.isfinite(found.similarities(np.zeros(4))).all()


def test_a_router_asks_for_its_examples_and_then_for_each_prompt():
    examples = [Example("up", "one"), Example("down", "two"), Example("down", " "), Example("rest", "none")]
    router = KnnRouter(examples, "rest", by_vectors=True)
    assert [(ask.expert, ask.text, ask.embeds) for ask in router.asks_for_examples] == [
        (ROUTER, text, True) for text in ("one", "two", "none")
    ]
    prompt = Prompt("five")
    assert [ask.text for ask in router.ask(prompt)] == ["five"]
    assert router.ask(Prompt(" ")) == ()
    assert router.ask(Prompt("x" * 9000))[0].text == "x" * 4096
    with pytest.raises(RuntimeError, match="nobody gave"):
        router.decide(prompt, [(1.0, 0.0)])
    taught = router.taught([[1, 0, 0.1], [0, 1, 0.1], [-1, -1, 1]])
    assert taught.decide(prompt, [(0.9, 0.1, 0.1)]).expert == "up"
    assert taught.decide(prompt, [(0.1, 0.9, 0.1)]).expert == "down"
    out = taught.decide(prompt, [(-0.9, -1.0, 1.0)])
    assert (out.expert, out.is_fallback) == ("rest", True)
    assert taught.decide(Prompt("")).is_fallback
    with pytest.raises(RuntimeError, match="nobody gave"):
        taught.decide(prompt, ["up"])
