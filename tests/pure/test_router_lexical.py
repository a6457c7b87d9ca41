"""The lexical router: features, quality on small skills, its file, and any text at all."""

import json
import subprocess
import sys
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.composition.router import Prompt
from coterie.composition.routers.features import MAX_CHARS, HashSettings, bucket_list, normalise, word_buckets
from coterie.composition.routers.lexical import OTHER, LexicalRouter, LexicalWeights, read_weights, write_weights
from coterie.composition.routers.lexical_train import (
    FitSettings,
    TrainingQuestion,
    choose_threshold,
    train,
)
from coterie.composition.sweep import SweepPoint
from coterie.core.errors import CompositionError

HASHING = HashSettings(1, 4, 2**11)
FIT = FitSettings(HASHING, num_folds=2)

SKILLS = {
    "sums": (
        ["what is {a} plus {b}?", "add {a} and {b}", "{a}+{b}=", "the sum of {a} and {b}"],
        ["please add {a} to {b}"],
    ),
    "roman": (["{a} in Roman numerals", "write {a} as a Roman numeral", "the Roman numeral for {a}"], ["{a} to Roman"]),
    "reverse": (["reverse the word {w}", "spell {w} backwards", "{w} in reverse"], ["write the word {w} backwards"]),
}
NOTHING = ["who wrote {w}?", "tell me a joke about {w}", "how do I cook {w}", "what is the capital of {w}", "hello {w}"]


def fill(wording, rng):
    word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))
    return wording.format(a=rng.randint(0, 999), b=rng.randint(0, 999), w=word)


@pytest.fixture(scope="module")
def trained():
    rng, found = Random(1), []
    for name, (wordings, _) in SKILLS.items():
        found += [TrainingQuestion(fill(w, rng), name, w) for w in wordings for _ in range(40)]
    found += [TrainingQuestion(fill(w, rng), None, w) for w in NOTHING for _ in range(40)]
    return train(found, FIT, {"seed": 1})


@pytest.fixture(scope="module")
def router(trained):
    return LexicalRouter(trained.weights, "general", threshold=0.5)


def test_operands_do_not_matter():
    assert normalise("What is  47 + 85?") == " what is 00 + 00? "
    assert normalise("12345678 １２") == " 0000 00 "
    assert (bucket_list("add 12 and 34", HASHING) == bucket_list("ADD 98 and\t76", HASHING)).all()
    assert (bucket_list("add 12 and 34", HASHING) != bucket_list("add 1 and 3456", HASHING).sum()).any()


def test_features_are_the_same_everywhere():
    # crc32 of "a" is 0xe8b7be43 (ISO 3309), whatever the machine or the hash seed
    assert 0xE8B7BE43 % 2**11 in bucket_list("a", HASHING)
    assert normalise("   ") == ""
    assert len(bucket_list("", HASHING)) == 0


def test_long_prompts_are_read_at_their_ends():
    text = "first " + "x" * 10 * MAX_CHARS + " last"
    assert normalise(text).startswith(" first ")
    assert normalise(text).endswith(" last ")
    assert len(normalise(text)) <= MAX_CHARS + 3


@given(st.text(max_size=80))
def test_every_bucket_belongs_to_a_word(text):
    by_word = word_buckets(text, HASHING)
    owned = set().union(*by_word.values()) if by_word else set()
    assert owned == set(bucket_list(text, HASHING))
    assert set(by_word) <= set(normalise(text).split())


def test_unseen_wordings_are_routed(router):
    rng, right, asked = Random(2), 0, 0
    for name, (seen, unseen) in SKILLS.items():
        for wording in seen + unseen:
            for _ in range(25):
                route = router.decide(Prompt(fill(wording, rng)))
                right, asked = right + (route.expert == name), asked + 1
    assert right / asked >= 0.98


@pytest.mark.parametrize("text", ["who wrote Hamlet?", "how do I cook rice", "tell me a joke about cats"])
def test_what_is_for_no_expert_falls_back_and_says_so(router, text):
    route = router.decide(Prompt(text))
    assert (route.expert, route.is_fallback) == ("general", True)
    assert route.reason == "it reads like none of the experts' questions"
    assert route.confidence > 0.5


def test_below_the_threshold_falls_back_and_says_so(trained):
    route = LexicalRouter(trained.weights, "general", threshold=1.0).decide(Prompt("add 4 and 5"))
    assert (route.expert, route.is_fallback) == ("general", True)
    assert "the best expert, sums, has" in route.reason
    assert "below the threshold of 100%" in route.reason
    assert route.runners_up[0][0] == "sums"


def test_the_reason_names_the_words(router):
    assert "'roman'" in router.decide(Prompt("Write 149 in Roman numerals")).reason
    assert router.decide(Prompt("reverse the word stone")).reason.startswith("because: 'reverse'")


def test_no_text_falls_back(router):
    for text in ("", "  \n"):
        assert router.decide(Prompt(text)).is_fallback


@given(st.text(max_size=300))
@settings(deadline=None)
def test_any_text_has_one_route(router, text):
    route = router.decide(Prompt(text))
    assert route == router.decide(Prompt(text))
    assert route.expert in {*SKILLS, "general"}
    assert 0 <= route.confidence <= 1
    assert all(0 <= share <= route.confidence or route.is_fallback for _, share in route.runners_up)
    assert sum(share for _, share in route.runners_up) + route.confidence <= 1 + 1e-9
    json.dumps(route.to_dict())


@given(st.text(alphabet=st.characters(categories=["Cs", "Cc", "Cf", "Mn", "Zs", "So"]), max_size=50))
def test_odd_characters(router, text):
    assert 0 <= router.decide(Prompt(text)).confidence <= 1


def test_fallback_may_be_a_trained_class(trained):
    route = LexicalRouter(trained.weights, "sums", threshold=0.9).decide(Prompt("who wrote Hamlet?"))
    assert (route.expert, route.is_fallback) == ("sums", True)
    assert "sums" not in dict(route.runners_up)
    assert not LexicalRouter(trained.weights, "sums").decide(Prompt("add 1 and 2")).is_fallback


def test_training_again_gives_the_same(trained):
    rng = Random(3)
    found = [TrainingQuestion(fill(w, rng), n, w) for n, (ws, _) in SKILLS.items() for w in ws for _ in range(10)]
    one, two = train(found, FIT, {}), train(found, FIT, {})
    assert (one.weights.weights_XF == two.weights.weights_XF).all()
    assert one.sweep == two.sweep
    assert OTHER not in one.weights.classes


def test_two_classes(trained):
    rng = Random(4)
    found = [
        TrainingQuestion(fill(w, rng), n, str(i)) for n in ("sums", "roman") for w in SKILLS[n][0] for i in range(20)
    ]
    router = LexicalRouter(train(found, FIT, {}).weights, "roman")
    assert router.decide(Prompt("add 3 and 4")).expert == "sums"
    assert router.decide(Prompt("3 in Roman numerals")).expert == "roman"
    with pytest.raises(ValueError, match="the questions have 1"):
        train([q for q in found if q.expert == "sums"], FIT, {})


def test_threshold_is_the_highest_that_costs_little():
    rows = [SweepPoint("threshold", *row) for row in ((0.1, 0.99, 0, 0.5), (0.5, 0.985, 0, 0.7), (0.9, 0.90, 0.1, 0.9))]
    assert choose_threshold(rows, 0.01) == 0.5
    assert choose_threshold(rows, 0.0) == 0.1


def test_serving_needs_no_training_library():
    code = "import sys, coterie.composition.routing; print({'sklearn', 'scipy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_file_round_trip(tmp_path, trained):
    write_weights(tmp_path / "router.npz", trained.weights)
    back = read_weights(tmp_path / "router.npz")
    assert (back.classes, back.hashing) == (trained.weights.classes, HASHING)
    assert (back.temperature, back.threshold) == (trained.weights.temperature, trained.weights.threshold)
    assert back.settings["seed"] == 1
    assert np.allclose(back.weights_XF, trained.weights.weights_XF, rtol=1e-3, atol=1e-3)
    one, two = LexicalRouter(trained.weights, "g"), LexicalRouter(back, "g")
    assert one.decide(Prompt("add 1 and 2")).expert == two.decide(Prompt("add 1 and 2")).expert
    assert one.decide(Prompt("add 1 and 2")).confidence == pytest.approx(
        two.decide(Prompt("add 1 and 2")).confidence, abs=1e-2
    )


TINY = LexicalWeights(
    ("a", "b"), np.zeros((2, 4), np.float32), np.zeros(2, np.float32), 1.0, 0.5, HashSettings(1, 2, 4), {}
)
FAULTS = {
    "no weights": (lambda a: a.pop("weights"), "has no weights"),
    "version": (lambda a: a.update(version=np.int64(2)), "format version 2, but this program reads 1"),
    "version list": (lambda a: a.update(version=np.int64([1, 1])), "format version"),
    "shape": (
        lambda a: a.update(weights=np.zeros((2, 5), np.float16)),
        r"weights is float16\[2, 5\], not .* shape \[2, 4\]",
    ),
    "dtype": (lambda a: a.update(bias=np.zeros(2, np.int64)), "bias is int64"),
    "hashing": (lambda a: a.update(hashing=np.asarray([1, 2])), r"hashing is int64\[2\]"),
    "not finite": (
        lambda a: a.update(bias=np.asarray([np.nan, 0], np.float32)),
        "bias holds values that are not finite",
    ),
    "n-grams": (lambda a: a.update(hashing=np.asarray([3, 2, 4])), "n-grams of 3 to 2 characters"),
    "temperature": (lambda a: a.update(calibration=np.asarray([0.0, 0.5])), "temperature 0.0, which cannot be"),
    "threshold": (lambda a: a.update(calibration=np.asarray([1.0, 1.5])), "threshold 1.5"),
    "same class twice": (lambda a: a.update(classes=np.asarray(["a", "a"])), r"classes \['a', 'a'\]"),
    "settings": (lambda a: a.update(settings=np.asarray("{")), r"training settings\] is not JSON"),
    "settings list": (lambda a: a.update(settings=np.asarray("[]")), "settings are not a JSON object"),
    "pickle": (lambda a: a.update(classes=np.asarray(["a", None], dtype=object)), "not a router file"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_file(tmp_path, fault):
    damage, sentence = FAULTS[fault]
    path = tmp_path / "router.npz"
    write_weights(path, TINY)
    assert read_weights(path).experts == ("a", "b")
    with np.load(path) as arrays:
        stored = dict(arrays)
    damage(stored)
    np.savez(path, **stored)
    with pytest.raises(CompositionError, match=sentence) as caught:
        read_weights(path)
    assert "router.npz" in caught.value.where
    assert caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_file_that_is_none(tmp_path, content):
    (tmp_path / "router.npz").write_bytes(content)
    with pytest.raises(CompositionError, match="not a router file"):
        read_weights(tmp_path / "router.npz")


def test_truncated_file(tmp_path):
    path = tmp_path / "router.npz"
    write_weights(path, TINY)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CompositionError, match="not a router file"):
        read_weights(path)


def test_array_instead_of_an_archive(tmp_path):
    np.save(tmp_path / "router.npy", np.zeros(3))
    with pytest.raises(CompositionError, match="not a router file"):
        read_weights(tmp_path / "router.npy")
