"""Calls in tags, and by name: read however the text is cut, typed by their tools' schemas, and held by a grammar."""

from __future__ import annotations

import json
import random
from collections.abc import Collection

import jsonschema
import numpy as np
import pytest
from tests.pure.tokenizers_made import of_bytes

from coterie.checkpoint.calls import Call, Calling, CallText
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.grammar import Grammar
from coterie.checkpoint.tagged import Tags
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import RequestError

UNIT = {"enum": ["m", "ft"]}
SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        "unit": {"$ref": "#/$defs/unit"},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["text", "n"],
    "additionalProperties": False,
    "$defs": {"unit": UNIT},
}
TOOLS = {"add": SCHEMA, "now": {}}
SAID = {"text": '1 < 2\n"é"', "n": 7, "maybe": None, "unit": "m", "tags": ["a"]}
NAMES = [name for name, form in FORMS.items() if form.layout is not None]


def element(form: str, key: str, value: str) -> str:
    if form == "functions":
        return f"<parameter={key}>\n{value}\n</parameter>\n"
    if form == "seed":
        return f"<parameter={key}>{value}</parameter>\n"
    if form == "invoked":
        return f'<parameter name="{key}">{value}</parameter>\n'
    return f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n"


def braced(value: object) -> str:
    """A value as Gemma 4's template writes it."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{braced(inside)}' for key, inside in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(braced, value))}]"
    return f'<|"|>{value}<|"|>' if isinstance(value, str) else json.dumps(value)


def written(form: str, arguments: dict, name: str = "add") -> str:
    """A call as the family's template writes one that was made: texts as they are, all else as JSON."""
    if form == "mistral-named":
        return f"[TOOL_CALLS]{name}[ARGS]{json.dumps(arguments, ensure_ascii=False)}"
    if form == "lfm":
        values = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items()]
        return f"<|tool_call_start|>[{name}({', '.join(values)})]<|tool_call_end|>"
    if form == "apertus":
        return f"<|tools_prefix|>[{json.dumps({name: arguments}, ensure_ascii=False)}]<|tools_suffix|>"
    if form == "gemma":
        return f"<|tool_call>call:{name}{braced(arguments)}<tool_call|>"
    if form.startswith("deepseek"):
        said = json.dumps(arguments, ensure_ascii=False)
        fenced = f"function<｜tool▁sep｜>{name}\n```json\n{said}\n```"
        inside = fenced if form == "deepseek" else f"{name}<｜tool▁sep｜>{said}"
        return f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{inside}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in arguments.items()}
    inside = "".join([element(form, key, value) for key, value in texts.items()])
    if form == "invoked":
        return f'<minimax:tool_call>\n<invoke name="{name}">\n{inside}</invoke>\n</minimax:tool_call>'
    if form == "pairs":
        return f"<tool_call>{name}\n{inside}</tool_call>"
    mark = "seed:tool_call" if form == "seed" else "tool_call"
    return f"<{mark}>\n<function={name}>\n{inside}</function>\n</{mark}>"


def found(form: str, pieces: list[str], tools: Collection[str] = TOOLS) -> list:
    reader = CallText(FORMS[form], tools)
    out: list = []
    for item in [*(item for piece in pieces for item in reader.push(piece)), *reader.flush()]:
        if out and isinstance(item, str) and isinstance(out[-1], str):
            out[-1] += item
        else:
            out.append(item)
    return [(item.name, json.loads(item.arguments)) if isinstance(item, Call) else item for item in out]


def cuts(text: str) -> list[list[str]]:
    draw, some = random.Random(3), [[text], list(text)]
    for _ in range(8):
        at = sorted(draw.sample(range(len(text) + 1), 3))
        some.append([text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)])
    return some


@pytest.mark.parametrize("form", NAMES)
def test_calls_are_found_however_the_text_is_cut(form: str) -> None:
    one, other = written(form, SAID), written(form, {}, "now")
    for pieces in cuts(f"Let me see.\n{one}\n{other}"):
        assert found(form, pieces) == ["Let me see.", ("add", SAID), ("now", {})]
    for pieces in cuts(one):
        assert found(form, pieces) == [("add", SAID)]


@pytest.mark.parametrize("form", NAMES)
def test_what_is_no_whole_call_of_a_tool_is_text(form: str) -> None:
    opening, one = FORMS[form].opening, written(form, SAID)
    for text in (written(form, {}, "rm"), f"{opening}\nadd it <up>", one[: len(one) // 2], f"1 {opening[:-1]}"):
        for pieces in cuts(text):
            assert "".join(found(form, pieces)) == text


def test_values_are_typed_by_the_schema_and_without_one_by_what_they_look_like() -> None:
    said = written("functions", {"text": "7", "n": 7, "maybe": "null", "other": "x", "list": [1, "a"], "s": "3"})
    ((_, typed),) = found("functions", [said])
    assert typed == {"text": "7", "n": 7, "maybe": None, "other": "x", "list": [1, "a"], "s": 3}
    ((_, loose),) = found("functions", [said], ["add"])
    assert loose == {"text": 7, "n": 7, "maybe": None, "other": "x", "list": [1, "a"], "s": 3}


def test_several_calls_of_a_block_have_marks_of_their_own() -> None:
    opening, closing, begin, end, sep = [mark for mark in MARKS if mark.startswith("<｜tool▁")]
    two = f'{opening}{begin}add{sep}{{"n": 1}}{end}\n{begin} now {sep} {{}} {end}'
    for pieces in cuts(f"So.{two}{closing}"):
        assert found("deepseek-plain", pieces) == ["So.", ("add", {"n": 1}), ("now", {})]
    assert found("deepseek-plain", [two]) == [("add", {"n": 1}), ("now", {})]
    fenced = f'{opening}{begin}function{sep}add\n```json\n{{"n": 1}}\n```{end}\n{begin}function{sep}now\n```json\n'
    for pieces in cuts(f"{fenced}{{}}\n```{end}{closing}"):
        assert found("deepseek", pieces) == [("add", {"n": 1}), ("now", {})]
    for wrong in ("", "[]", '{"n": ', "{} and"):
        said = f"{fenced}{wrong}\n```{end}{closing}"
        assert found("deepseek", [said]) == [said]


def test_blanks_between_tags_may_be_any() -> None:
    tight = "<tool_call>\n<function=add><parameter=text>a</parameter><parameter=n>3</parameter></function></tool_call>"
    assert found("functions", [tight]) == [("add", {"text": "a", "n": 3})]
    newer = "<tool_call>add<arg_key>text</arg_key><arg_value>a</arg_value></tool_call>"  # GLM-4.6
    assert found("pairs", [newer]) == [("add", {"text": "a"})]
    assert found("pairs", ["<tool_call>add now</tool_call>"]) == ["<tool_call>add now</tool_call>"]
    several = '<minimax:tool_call><invoke name="now"></invoke>\n<invoke name="now">\n</invoke></minimax:tool_call>'
    assert found("invoked", [several]) == [("now", {}), ("now", {})]
    older = '[TOOL_CALLS]now[CALL_ID]abcdefgh1[ARGS]{}[TOOL_CALLS]add[ARGS]{"n": 1}'
    assert found("mistral-named", [older]) == [("now", {}), ("add", {"n": 1})]
    assert found("functions", [written("functions", {"n": 1})[: -len("</tool_call>")]]) == [("add", {"n": 1})]


MARKS = ["<tool_call>", "</tool_call>", "<seed:tool_call>", "</seed:tool_call>", "[TOOL_CALLS]", "[ARGS]"]
MARKS += ["<minimax:tool_call>", "</minimax:tool_call>", "<|tool_call_start|>", "<|tool_call_end|>"]
MARKS += [f"<｜tool▁{word}｜>" for word in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")]
MARKS += ["<|tools_prefix|>", "<|tools_suffix|>", "<|tool_call>", "<tool_call|>", '<|"|>']


def made(special: bool) -> tuple[Tokenizer, Grammar]:
    tokenizer = Tokenizer(of_bytes(["<|end|>", *(MARKS if special else [])]))
    return tokenizer, Grammar(tokenizer, tokenizer.library.get_vocab_size(), (tokenizer.token_id("<|end|>"),))


WORDS = {special: made(special) for special in (False, True)}


def functions(strict: bool = True, schema: dict | None = None) -> list[dict]:
    shown = {"name": "add", "parameters": SCHEMA if schema is None else schema, "strict": strict}
    return [{"type": "function", "function": shown}, {"type": "function", "function": {"name": "now"}}]


def taken(form: str, special: bool, calling: Calling, text: str, tools: list[dict] | None = None) -> tuple[str, bool]:
    """How much of a text may come, and whether it may end there."""
    tokenizer, grammar = WORDS[special]
    mask, done = grammar.calls(FORMS[form], functions() if tools is None else tools, calling), []
    for token in tokenizer.encode(text, add_special_tokens=False):
        if mask.complete or not mask.allowed()[token]:
            break
        mask.accept(token)
        done.append(token)
    return tokenizer.spelled(done), bool(mask.complete or mask.allowed()[tokenizer.token_id("<|end|>")])


@pytest.mark.parametrize("special", WORDS)
@pytest.mark.parametrize("form", NAMES)
def test_calls_are_held(form: str, special: bool) -> None:
    whole = {**SAID, "maybe": "x"}
    right = written(form, whole)
    for calling in (Calling(True), Calling()):
        assert taken(form, special, calling, right) == (right, True)
        wrong = right.replace("7", "Q")
        assert taken(form, special, calling, wrong) == (wrong[: wrong.index("Q")], False)
        unit = written(form, {**whole, "unit": "km"})
        assert taken(form, special, calling, unit)[0] == unit[: unit.index("km")]
        lacking = written(form, {"n": 7})
        assert taken(form, special, calling, lacking)[0] != lacking
    least = written(form, {"text": "", "n": 0})
    assert taken(form, special, Calling(True), least) == (least, True)
    free = "So. <tool {1} [TOOL"
    assert taken(form, special, Calling(), free) == (free, True)
    assert taken(form, special, Calling(True), free)[0] in ("", "<", "[")
    loose = written(form, {"any": "thing", "n": 3}, "now")
    assert taken(form, special, Calling(), f"So.{loose}") == (f"So.{loose}", True)
    assert taken(form, special, Calling(True, True, ("add",)), loose)[0] != loose
    between = "" if form == "mistral-named" else "\n"
    brackets, between_two = (0, FORMS[form].layout.between) if form.startswith("deepseek") else (1, ", ")
    begins, ends = len(FORMS[form].opening) + brackets, len(FORMS[form].closing) + brackets
    twice = f"{right[:-ends]}{between_two}{right[begins:]}" if FORMS[form].listed else f"{right}{between}{right}"
    assert taken(form, special, Calling(True), twice) == (twice, True)
    alone = (right[:-ends], False) if FORMS[form].listed else (right, True)  # its list is not closed yet
    some = taken(form, special, Calling(True, False), twice)
    assert some[1] == alone[1]
    assert some[0].removesuffix("<｜tool▁call") == alone[0], "but for letters with which the closing mark begins too"


@pytest.mark.parametrize("form", NAMES)
def test_whatever_is_drawn_is_a_call_that_is_valid(form: str) -> None:
    tokenizer, grammar = WORDS[False]
    closing = {
        "functions": "\n</parameter>",
        "seed": "\n</parameter>",
        "invoked": "</parameter>",
        "mistral-named": '"',
        "apertus": '"',
        "deepseek": '"',
        "deepseek-plain": '"',
        "lfm": '"',
        "gemma": '<|"|>',
    }.get(form, "</arg_value>")
    for seed in range(2):
        rng, mask, said = (
            np.random.default_rng(seed),
            grammar.calls(FORMS[form], functions(), Calling(True, False, ("add",))),
            [],
        )
        queue: list[int] = []
        while not mask.complete and len(said) < 3000:
            allowed = np.flatnonzero(mask.allowed())
            if not queue and len(allowed) > 100 and rng.random() < 0.3:
                queue = tokenizer.encode(closing, add_special_tokens=False)
            token = queue.pop(0) if queue else int(rng.choice(allowed))
            if not mask.allowed()[token]:
                queue = []
                continue
            mask.accept(token)
            said.append(token)
        (call,) = found(form, [tokenizer.decode(said)])
        jsonschema.validate(call[1], SCHEMA)


def test_a_strict_schema_that_tags_cannot_hold_is_named() -> None:
    _, grammar = WORDS[False]
    for schema, words in (
        ({"properties": {"a": {"type": "string", "pattern": "x+"}}}, r"properties\.a\] has 'pattern'"),
        ({"properties": {}, "oneOf": []}, "has 'oneOf'"),
    ):
        tools = functions(schema={"type": "object", "additionalProperties": False, **schema})
        with pytest.raises(RequestError, match=words):
            grammar.calls(FORMS["functions"], tools, Calling())
        loose = functions(False, {"type": "object", **schema})
        assert grammar.calls(FORMS["functions"], loose, Calling(True)).allowed().any()


WRONG = [
    {"properties": None},
    {"properties": [], "required": 5},
    {"properties": {"a": 7}, "required": {"a": 1}},
    {"properties": {"a": {"type": 5, "anyOf": 3, "oneOf": None}}},
    {"properties": {"a": {"enum": 4, "anyOf": [3, {"type": [7]}]}}},
    {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": 3},
]


@pytest.mark.parametrize("schema", WRONG, ids=repr)
def test_a_schema_that_is_none_ends_no_answer(schema: dict) -> None:
    """Nobody checks the schema of a tool that is not strict."""
    form = FORMS["functions"]
    said = f"<tool_call>\n<function=add>\n{element('functions', 'a', '2')}</function>\n</tool_call>"
    assert CallText(form, {"add": schema}).push(said) == [Call("add", '{"a": 2}')]
    tools = [{"type": "function", "function": {"name": "add", "parameters": schema}}]
    WORDS[True][1].calls(form, tools, Calling(several=False))


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "boolean"}, "True", True),
        ({"type": ["boolean", "null"]}, "None", None),
        ({"type": "boolean"}, "None", "None"),
        ({"type": "string"}, "True", "True"),
        ({}, "False", "False"),
        ({"oneOf": [{"type": "string"}, {"type": "number"}]}, "2", "2"),
        ({"type": "integer"}, "7" * 5000, "7" * 5000),
    ],
)
def test_words_of_python_are_values_where_they_may_be(schema: dict, text: str, value: object) -> None:
    said = f"<tool_call>\n<function=add>\n{element('functions', 'a', text)}</function>\n</tool_call>"
    (call,) = CallText(FORMS["functions"], {"add": {"properties": {"a": schema}}}).push(said)
    assert json.loads(call.arguments) == {"a": value}


TAGGED = [name for name, form in FORMS.items() if isinstance(form.layout, Tags)]


@pytest.mark.parametrize("form", TAGGED)
def test_a_value_may_hold_the_mark_that_closes_a_block(form: str) -> None:
    closing = FORMS[form].closing
    text = f"{closing} a\n{closing}{closing}\n<b {FORMS[form].opening}"
    said = written(form, {"text": text, "n": 1}) + "\n" + written(form, {"n": 2, "text": closing})
    for pieces in cuts(f"So: {said}\nDone."):
        wanted = ["So:", ("add", {"text": text, "n": 1}), ("add", {"n": 2, "text": closing}), "\nDone."]
        assert found(form, pieces) == wanted


@pytest.mark.parametrize("form", TAGGED)
def test_a_value_without_an_end_is_text(form: str) -> None:
    whole = written(form, {"text": "a", "n": 1})
    behind = FORMS[form].layout.within[1]  # type: ignore[union-attr]
    cut = whole[: whole.index(behind)] + FORMS[form].closing
    for pieces in cuts(cut):
        assert found(form, pieces) == [cut]


def test_a_call_whose_opening_mark_was_left_out_is_one() -> None:
    """As Qwen3-Coder leaves it out at times; what begins otherwise, or calls another tool, is text."""
    whole = written("functions", {"text": "a", "n": 1})
    bare = whole.removeprefix("<tool_call>\n")
    call = ("add", {"text": "a", "n": 1})
    for pieces in cuts(f"So:\n{bare}\n{whole}\n{bare}"):
        assert found("functions", pieces) == ["So:", call, call, call]
    for pieces in cuts(f"So:\n{bare.removesuffix('</tool_call>')}"):
        assert found("functions", pieces) == ["So:", call]
    for said in ("write <function=rm>", "a <function= b", "<functio", "<function=ad", "x <function=add", "< <f"):
        for pieces in cuts(said):
            assert found("functions", pieces) == [said]
    assert CallText(FORMS["functions"], TOOLS).push("a < b <function=rm>") == ["a < b <function=rm>"]
