"""The knn router: its search against plain sums over texts, its votes, its file of examples, and any text at all."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.composition.router import Prompt
from coterie.composition.routers import features, neighbours
from coterie.composition.routers.features import MAX_CHARS, gram_hashes, gram_hashes_of, normalise
from coterie.composition.routers.knn import Example, KnnRouter, KnnSettings
from coterie.composition.routers.neighbours import NGRAM_MAX, NGRAM_MIN, Neighbours

SUMS = ["what is 1 plus 2?", "add 3 and 4", "the sum of 1 and 2"]
ROMAN = ["1 in Roman numerals", "write 4 as a Roman numeral"]
NOTHING = ["who wrote Hamlet?", "how do I cook rice?"]
EXAMPLES = (
    *(Example("sums", text) for text in SUMS),
    *(Example("roman", text) for text in ROMAN),
    *(Example("general", text) for text in NOTHING),
)
ROUTER = KnnRouter(EXAMPLES, "general")


def grams(text):
    normal = normalise(text)
    return {normal[i : i + n] for n in range(NGRAM_MIN, NGRAM_MAX + 1) for i in range(len(normal) - n + 1)}


def dot(a, b):
    return sum(value * b.get(gram, 0.0) for gram, value in a.items())


def scaled(vector):
    length = math.sqrt(dot(vector, vector))
    return {gram: value / length for gram, value in vector.items()}


def plain_similarities(texts, labels, prompt):
    """Cosines by sets of n-grams as texts and sums one by one."""
    if not texts:
        return []
    held = [grams(text) for text in texts]
    sizes = {label: labels.count(label) for label in labels}

    def weight(gram):
        shares = [sum(gram in h for h, own in zip(held, labels, strict=True) if own == x) / n for x, n in sizes.items()]
        parts = [share / sum(shares) for share in shares if share]
        return math.log((len(sizes) + 1) / math.exp(-sum(part * math.log(part) for part in parts)))

    def unit(found):
        return scaled({gram: weight(gram) for gram in found})

    asked, units = unit(grams(prompt)), [unit(h) for h in held]
    whole = {}
    for x in sizes:
        whole[x] = {}
        for vector in (v for v, own in zip(units, labels, strict=True) if own == x):
            for gram, value in vector.items():
                whole[x][gram] = whole[x].get(gram, 0.0) + value
    both = [dot(asked, v) * dot(asked, scaled(whole[own])) for v, own in zip(units, labels, strict=True)]
    return [math.sqrt(value) for value in both]


@given(
    st.lists(st.tuples(st.text("ab c1", min_size=1, max_size=12), st.integers(0, 2)), min_size=1, max_size=12),
    st.text("abd c1", max_size=12),
)
def test_similarities_are_those_of_plain_sums(pairs, prompt):
    found = {(tuple(sorted(grams(text))), label): text for text, label in reversed(pairs) if text.strip()}
    kept = [(text, label) for text, label in pairs if found.get((tuple(sorted(grams(text))), label)) is text]
    kept = sorted(dict.fromkeys(kept), key=lambda pair: pair[1])
    texts, labels = [text for text, _ in kept], [label for _, label in kept]
    index = Neighbours([text for text, _ in pairs], [label for _, label in pairs])
    assert len(index) == len(texts)  # the first of equals
    assert np.allclose(index.similarities(prompt), plain_similarities(texts, labels, prompt), rtol=1e-9, atol=1e-12)


def made_up(rng, count):
    words = ["abc", "b", "cad", "dee", "f", "ace", "bad"]
    return [" ".join([*rng.choices(words, k=rng.randint(3, 9)), f"{rng.getrandbits(64):x}"]) for _ in range(count)]


@pytest.mark.parametrize("most", [1, 7, 1000, 2**20])
def test_a_search_in_parts_is_the_search_at_once(monkeypatch, most):
    rng = random.Random(5)
    texts, prompts = made_up(rng, 300), made_up(rng, 10)
    index = Neighbours(texts, [i % 7 for i in range(len(texts))])
    whole = [index.similarities(prompt) for prompt in prompts]
    monkeypatch.setattr(neighbours, "MAX_POSTINGS", most)
    for prompt, expected in zip(prompts, whole, strict=True):
        assert np.allclose(index.similarities(prompt), expected, rtol=1e-12)


def test_the_nearest_are_all_sorted_and_equals_keep_their_order():
    rng = random.Random(6)
    texts = made_up(rng, 200)
    index = Neighbours(texts + texts, [0] * 200 + [1] * 200)
    for prompt in made_up(rng, 10):
        similarities = index.similarities(prompt)
        order = sorted(range(len(similarities)), key=lambda i: (-similarities[i], i))
        found = index.nearest(prompt, 15)
        assert [n.similarity for n in found] == [similarities[i] for i in order[:15]]
        assert [n.text for n in found] == [(texts + texts)[i] for i in order[:15]]
        assert [n.label for n in found] == [i // 200 for i in order[:15]]


def test_a_text_is_nearest_to_itself():
    index = Neighbours(SUMS + ROMAN, [0, 0, 0, 1, 1])
    assert Neighbours(SUMS, [0, 1, 2]).nearest(SUMS[1], 1)[0].similarity == pytest.approx(1.0)
    for text in SUMS + ROMAN:
        assert index.nearest(text.upper().replace("1", "9"), 1)[0].text == text
    texts = made_up(random.Random(8), 300)
    many = Neighbours(texts, list(range(300)))
    assert max(many.similarities(text).max() for text in texts) <= 1.0


def test_the_beginning_of_a_text_is_shown_in_a_line():
    index = Neighbours(["a  b\nc", "x" * 80, "y" * 81], [0, 1, 2])
    shown = [index.nearest(letter * 9, 1)[0].text for letter in "xy"]
    assert shown == ["x" * 80, "y" * 77 + "..."]
    assert index.nearest("a b", 1)[0].text == "a b c"


def test_texts_that_differ_in_numbers_are_one():
    index = Neighbours(["add 3 and 4", "Add 5 and  6", "add 7 and 8", " "], [0, 0, 1, 0])
    assert [found.text for found in index.nearest("add", 5)] == ["add 3 and 4", "add 7 and 8"]


def test_what_all_have_weighs_little_and_what_one_has_weighs_much():
    index = Neighbours(["zz apple", "zz pear", "zz plum"], [0, 1, 2])
    assert index.nearest("apple", 1)[0].similarity > 3 * index.nearest("zz", 1)[0].similarity


def test_hashes_are_one_for_each_ngram():
    text = "What is 47 + 85? Ä 語"
    assert len(gram_hashes(text, NGRAM_MIN, NGRAM_MAX)) == len(grams(text))
    assert len(gram_hashes("", 2, 4)) == len(gram_hashes(" \n", 2, 4)) == 0
    assert set(gram_hashes("ab", 2, 2)) == set(gram_hashes("ab", 2, 4)) & set(gram_hashes("ab", 1, 2))
    assert len(gram_hashes("x" * 10 * MAX_CHARS, 4, 4)) < MAX_CHARS


@pytest.mark.parametrize("batch_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("lengths", [(1, 1), (2, 4), (3, 9)])
def test_texts_hashed_together_are_hashed_as_each_alone(lengths, batch_bytes, monkeypatch):
    """Empty ones, short ones and equal ones; what reaches into the next text is nobody's."""
    monkeypatch.setattr(features, "_BATCH_BYTES", batch_bytes)
    texts = ["", "add 1 and 2", " ", "a", "aaaaaaa", "add 1 and 2", "\ud800x", "b" * 50, ""]
    for some in (texts, texts[:1], []):
        found = list(gram_hashes_of(some, *lengths))
        assert [list(hashes) for hashes in found] == [list(gram_hashes(text, *lengths)) for text in some]


def test_memory_is_what_the_class_says():
    texts = made_up(random.Random(7), 500)
    index, held = Neighbours(texts, [0] * 500), [grams(text) for text in texts]
    expected = 4 * sum(map(len, held)) + 24 * len(set().union(*held)) + 12 * len(texts)
    assert index.size_bytes == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "expert"),
    [("What is 47 plus 85?", "sums"), ("149 in roman numerals please", "roman"), ("add 1 and 5", "sums")],
)
def test_the_nearest_examples_decide_and_are_the_reason(text, expert):
    route = ROUTER.decide(Prompt(text))
    assert (route.expert, route.is_fallback) == (expert, False)
    assert route.reason.startswith("nearest: '")
    assert route.confidence >= 0.5


def test_votes_are_similarities_to_the_sixth():
    found = ROUTER.neighbours.nearest("write the sum of 4 and 2 as a number", 5)
    votes = [(n.similarity / found[0].similarity) ** 6 for n in found]
    route = ROUTER.decide(Prompt("write the sum of 4 and 2 as a number"))
    assert route.runners_up
    sums = sum(vote for vote, n in zip(votes, found, strict=True) if n.label == 0) / sum(votes)
    assert route.confidence == pytest.approx(sums)
    assert route.confidence_in("roman") == pytest.approx(
        sum(vote for vote, n in zip(votes, found, strict=True) if n.label == 1) / sum(votes)
    )


def test_k_of_one_is_the_nearest_alone():
    router = KnnRouter(EXAMPLES, "general", KnnSettings(num_neighbours=1))
    assert router.decide(Prompt("add Roman numerals")).confidence == 1.0


def test_the_fallbacks_examples_are_out_of_scope():
    route = ROUTER.decide(Prompt("who wrote Macbeth?"))
    assert (route.expert, route.is_fallback) == ("general", True)
    assert route.reason.startswith("it resembles what no other expert answers: 'who wrote Hamlet?'")
    assert route.confidence > 0.5


def test_less_alike_than_asked_falls_back_and_shrinks_the_confidences():
    prompt = Prompt("what is 47 plus 85 in Swahili words?")
    sure = ROUTER.decide(prompt)
    closest = ROUTER.neighbours.nearest(prompt.text, 1)[0].similarity
    unsure = KnnRouter(EXAMPLES, "general", KnnSettings(similarity=2 * closest)).decide(prompt)
    assert (sure.expert, unsure.expert, unsure.is_fallback) == ("sums", "general", True)
    assert unsure.confidence_in("sums") == pytest.approx(sure.confidence / 2)
    assert f"({closest:.2f}) of sums, is less similar than {2 * closest:.2f}" in unsure.reason


def test_below_the_threshold_falls_back_and_says_so():
    route = KnnRouter(EXAMPLES, "general", KnnSettings(threshold=1.0)).decide(
        Prompt("write the sum of 4 and 2 as a number")
    )
    assert (route.expert, route.is_fallback) == ("general", True)
    assert "below the threshold of 100%; nearest: '" in route.reason
    assert [name for name, _ in route.runners_up] == ["sums", "roman"]


def test_exactly_as_alike_and_as_sure_as_asked_is_enough():
    prompt = Prompt("write the sum of 4 and 2 as a number")
    sure, closest = ROUTER.decide(prompt), ROUTER.neighbours.nearest(prompt.text, 1)[0].similarity
    exact = KnnRouter(EXAMPLES, "general", KnnSettings(similarity=closest, threshold=sure.confidence))
    assert exact.decide(prompt) == sure
    for more in (KnnSettings(similarity=closest + 1e-9), KnnSettings(threshold=sure.confidence + 1e-9)):
        assert KnnRouter(EXAMPLES, "general", more).decide(prompt).is_fallback


def test_the_reason_is_two_examples_of_the_chosen_expert():
    """Another expert's is second here, and there are more of its own."""
    prompt = Prompt("write the sum of 1 plus 2 as numeral")
    nearest = ROUTER.neighbours.nearest(prompt.text, 5)
    route = ROUTER.decide(prompt)
    own = [n for n in nearest if n.label == 0]
    assert (route.expert, len(own)) == ("sums", 3)
    assert [n.label for n in nearest[:2]] != [0, 0]
    assert route.reason == "nearest: " + ", ".join(f"{n.text!r} ({n.similarity:.2f})" for n in own[:2])


@pytest.mark.parametrize(("text", "reason"), [(" \n", "no text"), ("語語", "like no example")])
def test_nothing_alike(text, reason):
    route = ROUTER.decide(Prompt(text))
    assert (route.expert, route.confidence, route.runners_up) == ("general", 0.0, ())
    assert reason in route.reason


@given(st.one_of(st.text(max_size=200), st.sampled_from(SUMS + ROMAN), st.text(alphabet="addromn 12", max_size=20)))
@settings(deadline=None)
def test_any_text_has_one_route(text):
    route = ROUTER.decide(Prompt(text))
    assert route == ROUTER.decide(Prompt(text))
    assert route.expert in {"sums", "roman", "general"}
    assert 0 <= route.confidence <= 1
    assert all(share <= route.confidence for _, share in route.runners_up) or route.is_fallback
    assert route.confidence + sum(share for _, share in route.runners_up) <= 1 + 1e-9
