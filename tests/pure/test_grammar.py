"""Masks of JSON schemas over several kinds of vocabulary: what they let through is valid, and they end where it is."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from tests.pure.tokenizers_made import with_merges
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, normalizers

from coterie.checkpoint.calls import Calling
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.grammar import ANY_OBJECT, MANY, grammar_of
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.checkpoint.width import check_width
from coterie.core.errors import RequestError

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b b", "\u00e9"]}, "maxItems": 3},
        "alive": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "alive"],
    "additionalProperties": False,
}
SCHEMAS = [PERSON, {"enum": ["yes", "no", 3, None]}, {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}]


def byte_level():
    text = json.dumps({"name": "ann", "age": 30, "tags": ["a"], "alive": True})
    return Tokenizer(with_merges(text, 330, ["<|end|>", "<|other|>"])), (0,)


def byte_fallback():
    pieces = ["<unk>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)], "\u2581", *'{}[]":,abe\u00e9']
    pieces += ["\u2581a", '"a', '":']
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = [("\u2581", "a"), ('"', "a"), ('"', ":")]
    library = LibraryTokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    library.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    library.add_special_tokens(["<unk>", "</s>"])
    return Tokenizer(library), (1,)


def metaspace():
    tokenizer, ends = byte_fallback()
    library = tokenizer.library
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    return Tokenizer(library), ends


def prepended():
    """A space before every text, as Llama 2's and Mistral's tokenizers have it."""
    tokenizer, ends = byte_fallback()
    library = tokenizer.library
    library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    return Tokenizer(library), ends


VOCABULARIES = {"byte-level": byte_level, "byte-fallback": byte_fallback}
VOCABULARIES |= {"metaspace": metaspace, "prepended": prepended}


def walk(tokenizer, ends, schema, seed):
    """Tokens drawn alike from those that may come, until one of `ends` does or nothing may follow."""
    rng, vocab_size, said = np.random.default_rng(seed), tokenizer.vocab_size + 7, b""
    mask = grammar_of(tokenizer, vocab_size, ends).mask(json.dumps(schema))
    while not mask.complete:
        allowed = np.flatnonzero(mask.allowed())
        assert allowed.max() < tokenizer.vocab_size  # rows of a model without a token never come
        token = int(rng.choice(allowed))
        if token in ends:
            break
        assert token not in tokenizer.special_ids
        mask.accept(token)
        said += tokenizer.token_bytes(token)
    return said.decode()


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_whatever_is_drawn_is_valid(kind, schema):
    tokenizer, ends = VOCABULARIES[kind]()
    said = {walk(tokenizer, ends, schema, seed) for seed in range(12)}
    assert len(said) > 2
    for text in said:
        jsonschema.validate(json.loads(text), schema)


FORCING = {
    "type": "object",
    "properties": {
        "first_name": {"enum": ["ann", "anna", "b b", "\u00e9\u2603", "<|other|>x"]},
        "a": {"const": "a a  a"},
        "tags tags": {"type": "array", "items": {"const": True}, "minItems": 2, "maxItems": 2},
    },
    "required": ["first_name", "a", "tags tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("schema", [*SCHEMAS, FORCING])
def test_where_tokens_are_forced_the_mask_leaves_no_other(kind, schema):
    """All the way through them; and following what may come leaves a mask as it is."""
    tokenizer, ends = VOCABULARIES[kind]()
    found = 0
    for seed in range(8):
        rng = np.random.default_rng(seed)
        mask = grammar_of(tokenizer, tokenizer.vocab_size + 7, ends).mask(json.dumps(schema))
        while not mask.complete:
            before, follower = mask.allowed(), mask.copy()
            forced = mask.forced()
            for token in forced:
                assert np.flatnonzero(follower.allowed()).tolist() == [token]
                follower.accept(token)
            other = mask.copy()
            assert other.accept_prefix(forced) == len(forced)
            assert other.forced() == ()
            may = np.flatnonzero(other.allowed()) if not other.complete else []
            not_now = next(i for i in range(tokenizer.vocab_size) if i not in may)
            assert other.accept_prefix((not_now, *forced)) == 0
            assert (forced == ()) == (before.sum() > 1)
            assert (mask.allowed() == before).all()
            assert mask.forced() == forced
            found += len(forced)
            token = int(rng.choice(np.flatnonzero(before)))
            if token in ends:
                break
            mask.accept(token)
    assert found > 5


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_where_few_may_come_they_are_told_apart_and_where_many_may_they_are_not(kind):
    tokenizer, ends = VOCABULARIES[kind]()
    two = {"type": "object", "properties": {"a": {"type": "string"}, "e": {"type": "string"}}, "required": ["a", "e"]}
    seen: dict[bytes, set[bytes]] = {}
    for seed in range(6):
        rng = np.random.default_rng(seed)
        mask = grammar_of(tokenizer, tokenizer.vocab_size, ends).mask(json.dumps(two | {"additionalProperties": False}))
        free = 0
        for _ in range(80):
            if mask.complete:
                break
            few, allowed = mask.choice_key(), mask.allowed()
            assert (few is None) == (allowed.sum() * MANY >= tokenizer.vocab_size)
            if few is None:
                free += 1
            else:
                seen.setdefault(few, set()).add(allowed.tobytes())
            token = int(rng.choice(np.flatnonzero(allowed)))
            if token in ends:
                break
            mask.accept(token)
        assert free
    assert len(seen) > 3
    assert all(len(same) == 1 for same in seen.values())
    assert len(set.union(*seen.values())) == len(seen)


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_an_end_may_come_where_the_form_is_complete_and_nowhere_else(kind):
    tokenizer, ends = VOCABULARIES[kind]()
    both = (*ends, tokenizer.vocab_size)  # a second one, of the model's alone
    mask = grammar_of(tokenizer, tokenizer.vocab_size + 1, both).mask('{"type": "integer"}')
    assert not mask.allowed()[list(both)].any()
    (one,) = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"1"][:1]
    mask.accept(one)
    assert mask.allowed()[list(both)].all()
    assert not mask.complete
    with pytest.raises(RequestError, match="does not take token"):
        mask.accept(next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"{"))


def test_what_spells_a_special_token_is_letters():
    tokenizer, ends = byte_level()
    assert walk(tokenizer, ends, {"enum": ["a<|other|>", "<|other|><|end|>"]}, 3) in (
        '"a<|other|>"',
        '"<|other|><|end|>"',
    )


def test_without_ends_the_form_alone_says_when():
    tokenizer, _ = byte_level()
    assert walk(tokenizer, (), {"enum": ["yes"]}, 0) == '"yes"'


def test_blanks_come_to_an_end():
    tokenizer, ends = byte_level()
    mask = grammar_of(tokenizer, tokenizer.vocab_size, ends).mask(ANY_OBJECT)
    for byte in (b"{", *[b"\n"] * 16):
        mask.accept(next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == byte))
    blanks = [i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i).isspace()]
    assert not mask.allowed()[blanks].any()


def test_a_form_that_is_too_large_to_be_followed_is_to_be_simplified():
    """Which is found, for want of a count of all its ways, when its first token has come."""
    tokenizer, ends = byte_level()
    parts = [wide_object(130, mark) for mark in "abc"]
    for part in parts:
        del part["additionalProperties"]
    wide = {**parts[0], "anyOf": parts[1:]}  # each of the two has what is said beside them, too
    mask = grammar_of(tokenizer, tokenizer.vocab_size, ends).mask(json.dumps(wide))
    with pytest.raises(RequestError, match=r"response_format.* max is 2000.*; simplify the schema"):
        mask.accept(brace(tokenizer))


def wide_object(optional, mark="k", required=0):
    names = [f"{mark}{n}" for n in range(optional + required)]
    properties = {name: {"type": "null"} for name in names}
    return {"type": "object", "properties": properties, "required": names[optional:], "additionalProperties": False}


def brace(tokenizer):
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == b"{")


@pytest.mark.parametrize(
    "within", [lambda wide: wide, lambda wide: {"items": wide}, lambda wide: {"anyOf": [{"type": "null"}, wide]}]
)
def test_an_object_that_could_begin_in_too_many_ways_is_refused_with_their_number(within):
    tokenizer, ends = byte_level()
    grammar = grammar_of(tokenizer, tokenizer.vocab_size, ends)
    with pytest.raises(RequestError, match=r"an object with 481 properties that are not required.* at most 480"):
        grammar.mask(json.dumps(within(wide_object(481))))
    grammar.mask(json.dumps({"enum": [within(wide_object(481))]}))  # which is but a value
    tool = {"function": {"name": "f", "strict": True, "parameters": within(wide_object(481)) | {"type": "object"}}}
    with pytest.raises(RequestError, match=r"^.tools.0..function.parameters. has an object with 481"):
        grammar.calls(FORMS["hermes"], [tool], Calling())
    mask = grammar.mask(json.dumps(within(wide_object(480, required=5))))
    mask.accept(brace(tokenizer))
    assert mask.allowed().any()


def referring(*parts):
    return {"anyOf": [{"$ref": f"#/$defs/{at}~1"} for at in range(len(parts))]} | {
        "$defs": {f"{at}/": part for at, part in enumerate(parts)}
    }


@pytest.mark.parametrize(
    "made",
    [
        referring,
        lambda *parts: {"items": {"anyOf": parts}},
        lambda *parts: {"oneOf": [parts[0], {"anyOf": parts[1:]}]},
        lambda *parts: {"properties": {"x": referring(*parts)["anyOf"][0]}, **referring(*parts)},
    ],
)
def test_a_choice_that_could_begin_in_too_many_ways_is_refused_with_their_number(made):
    tokenizer, ends = byte_level()
    grammar = grammar_of(tokenizer, tokenizer.vocab_size, ends)
    parts = [wide_object(count, mark, 1) for count, mark in ((161, "a"), (160, "b"), (160, "c"))]
    with pytest.raises(RequestError, match=r"objects with 481 properties in all .* come first.* at most 480"):
        grammar.mask(json.dumps(made(*parts)))


def test_a_choice_of_as_many_ways_as_can_be_followed_is_followed():
    tokenizer, ends = byte_level()
    grammar = grammar_of(tokenizer, tokenizer.vocab_size, ends)
    for form in (referring, lambda *parts: {"anyOf": parts}):
        mask = grammar.mask(json.dumps(form(*(wide_object(160, mark, 1) for mark in "abc"))))
        mask.accept(brace(tokenizer))
        assert mask.allowed().any()


def test_objects_that_begin_with_what_is_required_may_have_many_properties():
    """Their kind comes first, and then it is known which of them it is."""
    tokenizer, ends = byte_level()
    kinds = []
    for mark in "abcdef":
        wide = wide_object(300, mark)
        wide["properties"] = {"kind": {"const": mark}, **wide["properties"]}
        kinds.append(wide | {"required": ["kind"]})
    mask = grammar_of(tokenizer, tokenizer.vocab_size, ends).mask(json.dumps({"anyOf": kinds}))
    answer = b'{"kind":"d","d7":null}'
    letters = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    assert mask.accept_prefix([letters[bytes([byte])] for byte in answer]) == len(answer)


def test_choices_that_refer_to_each_other_are_counted_once_each():
    """Those that double sixty times, or come back to themselves."""
    defs = {f"d{at}": {"anyOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(60)}
    defs["d60"] = {"anyOf": [{"$ref": "#/$defs/d0"}, {"$ref": "#/nowhere/0"}, {"$ref": "elsewhere"}, wide_object(1)]}
    with pytest.raises(RequestError, match="has a choice of objects with"):
        check_width({"$ref": "#/$defs/d0", "$defs": defs}, "here")
    defs["d60"]["anyOf"].pop()
    check_width({"$ref": "#/$defs/d0", "$defs": defs}, "here")


def test_a_form_is_compiled_up_to_a_size():
    tokenizer, ends = byte_level()
    grammar = grammar_of(tokenizer, tokenizer.vocab_size, ends)
    grammar.mask(json.dumps(wide_object(0, required=2000)))
    with pytest.raises(RequestError, match=r"cannot be enforced: grammar size .* too big"):
        grammar.mask(json.dumps({"anyOf": [wide_object(0, mark, required=2000) for mark in "abcdef"]}))


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ('{"type": "strange"}', "Invalid type: strange"),
        ('{"not": {"type": "string"}}', 'Unimplemented keys: \\["not"\\]'),
        ('{"type": "string", "pattern": "(?=x)y"}', "look-around"),
        ('{"$ref": "http://elsewhere/schema"}', "does not fetch"),
        ("nonsense", "has no JSON schema"),
        ('{"$ref": "#"}', "leads to where no token may come"),
        ('{"anyOf": [{"$ref": "#"}, {"$ref": "#/anyOf/0"}]}', "leads to where no token may come"),
    ],
)
def test_what_cannot_be_enforced_is_refused_in_a_sentence(schema, said):
    tokenizer, ends = byte_level()
    with pytest.raises(RequestError, match=said) as caught:
        grammar_of(tokenizer, tokenizer.vocab_size, ends).mask(schema)
    assert "\n" not in str(caught.value)
