"""Calls held to their form: whatever a grammar lets through is calls of the tools, read alike by both readers."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest
from tests.pure.tokenizers_made import with_merges
from tokenizers import Tokenizer as LibraryTokenizer

from coterie.checkpoint.calls import Call, Calling, CallText, More
from coterie.checkpoint.constrained import ConstrainedCallText, is_constrained
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.grammar import Grammar
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import RequestError

INTEGER = {"type": "integer", "minimum": 0, "maximum": 99}
ADD = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "s": {"enum": ['}"', "]</tool_call>"]}}}
ADD |= {"required": ["a", "s"], "additionalProperties": False, "$defs": {"n": INTEGER}}


def tool(name: str, parameters: object = None, **more: object) -> dict:
    given = {} if parameters is None else {"parameters": parameters}
    return {"type": "function", "function": {"name": name, **given, **more}}


TOOLS = [tool("add", ADD), tool('é"', {"properties": {"b": {"type": "boolean"}}, "additionalProperties": False})]
TOOLS += [tool("now")]
SCHEMAS = {t["function"]["name"]: t["function"].get("parameters", {"maxProperties": 0}) for t in TOOLS}
FREE = Calling()
MARKS = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>", "<|tool_call|>"]
MARKS += ["<TOOLCALL>", "</TOOLCALL>", "<tool_calls>", "</tool_calls>"]
JSON = [name for name, form in FORMS.items() if form.layout is None]  # test_checkpoint_tagged.py has the others


def tokenizer(special: bool) -> Tokenizer:
    text = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
    return Tokenizer(with_merges(text, 330, ["<|end|>", *(MARKS if special else [])]))


TOKENIZERS = {special: tokenizer(special) for special in (False, True)}
GRAMMARS = {special: Grammar(made, made.vocab_size, (0,)) for special, made in TOKENIZERS.items()}


def mask_of(form: str, calling: Calling, special: bool = False, tools: list[dict] = TOOLS, schema: str = ""):
    return GRAMMARS[special].calls(FORMS[form], tools, calling, schema)


def walk(form: str, calling: Calling, special: bool, seed: int) -> str:
    """Text of tokens drawn alike from those that may come, an end as soon as one may."""
    rng, mask, said, words = np.random.default_rng(seed), mask_of(form, calling, special), b"", TOKENIZERS[special]
    while not mask.complete:
        allowed = np.flatnonzero(mask.allowed())
        if allowed[0] == 0 and rng.random() < 0.5:
            break
        token = int(rng.choice(allowed[allowed > 0]))
        mask.accept(token)
        said += words.token_bytes(token)
    return said.decode()


def found(reader: CallText, pieces: list[str]) -> tuple[str, list[Call]]:
    """Text and whole calls."""
    text, calls = "", list[Call]()
    for item in [*(item for piece in pieces for item in reader.push(piece)), *reader.flush()]:
        if isinstance(item, str):
            text += item
        elif isinstance(item, Call):
            calls.append(item)
        else:
            calls[-1] = Call(calls[-1].name, calls[-1].arguments + item.arguments)
    return text, calls


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_forced_of_a_call_is_all_that_may_come(form: str, special: bool) -> None:
    """By single steps: names, marks, special or spelled, and what stands between them."""
    count = 0
    plain = [tool("add", {"type": "object", "properties": {"a": INTEGER}}), tool("now")]  # which tags can hold
    for calling in (Calling(True), Calling(), Calling(True, False, ("add",))):
        rng, mask = np.random.default_rng(3), mask_of(form, calling, special, plain)
        for _ in range(90):
            if mask.complete:
                break
            follower, forced = mask.copy(), mask.forced()
            for token in forced:
                assert np.flatnonzero(follower.allowed()).tolist() == [token]
                follower.accept(token)
            allowed = np.flatnonzero(mask.allowed())
            assert (len(allowed) == 1) >= bool(forced)
            count += bool(forced)
            token = int(rng.choice(allowed))
            if token == 0:
                break
            mask.accept(token)
    assert count > 9


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", JSON)
def test_whatever_is_drawn_is_calls_that_are_valid(form: str, special: bool) -> None:
    rules = [Calling(True), Calling(True, False, ("add",)), Calling(True, True, ("now", "add"))]
    names, most = set(), 0
    for rule in rules:
        for seed in range(2):
            said = walk(form, rule, special, seed)
            text, calls = found(CallText(FORMS[form], list(SCHEMAS)), [said])
            assert (text, bool(calls)) == ("", True), said
            for call in calls:
                jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
                assert not rule.only or call.name in rule.only
            assert rule.several or len(calls) == 1
            most = max(most, len(calls))
            names |= {call.name for call in calls}
            draw = random.Random(seed)
            cuts = [[said], list(said), [said[: (at := draw.randrange(len(said)))], said[at:]]]
            for pieces in cuts:
                same, held = found(ConstrainedCallText(FORMS[form], SCHEMAS), pieces)
                assert same == ""
                assert [(call.name, json.loads(call.arguments)) for call in held] == [
                    (call.name, json.loads(call.arguments)) for call in calls
                ]
    assert len(names) > 1
    assert most > 1


CALL = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 7, "s": "}\\""}}\n</tool_call>',
    "mistral": '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 7, "s": "}\\""}}]',
    "llama": '{"name": "add", "parameters": {"a": 7, "s": "}\\""}}',
    "granite": '<|tool_call|>[{"name": "add", "arguments": {"a": 7, "s": "}\\""}}]',
    "nemotron": '<TOOLCALL>[{"name": "add", "arguments": {"a": 7, "s": "}\\""}}]</TOOLCALL>',
    "apriel": '<tool_calls>[{"name": "add", "arguments": {"a": 7, "s": "}\\""}}]</tool_calls>',
}
ADDED = Call("add", '{"a": 7, "s": "}\\""}')


def taken(form: str, special: bool, text: str, calling: Calling = FREE, schema: str = "") -> tuple[str, bool]:
    """How much of a text may come, and whether it may end there."""
    tools, words, done = [tool("add", ADD, strict=True), *TOOLS[1:]], TOKENIZERS[special], b""
    mask = mask_of(form, calling, special, tools, schema)
    for token in words.encode(text, add_special_tokens=False):
        if mask.complete or not mask.allowed()[token]:
            break
        mask.accept(token)
        done += words.token_bytes(token)
    return done.decode(), bool(mask.complete or mask.allowed()[0])


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", JSON)
def test_a_strict_tool_leaves_text_free_and_holds_calls(form: str, special: bool) -> None:
    free = "So. <tool {1, 2} [TOOL"
    assert taken(form, special, free) == (free, True)
    assert taken(form, special, CALL[form]) == (CALL[form], True)
    wrong = CALL[form].replace("7", "x")
    assert taken(form, special, wrong) == (wrong[: wrong.index("x")], False)
    loose = CALL[form].replace('"add"', '"now"').replace("7", "[]")  # not strict: any object
    assert taken(form, special, loose) == (loose, True)
    spelled = loose.replace('"now"', r'"é\""')
    assert taken(form, special, spelled) == (spelled, True)
    other = CALL[form].replace('"add"', '"rm"')
    assert taken(form, special, other) == (other[: other.index("rm")], False)


@pytest.mark.parametrize("special", [False, True])
def test_text_before_between_and_behind_held_calls(special: bool) -> None:
    said = f"Let me see.\n{CALL['hermes']} and\n{CALL['hermes']} done"
    assert taken("hermes", special, said) == (said, True)
    assert found(ConstrainedCallText(FORMS["hermes"], SCHEMAS), list(said)) == ("Let me see. and done", [ADDED, ADDED])
    once = taken("hermes", special, said, Calling(several=False))
    assert once == (said[: said.index(" and")], True)
    listed = f"So: {CALL['mistral'][:-1]}, {CALL['mistral'][len('[TOOL_CALLS] [') :]}"
    assert taken("mistral", special, listed) == (listed, True)
    assert found(ConstrainedCallText(FORMS["mistral"], SCHEMAS), list(listed)) == ("So:", [ADDED, ADDED])
    assert taken("mistral", special, listed, Calling(several=False)) == (listed[: listed.index(", {")], False)


SCHEMA = json.dumps({"type": "object", "properties": {"name": {"enum": ["add", "<tool_call>"]}, "n": INTEGER}})


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("form", ["hermes", "mistral"])
def test_beside_tools_an_answer_has_its_form(form: str, special: bool) -> None:
    """Calls, or JSON by the schema, and nothing else; what spells a mark within it is but letters."""
    for said in ('{"name": "add", "n": 7}', '{ "n": 7}', '{"name": "<tool_call>", "n": 7}'):
        if not (special and MARKS[0] in said):  # which the tokenizer would not take for letters
            assert taken(form, special, said, schema=SCHEMA) == (said, True)
        for pieces in ([said], list(said)):
            assert found(ConstrainedCallText(FORMS[form], SCHEMAS, True), pieces) == (said, [])
    assert taken(form, special, CALL[form], schema=SCHEMA) == (CALL[form], True)
    assert found(ConstrainedCallText(FORMS[form], SCHEMAS, True), list(CALL[form])) == ("", [ADDED])
    assert taken(form, special, "So.", schema=SCHEMA) == ("", False)
    assert taken(form, special, '{"n": 7}', Calling(True), SCHEMA)[0] in ("", '{"')
    with pytest.raises(RequestError, match=r"response_format\] has a schema that cannot be enforced"):
        mask_of(form, FREE, special, schema='{"not": {}}')
    with pytest.raises(RequestError, match="is a JSON bool"):
        mask_of(form, FREE, special, schema="true")


@pytest.mark.parametrize("form", ["hermes", "mistral"])
def test_an_answer_with_a_form_may_spell_a_whole_call(form: str) -> None:
    said = json.dumps({"a": FORMS[form].opening, "b": {"name": "add", "arguments": {"s": FORMS[form].closing}}})
    before, mark, behind = said.partition(FORMS[form].opening)
    for pieces in ([said], list(said), [f" {said}"], [before, mark, behind]):
        assert found(ConstrainedCallText(FORMS[form], SCHEMAS, True), pieces) == ("".join(pieces), [])
    twice = CALL[form] if form == "mistral" else f"{CALL[form]}\n{CALL[form]}"
    assert found(ConstrainedCallText(FORMS[form], SCHEMAS, True), list(twice))[1] == [ADDED] * (1 + (form == "hermes"))


def test_text_beside_calls_is_given_out_as_it_comes() -> None:
    reader = ConstrainedCallText(FORMS["hermes"], SCHEMAS, True)
    assert [reader.push(piece) for piece in ('{"a": "', "<tool", "_call>")] == [['{"a": "'], ["<tool"], ["_call>"]]


@pytest.mark.parametrize("special", [False, True])
def test_a_bare_call_may_have_its_mark_and_text_begins_with_no_brace(special: bool) -> None:
    tagged = f"<|python_tag|>{CALL['llama']}"
    assert taken("llama", special, tagged) == (tagged, True)
    assert taken("llama", special, tagged.replace('"add"', '"rm"'))[0] == tagged[: tagged.index("add")] or not special
    for said in ("{1", " {1", "\n\n{"):
        assert taken("llama", special, said)[0] == said[: said.index("{") + (said[0] == "{")]


def test_a_call_and_an_answer_that_begin_alike_are_not_both_to_be_had() -> None:
    with pytest.raises(RequestError, match="whose calls begin with a brace in this expert's format, as JSON does"):
        mask_of("llama", FREE, schema=SCHEMA)
    assert mask_of("llama", Calling(True), schema=SCHEMA).allowed().any()


def test_arguments_are_given_out_as_they_come() -> None:
    reader = ConstrainedCallText(FORMS["hermes"], SCHEMAS)
    assert reader.push("Let me see.\n<tool_") == ["Let me see."]
    assert reader.push('call>\n{"name": "add", "argu') == []
    assert reader.push('ments": {"a') == [Call("add", ""), More('{"a')]
    assert reader.push('": "}') == [More('": "}')]
    assert reader.cut
    assert reader.push('"}') == [More('"}')]
    assert not reader.cut
    assert reader.push("}\n</tool") == []
    assert reader.push("_call> so") == [" so"]
    assert (reader.flush(), reader.num_calls) == ([], 1)


def test_a_held_answer_that_is_cut_short_ends_where_it_was_cut() -> None:
    for form, said in CALL.items():
        text, calls = found(ConstrainedCallText(FORMS[form], SCHEMAS), [said[: said.index("7") + 1]])
        assert (text, calls) == ("", [Call("add", '{"a": 7')])
        begun = said[: said.index("dd")]
        assert found(ConstrainedCallText(FORMS[form], SCHEMAS), [begun]) == (begun, [])
        assert found(ConstrainedCallText(FORMS[form], SCHEMAS), [said[: said.rindex("}")]]) == ("", [ADDED])


def test_a_mark_that_is_a_token_but_no_special_one_may_be_spelled_in_others() -> None:
    """As Qwen2.5's are."""
    library = LibraryTokenizer.from_str(TOKENIZERS[False].library.to_str())
    library.add_tokens(MARKS)
    words = Tokenizer(library)
    assert words.token_id(MARKS[0]) is not None
    tools = [tool("add", ADD, strict=True)]
    mask, said = Grammar(words, words.vocab_size, (0,)).calls(FORMS["hermes"], tools, FREE), b""
    known = {words.token_bytes(token): token for token in range(words.vocab_size)}
    spelled = [known[bytes([letter])] for letter in MARKS[0].encode()]
    for token in [*spelled, *words.encode('\n{"name": "rm", "arguments": {}}', add_special_tokens=False)]:
        if not mask.allowed()[token]:
            break
        mask.accept(token)
        said += words.token_bytes(token)
    assert said.endswith(b'"name": "')


def test_what_goes_wrong_with_calls_is_told_of_tools() -> None:
    with pytest.raises(RequestError, match="does not take token 0") as caught:
        mask_of("hermes", Calling(True)).accept(0)
    assert caught.value.where == "tools"


def test_what_is_held() -> None:
    assert not is_constrained((), Calling(required=True))
    assert not is_constrained(TOOLS, Calling())
    assert is_constrained(TOOLS, Calling(several=False))
    assert is_constrained([*TOOLS, tool("x", ADD, strict=True)], Calling())


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"type": "object", "properties": {"a": {"type": "strange"}}}, "cannot be enforced: Invalid type: strange"),
        ({"type": "array"}, "type 'array', but arguments are an object"),
        ({"not": {}}, 'cannot be enforced: Unimplemented keys: \\["not"\\]'),
    ],
)
def test_a_tool_that_cannot_be_held_is_named(parameters: dict, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        mask_of("hermes", Calling(True), False, [TOOLS[0], tool("x", parameters, strict=True)])
    assert caught.value.where == "tools[1].function.parameters"
    mask_of(
        "hermes", Calling(True, False, ("add",)), False, [TOOLS[0], tool("x", parameters)]
    )  # which may not be called


def test_arguments_that_may_be_null_too_are_an_object() -> None:
    tools = [tool("add", {**ADD, "type": ["object", "null"]})]
    mask, said = mask_of("mistral", Calling(True), tools=tools), '[TOOL_CALLS] [{"name": "add", "arguments": '
    for token in TOKENIZERS[False].encode(said, add_special_tokens=False):
        mask.accept(token)
    allowed = {TOKENIZERS[False].token_bytes(int(token))[:1] for token in np.flatnonzero(mask.allowed())}
    assert allowed == {b"{"}


def test_what_cannot_be_enforced_is_left_out_where_a_tool_is_not_strict() -> None:
    """The rest of its schema holds."""
    listed = {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True, "maxItems": 2}
    tools = [tool("add", {**ADD, "properties": {"a": listed, "s": {"enum": ["x"]}}})]
    said = '<tool_call>\n{"name": "add", "arguments": {"a": [true, true], "s": "x"}}\n</tool_call>'
    for text, size in ((said, len(said)), (said.replace("[true", "[1"), said.index("true"))):
        mask, done = mask_of("hermes", Calling(True), tools=tools), ""
        for token in TOKENIZERS[False].encode(text, add_special_tokens=False):
            if mask.complete or not mask.allowed()[token]:
                break
            mask.accept(token)
            done += TOKENIZERS[False].token_bytes(token).decode()
        assert len(done) == size
    with pytest.raises(RequestError, match="uniqueItems"):
        mask_of("hermes", FREE, tools=[{**tools[0], "function": {**tools[0]["function"], "strict": True}}])


@pytest.mark.parametrize("alone", [False, True])
def test_a_call_that_is_cut_in_its_head_is_text_but_where_there_are_calls_alone(alone: bool) -> None:
    reader = ConstrainedCallText(FORMS["hermes"], SCHEMAS, alone=alone)
    begun = '<tool_call>\n{"name": "ad'
    assert [*reader.push(begun), *reader.flush()] == ([] if alone else [begun])
