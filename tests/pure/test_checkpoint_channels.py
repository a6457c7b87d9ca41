"""Answers in channels: what is said in the final one, or in none, is text; analysis is reasoning; calls are read."""

import json

import pytest
from tests.pure.tokenizers_made import of_bytes

from coterie.checkpoint.calls import Call, CallText
from coterie.checkpoint.channels import CALL_FORM, CONSTRAIN, MARKERS, ChannelText
from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.tokenizer import Tokenizer

ENDS = ("<|end|>", "<|return|>", "<|call|>", CONSTRAIN)


@pytest.fixture(scope="module")
def tokenizer():
    """A token per byte, and the markers as special tokens."""
    return Tokenizer(of_bytes([*MARKERS, *ENDS]))


THOUGHT = "<|channel|>analysis<|message|>They say hé.<|end|><|start|>assistant"
SAID = {
    f"{THOUGHT}<|channel|>final<|message|>Hello, é!<|return|>": ("Hello, é!", "They say hé."),
    f"{THOUGHT}{THOUGHT}<|channel|>final<|message|>So": ("So", "They say hé.\nThey say hé."),
    f"{THOUGHT}<|channel|>commentary<|message|>Let me.<|end|><|start|>assistant<|channel|>final<|message|>So": (
        "Let me.\nSo",
        "They say hé.",
    ),
    "<|channel|>final <|constrain|>json<|message|>{}": ("{}", ""),
    "<|channel|>finally<|message|>no": ("", ""),
    "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{}": ("", ""),
    "<|channel|>analysis to=python<|message|>print(1)<|end|>": ("", "print(1)"),
    "Plain text, as a fine-tune may write it.": ("Plain text, as a fine-tune may write it.", ""),
    "<|message|>in no channel<|end|>": ("in no channel", ""),
    "one<|end|><|start|>assistant<|message|>two": ("one\ntwo", ""),
    THOUGHT: ("", "They say hé."),
    "<|channel|>final": ("", ""),
    "": ("", ""),
}


def read(reader, tokenizer, written):
    """The text and the reasoning that come of what is written, token by token."""
    pieces, thought = [], []
    for token in tokenizer.encode(written, add_special_tokens=False):
        pieces.append(reader.push(token))
        thought.append(reader.take_reasoning())
    pieces.append(reader.flush())
    thought.append(reader.take_reasoning())
    assert all("\ufffd" not in piece for piece in (*pieces, *thought))
    return "".join(pieces), "".join(thought)


@pytest.mark.parametrize("written", SAID)
def test_what_is_said_is_told_from_what_is_thought(written, tokenizer):
    assert read(ChannelText(tokenizer), tokenizer, written) == SAID[written]


def test_tokens_of_thoughts_are_counted(tokenizer):
    reader = ChannelText(tokenizer)
    read(reader, tokenizer, f"{THOUGHT}<|channel|>final<|message|>Hello")
    thought = tokenizer.encode("They say hé.<|end|><|start|>", add_special_tokens=False)
    assert reader.reasoning_tokens == len(thought)


@pytest.mark.parametrize(
    "head",
    [
        "<|channel|>commentary to=functions.add <|constrain|>json<|message|>",
        "<|start|>assistant to=functions.add<|channel|>commentary json<|message|>",
    ],
)
def test_a_call_is_read_wherever_its_recipient_stands(head, tokenizer):
    text, thought = read(ChannelText(tokenizer, calls=True), tokenizer, f'{THOUGHT}{head}{{"a": [1, 2]}}')
    reader = CallText(CALL_FORM, ["add"])
    assert [*reader.push(text), *reader.flush()] == [Call("add", json.dumps({"a": [1, 2]}))]
    assert thought == "They say hé."


def test_a_call_that_is_cut_is_not_closed(tokenizer):
    written = '<|channel|>commentary to=functions.add json<|message|>{"a": 1'
    text, _ = read(ChannelText(tokenizer, calls=True), tokenizer, written)
    assert text == '<tool_call>{"name": "add", "arguments": {"a": 1'


def test_a_template_shows_that_its_model_writes_channels():
    assert ChatTemplate("{{ '<|start|>assistant<|channel|>final<|message|>' }}", {}, "here").has_channels
    assert not ChatTemplate("{{ '<|start|>assistant<|message|>' }}", {}, "here").has_channels
