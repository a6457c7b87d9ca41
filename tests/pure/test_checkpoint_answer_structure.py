"""The structure of answers: forms are held behind thoughts and within channels, and thoughts stay free."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tests.pure.tokenizers_made import of_bytes

from coterie.checkpoint.answer_structure import AnswerStructure
from coterie.checkpoint.calls import Calling, CallText
from coterie.checkpoint.channels import CALL_FORM, CONSTRAIN, END, MARKERS, ChannelText
from coterie.checkpoint.forms import FORMS
from coterie.checkpoint.grammar import Grammar
from coterie.checkpoint.thoughts import Marks, ThoughtText
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import RequestError

THINK = Marks("<think>", "</think>")
YES = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"], "additionalProperties": False}
ADD = {"type": "function", "function": {"name": "add", "parameters": YES, "strict": True}}
SAID = '{"yes": true}'
CALLED = f'<tool_call>\n{{"name": "add", "arguments": {SAID}}}\n</tool_call>'
ANALYSIS = "<|channel|>analysis<|message|>{a} </think>.<|end|><|start|>assistant"
HEAD = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>"


def made(special: bool) -> Grammar:
    kept, marks = ["<|return|>", *MARKERS, END, CONSTRAIN], ["<think>", "</think>"]
    tokenizer = Tokenizer(of_bytes([*kept, *marks]) if special else of_bytes(kept, marks))
    return Grammar(tokenizer, tokenizer.library.get_vocab_size(), (tokenizer.token_id("<|return|>"),))


GRAMMARS = {special: made(special) for special in (False, True)}


def taken(mask, grammar: Grammar, text: str) -> tuple[str, bool]:
    """How much of a text may come, and whether it may end there."""
    words, done = grammar._tokenizer, []
    for token in words.encode(text, add_special_tokens=False):
        if mask.complete or not mask.allowed()[token]:
            break
        mask.accept(token)
        done.append(token)
    end = words.token_id("<|return|>")
    return words.spelled(done), bool(mask.complete or mask.allowed()[end])


BEHIND = {  # opened by the prompt, said: how much may come, and whether that is whole
    (False, f"<think>\nHm, {{1}} <thi\n</think>\n\n{SAID}"): (None, True),
    (False, SAID): (None, True),
    (False, f"<think></think>{SAID}"): (None, True),
    (False, "Hm"): ("", False),
    (False, "<think>\nHm"): (None, False),
    (False, f"<think>a</think>\n\nb{SAID}"): ("<think>a</think>\n\n", False),
    (True, f"Hm.\n</think>\n\n{SAID}"): (None, True),
    (True, SAID): (None, False),  # it is thought
    (True, f"a</think>{SAID}x"): (f"a</think>{SAID}", True),
}


@pytest.mark.parametrize("special", GRAMMARS)
@pytest.mark.parametrize("case", BEHIND, ids=repr)
def test_an_answer_has_its_form_behind_a_thought(case, special: bool) -> None:
    opened, text = case
    grammar = GRAMMARS[special]
    mask = grammar.mask(json.dumps(YES), AnswerStructure(THINK, opened))
    wanted, whole = BEHIND[case]
    assert taken(mask, grammar, text) == (text if wanted is None else wanted, whole)


@pytest.mark.parametrize("special", GRAMMARS)
@pytest.mark.parametrize("opened", [False, True])
def test_calls_are_held_behind_a_thought(opened: bool, special: bool) -> None:
    grammar, thought = GRAMMARS[special], ("" if opened else "<think>") + "I call <tool_call>.</think>\n"
    structure = AnswerStructure(THINK, opened)
    for calling in (Calling(True), Calling()):
        right, wrong = thought + CALLED, thought + CALLED.replace("true", "3")
        assert taken(grammar.calls(FORMS["hermes"], [ADD], calling, "", structure), grammar, right) == (right, True)
        cut = wrong[: wrong.index("3}")]
        assert taken(grammar.calls(FORMS["hermes"], [ADD], calling, "", structure), grammar, wrong) == (cut, False)
    free = thought + "No call."
    assert taken(grammar.calls(FORMS["hermes"], [ADD], Calling(), "", structure), grammar, free) == (free, True)
    held = grammar.calls(FORMS["hermes"], [ADD], Calling(True), "", structure)
    assert taken(held, grammar, free) == (thought, False)


def test_whatever_is_drawn_behind_a_thought_is_read_so() -> None:
    grammar, rng = GRAMMARS[True], np.random.default_rng(3)
    words = grammar._tokenizer
    for opened in (False, True):
        mask, reader = (
            grammar.mask(json.dumps(YES), AnswerStructure(THINK, opened)),
            ThoughtText(words, THINK, opened, words.among("<think>", "</think>")),
        )
        said = ""
        for turn in range(400):
            allowed = np.flatnonzero(mask.allowed())
            ending = words.token_id("</think>")
            token = ending if turn > 20 and ending in allowed else int(rng.choice(allowed))
            mask.accept(token)
            said += reader.push(token)
            if mask.complete:
                break
        assert "yes" in json.loads(said + reader.flush())


def test_forms_and_calls_within_channels() -> None:
    grammar, structure = GRAMMARS[False], AnswerStructure(channels=True)
    for before in ("", ANALYSIS):
        final = f"{before}<|channel|>final<|message|>{SAID}"
        assert taken(grammar.mask(json.dumps(YES), structure), grammar, final) == (final, True)
        wrong = final.replace("true", "3")
        assert taken(grammar.mask(json.dumps(YES), structure), grammar, wrong) == (wrong[: wrong.index("3}")], False)
        called = f"{before}{HEAD}{SAID}"
        for calling in (Calling(True), Calling()):
            assert taken(grammar.calls(CALL_FORM, [ADD], calling, "", structure), grammar, called) == (called, True)
        other = called.replace(".add", ".rm")
        held = grammar.calls(CALL_FORM, [ADD], Calling(True), "", structure)
        assert taken(held, grammar, other) == (other[: other.index("rm")], False)
        text = f"{before}<|channel|>final<|message|>No call."
        assert taken(grammar.calls(CALL_FORM, [ADD], Calling(), "", structure), grammar, text) == (text, True)
        held = grammar.calls(CALL_FORM, [ADD], Calling(True), "", structure)
        assert taken(held, grammar, text) == (text[: text.index("final")], False)
        both = grammar.calls(CALL_FORM, [ADD], Calling(), json.dumps(YES), structure)
        assert taken(both, grammar, final) == (final, True)


def test_a_held_call_in_a_channel_is_read_as_one() -> None:
    tokenizer, reader = GRAMMARS[False]._tokenizer, CallText(CALL_FORM, ["add"])
    channels = ChannelText(tokenizer, calls=True)
    text = "".join([channels.push(t) for t in tokenizer.encode(ANALYSIS + HEAD + SAID, add_special_tokens=False)])
    (call,) = [*reader.push(text + channels.flush()), *reader.flush()]
    assert (call.name, json.loads(call.arguments)) == ("add", {"yes": True})
    assert channels.take_reasoning() == "{a} </think>."


def test_a_schema_that_cannot_be_kept_is_named_behind_a_thought_too() -> None:
    for structure in (AnswerStructure(THINK), AnswerStructure(channels=True)):
        with pytest.raises(RequestError, match="response_format"):
            GRAMMARS[True].mask(json.dumps({"not": {}}), structure)
        bad = {"type": "function", "function": {"name": "a", "parameters": {"not": {}}, "strict": True}}
        with pytest.raises(RequestError, match="parameters"):
            GRAMMARS[True].calls(FORMS["hermes"], [bad], Calling(True), "", structure)
