"""Vocabularies that files have in common are held once, and of many those used last."""

import json

import pytest
from tests.pure.tokenizers_made import with_merges
from tokenizers import AddedToken, normalizers, processors
from tokenizers import Tokenizer as LibraryTokenizer

from coterie.api.texts import Text, all_read
from coterie.checkpoint import vocabulary
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.checkpoint.vocabulary import digest, read_tokenizer
from coterie.core.errors import CheckpointError

TEXT = 'one two 3 <a> three<b>  <c>four "model": {"type": five\n'


def made(words=("one", "two", "three"), added=(), **rules):
    """A byte-level tokenizer that knows these words, as a file's text."""
    library = with_merges(" ".join(words), 300)
    for name, rule in rules.items():
        setattr(library, name, rule)
    library.add_tokens(list(added))
    return library.to_str()


PLAIN = made()
LENGTHS = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
OTHERS = {
    "added": made(
        added=[AddedToken("<a>", special=True), AddedToken("<b>", lstrip=True), AddedToken("<c>", special=True)]
    ),
    "a known one": made(added=[AddedToken("one", special=True)]),
    "an evil name": made(added=[AddedToken('"model": {"type": five', rstrip=True)]),
    "rules": made(
        normalizer=normalizers.Lowercase(),
        post_processor=processors.TemplateProcessing(single="one $A", special_tokens=[("one", 256)]),
    ),
    "lengths": json.dumps(
        {**json.loads(PLAIN), "truncation": LENGTHS},
        separators=(",", ":"),
        ensure_ascii=False,
    ),
}


def read(text):
    return read_tokenizer(text.encode(), digest(text.encode()))


@pytest.fixture(autouse=True)
def held(monkeypatch):
    """A table of its own for each test."""
    monkeypatch.setattr(vocabulary, "_CACHE", vocabulary._ReadCache())
    return vocabulary._CACHE


def hold(text):
    found = read(text)
    vocabulary._CACHE.touch(found)
    return found


@pytest.mark.parametrize("kind", OTHERS)
def test_what_shares_a_vocabulary_is_as_the_library_reads_it(kind):
    first, text = hold(PLAIN), OTHERS[kind]
    found, whole = read(text), LibraryTokenizer.from_str(text)
    whole.no_truncation()
    assert found.model == first.model
    assert found.size == first.size == whole.get_vocab_size(with_added_tokens=False)
    assert json.loads(found.library.to_str()) == json.loads(whole.to_str())
    assert found.library.encode(TEXT).ids == whole.encode(TEXT).ids
    assert first.library.encode(TEXT).ids == LibraryTokenizer.from_str(PLAIN).encode(TEXT).ids


@pytest.mark.parametrize("change", ["behind", "missing", "ids", "words"])
def test_what_differs_in_any_other_way_is_read_whole(change):
    hold(PLAIN)
    values = json.loads(OTHERS["added"])
    if change == "behind":
        values |= {"decoder": values.pop("decoder")}
    if change == "missing":
        del values["normalizer"]
    if change == "ids":  # the library counts on from the vocabulary, whatever a file says
        values["added_tokens"][1]["id"] += 5
    text = (
        made(["four", "five"]) if change == "words" else json.dumps(values, separators=(",", ":"), ensure_ascii=False)
    )
    library = read(text).library
    assert json.loads(library.to_str()) == json.loads(LibraryTokenizer.from_str(text).to_str())


def folder(root, name, text):
    (root / name).mkdir()
    (root / name / "tokenizer.json").write_text(text)
    return root / name


def test_a_damaged_head_is_not_taken_for_a_good_one(tmp_path):
    hold(PLAIN)
    damaged = (PLAIN[1:], "[" + PLAIN, PLAIN.replace('"version"', '"version', 1), '{"a":' + PLAIN)
    for number, text in enumerate(damaged):
        with pytest.raises(CheckpointError, match="not a tokenizer"):
            Tokenizer.from_folder(folder(tmp_path, f"{number}", text))


@pytest.fixture
def small(monkeypatch):
    """Room for one vocabulary and no second."""
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", 6000)


def test_a_vocabulary_is_let_go_for_others_and_read_again(tmp_path, small):
    first = Tokenizer.from_folder(folder(tmp_path, "a", PLAIN))
    ids, held = first.encode(TEXT), first.detokenizer()
    second = Tokenizer.from_folder(folder(tmp_path, "b", made(["four", "five"])))
    assert second.is_read
    assert first.is_read  # an answer is under way
    del held
    assert not first.is_read
    assert first.vocab_size  # is known still
    assert first.encode(TEXT + "!")[: len(ids)] == ids
    assert first.is_read
    assert not second.is_read
    assert second.decode(second.encode(TEXT)) == TEXT


def test_whether_one_must_be_read_for_a_query(tmp_path, small):
    """Then a server reads it beside the engine."""
    texts = {"a": Text("a", 300, Tokenizer.from_folder(folder(tmp_path, "a", PLAIN)), None)}
    texts["counted"] = Text("counted", 300, None, None)
    assert all_read(texts, "")
    texts["b"] = Text("b", 300, Tokenizer.from_folder(folder(tmp_path, "b", made(["four", "five"]))), None)
    read = {name: all_read(texts, name) for name in ("a", "b", "counted", "", "all of them")}
    assert read == {"a": False, "b": True, "counted": True, "": False, "all of them": False}


def test_a_file_that_was_replaced_is_not_read_in_its_place(tmp_path, small):
    path = folder(tmp_path, "a", PLAIN)
    first = Tokenizer.from_folder(path)
    again = Tokenizer.from_folder(folder(tmp_path, "b", PLAIN))
    assert again is first
    Tokenizer.from_folder(folder(tmp_path, "c", made(["four", "five"])))
    (path / "tokenizer.json").write_text(made(["six"]))
    assert first.decode(first.encode(TEXT)) == TEXT  # by the other file of that content
    Tokenizer.from_folder(folder(tmp_path, "d", made(["four", "six"])))
    (tmp_path / "b" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"a/tokenizer\.json\] has changed since it was opened"):
        first.encode("two")


@pytest.mark.parametrize(("kinds", "kept"), [([*OTHERS.values()][:2], True), ([made(["four"]), made(["five"])], False)])
def test_a_vocabulary_that_files_share_counts_once(tmp_path, monkeypatch, kinds, kept):
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", 3 * vocabulary._OWN_TOKENS + 2 * 300)
    found = [Tokenizer.from_folder(folder(tmp_path, f"{i}", text)) for i, text in enumerate([PLAIN, *kinds])]
    assert [one.is_read for one in found] == [kept, True, True]
