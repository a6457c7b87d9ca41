"""Calls that are not JSON with a name: what each layout reads, what it takes for malformed, and what its grammar holds.

test_checkpoint_tagged.py reads and holds one call in every form; here is what is particular to one of them.
"""

from __future__ import annotations

import json

import pytest
from tests.pure.test_checkpoint_constrained import tool
from tests.pure.test_checkpoint_tagged import NAMES, WORDS, taken, written

from coterie.checkpoint.calls import Call, Calling, CallText
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.literals import python_value
from coterie.checkpoint.name_keyed import NameKeyed
from coterie.checkpoint.pythonic import Pythonic
from coterie.checkpoint.quoted import Quoted
from coterie.core.errors import RequestError

MUST = Calling(True, False)
DEEP = 100_000  # brackets, beyond what Python's reader follows


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('[{"add": {"a": 1}}, {"now": {}}]', [("add", {"a": 1}), ("now", {})]),
        ('[{"add": {}}, 3]', []),
        ('[{"add": {}, "now": {}}]', []),
        ("[{}]", []),
        ('{"add": {}}', []),
        ("[]", []),
        ('[{"add": ', []),
        ("[" * DEEP, []),
    ],
)
def test_objects_of_one_key_are_calls(text: str, calls: list) -> None:
    assert NameKeyed().read(text, {}) == calls


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[add(a=1, b='x'), now()]", [("add", {"a": 1, "b": "x"}), ("now", {})]),
        ("add(a=[1, 2], b=(3, {'c': 4}))\nnow()", [("add", {"a": [1, 2], "b": [3, {"c": 4}]}), ("now", {})]),
        (r"add(a='it\'s, (so)', b='\\')", [("add", {"a": "it's, (so)", "b": "\\"})]),
        ('add(a="),", b="[")', [("add", {"a": "),", "b": "["})]),
        ("[add(a=1)", []),
        ("[add(a=1))", []),
        ("add(a=1", []),
        ("add(1)", []),
        ("add(a=b)", []),
        ("add", []),
    ],
)
def test_keyword_arguments_are_a_call(text: str, calls: list) -> None:
    assert Pythonic().read(text, {}) == calls


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None),
        ("[null, True, false, None]", [None, True, False, None]),
        ("[-1, -2.5, 3]", [-1, -2.5, 3]),
        ("(1, -2, -0.5, 'a')", [1, -2, -0.5, "a"]),
        ("{1: 'a', None: 2}", {"1": "a", "None": 2}),
        ("  'a'\n", "a"),
        (r"'\d'", r"\d"),  # which Python warns of
    ],
)
def test_a_literal_is_a_value(text: str, value: object) -> None:
    assert python_value(text) == value


@pytest.mark.parametrize("text", ["x", "1 + 1", "1j", "b'a'", "...", "-'a'", "{**a}", "{[]: 1}", "f()", "", "[" * DEEP])
def test_what_is_no_literal_is_no_value(text: str) -> None:
    with pytest.raises(ValueError, match="is no value"):
        python_value(text)


Q = '<|"|>'


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (
            f"call:add{{n:1,s:{Q}a, }}b{Q},o:{{l:[true,null]}}}}",
            [("add", {"n": 1, "s": "a, }b", "o": {"l": [True, None]}})],
        ),
        ("call:add{}call:now{} \n", [("add", {}), ("now", {})]),
        ("call:add{ n : 1 , m:[ 1 , 2 ] }\n", [("add", {"n": 1, "m": [1, 2]})]),
        (f"call:add{{{Q}a b{Q}:x y,l:[ ]}}", [("add", {"a b": "x y", "l": []})]),
        (f"call:add{{l:[1] ,s:{Q}a{Q} ,o:{{}} ,n:1}}", [("add", {"l": [1], "s": "a", "o": {}, "n": 1})]),
        ("call:add{n:1", []),
        ("call:add{n:[1}", []),
        ("call:add{n:}", []),
        (f"call:add{{s:{Q}a}}", []),
        ("call:add{n:1}}", []),
        ("add{n:1}", []),
        ("call:add{n:" + "[" * DEEP, []),
    ],
)
def test_objects_of_marked_texts_are_calls(text: str, calls: list) -> None:
    assert Quoted().read(text, {}) == calls


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_mark_in_a_quoted_text_ends_no_block(size: int) -> None:
    """However the text comes; what stands behind an odd mark of a text has no end but the answer's."""
    inside = f"<tool_call|> and <|tool_call>call:now{{}} or {Q[:-1]}"
    whole = f"<|tool_call>call:add{{a:{Q}{inside}{Q},b:[{Q}<tool_call|>{Q}]}}<tool_call|> So."
    odd = f"<|tool_call>call:add{{a:{Q}x}}<tool_call|> So."
    for said, found in (
        (whole, [Call("add", f'{{"a": {json.dumps(inside)}, "b": ["<tool_call|>"]}}'), " So."]),
        (odd, [odd]),
    ):
        reader = CallText(FORMS["gemma"], ("add", "now"))
        got = [one for at in range(0, len(said), size) for one in reader.push(said[at : at + size])] + reader.flush()
        calls = [one for one in got if isinstance(one, Call)]
        text = "".join(one for one in got if isinstance(one, str))
        assert [*calls, text] == found


CALL, SEP, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"


@pytest.mark.parametrize(
    ("form", "text", "calls"),
    [
        ("deepseek-plain", f'{CALL}add{SEP}{{"a": 1}}{END}', [("add", {"a": 1})]),
        ("deepseek-plain", f" {CALL} add {SEP} {{}} {END}\n{CALL}now{SEP}{{}}{END} ", [("add", {}), ("now", {})]),
        ("deepseek-plain", f"{CALL}add{SEP}{{}}{END} or so", []),
        ("deepseek-plain", f"{CALL}add{SEP}{{}}{END}{CALL}now{SEP}{{}}", []),
        ("deepseek-plain", f"{CALL}add{SEP}{{}}{END}{CALL}now{SEP}{{", []),
        ("deepseek-plain", f"{CALL}add{SEP}{{}}{END}{CALL}now{SEP}3{END}", []),
        ("deepseek-plain", f"{CALL}add now{SEP}{{}}{END}", []),
        ("deepseek-plain", f'{CALL}"add"{SEP}{{}}{END}', []),
        ("deepseek-plain", f"{CALL}add{SEP}" + '{"a":' * DEEP, []),
        ("deepseek", f'{CALL}function{SEP}add\n```json\n{{"a": 1}}\n```{END}', [("add", {"a": 1})]),
        ("deepseek", f"{CALL}function {SEP}add ```json {{}}```\n{END}", [("add", {})]),
        ("deepseek", f"{CALL}function{SEP}add\n{{}}{END}", []),
        ("deepseek", f"{CALL}function{SEP}add\n```json\n{{}}{END}", []),
    ],
)
def test_sections_of_names_and_objects_are_calls(form: str, text: str, calls: list) -> None:
    layout = FORMS[form].layout
    assert layout is not None
    assert layout.read(text, {}) == calls


def in_form(form: str, inside: str) -> str:
    before, behind = ("[", "]") if FORMS[form].listed else ("", "")
    return f"{FORMS[form].opening}{before}{inside}{behind}{FORMS[form].closing}"


def so_far(form: str, schema: dict, text: str, special: bool = True, name: str = "add") -> str:
    """How much of a call's text may come, where one call of a tool with this schema must."""
    begin = in_form(form, "").removesuffix(FORMS[form].closing).removesuffix("]")
    said, _ = taken(form, special, MUST, begin + text, [tool(name, schema, strict=True)])
    return said.removeprefix(begin)


def an_object(required: tuple[str, ...] = (), **properties: object) -> dict:
    return {"type": "object", "properties": properties, "required": [*required], "additionalProperties": False}


UNIT = {"$ref": "#/$defs/unit"}
INSIDE = {**an_object(("o",), o=an_object(("u",), u=UNIT)), "$defs": {"unit": {"enum": ["m", "ft"]}}}
NUMBERS = {"type": "array", "items": {"type": "integer", "minimum": 0}}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("its", "values", "begun", "never"),
    [
        ({**NUMBERS, "minItems": 2, "maxItems": 3}, ("[1,2]", "[1,2,3]"), "[1", "]"),
        ({**NUMBERS, "minItems": 2, "maxItems": 3}, (), "[1,2,3", ","),
        ({**NUMBERS, "minItems": 1}, ("[1]", "[1,2]"), "[", "]"),
        ({**NUMBERS, "maxItems": 0}, ("[]",), "[", "1"),
        (NUMBERS, ("[]", "[1,2]"), "[", "-"),
        ({"type": "integer", "minimum": 0, "maximum": 9}, ("7",), "", "-"),
        ({"const": "x"}, (f"{Q}x{Q}",), Q, "y"),
        ({"type": "string", "maxLength": 2}, (f"{Q}{Q}", f"{Q}ab{Q}"), f"{Q}ab", "c"),
        ({"type": "string", "maxLength": 9}, (f"{Q}a{Q}",), f"{Q}a{Q}", "b"),
        ({"type": "string", "minLength": 2}, (f"{Q}ab{Q}", f"{Q}abc{Q}"), f"{Q}a", Q),
    ],
)
def test_values_between_marks_are_held(
    its: dict, values: tuple[str, ...], begun: str, never: str, special: bool
) -> None:
    schema = an_object(("a",), a=its)
    for value in values:
        right = f"call:add{{a:{value}}}"
        assert so_far("gemma", schema, right, special) == right
    said = so_far("gemma", schema, f"call:add{{a:{begun}{never}", special)
    assert said.startswith(f"call:add{{a:{begun}")
    assert len(said) < len(f"call:add{{a:{begun}{never}")


def test_what_is_defined_once_holds_within_objects() -> None:
    right = f"call:add{{o:{{u:{Q}ft{Q}}}}}"
    assert so_far("gemma", INSIDE, right) == right
    assert so_far("gemma", INSIDE, right.replace("ft", "km")) == right[: right.index("ft")]


def test_objects_are_held_so_many_in_one_another() -> None:
    """The arguments themselves have eight around the innermost value."""
    schema: dict = {"type": "integer"}
    for _ in range(8):
        schema = an_object(("a",), a=schema)
    right = "call:add" + "{a:" * 8 + "1" + "}" * 8
    assert so_far("gemma", schema, right) == right
    with pytest.raises(RequestError, match="nested, beyond what can be enforced"):
        so_far("gemma", an_object(("a",), a=schema), right)


def test_parameters_need_not_say_that_they_are_an_object():
    """But a value must say what it is."""
    schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"]}
    assert so_far("gemma", schema, "call:add{a:1}") == "call:add{a:1}"
    with pytest.raises(RequestError, match="is a choice, or nested"):
        so_far("gemma", {"properties": {"a": {}}}, "call:add{a:1}")


NUMBER, TEXT = {"type": "integer"}, {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "right", "begun", "never"),
    [
        (an_object((), a=NUMBER, b=NUMBER), "add(a=1, b=2)", "add(", ","),
        (an_object((), a=NUMBER, b=NUMBER), "add(b=2)", "add(a=1", " "),
        (an_object((), a=NUMBER, b=NUMBER), "add()", "add(b=2", ","),
        (an_object(("a", "b"), a=NUMBER, b=NUMBER), "add(a=1, b=2)", "add(a=1", ")"),
        (an_object(("a",), a=TEXT), "add(a='x')", "add(a=", "1"),
        (an_object(("a",), a={**TEXT, "enum": ["x"]}), 'add(a="x")', "add(a=", "'"),
        (an_object(("a",), a={"type": "boolean"}), "add(a=True)", "add(a=", "N"),
        (
            {**an_object(("a",), a={"type": "array", "items": UNIT}), "$defs": INSIDE["$defs"]},
            'add(a=["m"])',
            'add(a=["',
            "k",
        ),
    ],
)
def test_keyword_arguments_are_held(schema: dict, right: str, begun: str, never: str) -> None:
    assert so_far("lfm", schema, right) == right
    assert so_far("lfm", schema, begun + never) == begun


def test_names_of_tools_are_held_as_templates_write_them() -> None:
    right = '{"é\\"": {"a": 1}}'
    schema = an_object(("a",), a=NUMBER)
    assert so_far("apertus", schema, right, name='é"') == right
    assert so_far("apertus", schema, json.dumps({'é"': {"a": 1}}), name='é"') == '{"'


ONE = {"nemotron": '{"name": "now", "arguments": {}}', "lfm": "now()", "apertus": '{"now": {}}'}


@pytest.mark.parametrize("form", ONE)
def test_calls_of_a_list_are_in_one_list(form: str) -> None:
    alone, both = in_form(form, ONE[form]), in_form(form, f"{ONE[form]}, {ONE[form]}")
    assert taken(form, True, Calling(True), f"{alone}\n{alone}") == (alone, True)
    assert taken(form, True, Calling(True), both) == (both, True)


@pytest.mark.parametrize("form", NAMES)
def test_special_tokens_within_a_call_are_shown(form: str) -> None:
    tokenizer, _ = WORDS[True]
    said = written(form, {"text": "a", "n": 1})
    reader = tokenizer.detokenizer(FORMS[form].marks)
    ids = tokenizer.encode(said, add_special_tokens=False)
    assert "".join(map(reader.push, ids)) + reader.flush() == said
