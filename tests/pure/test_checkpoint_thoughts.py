"""Thoughts: told from the answer behind them, however the text is cut into pieces."""

import random

import pytest
from tests.pure.tokenizers_made import of_bytes

from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.thoughts import MARKS, Marks, ThoughtText
from coterie.checkpoint.tokenizer import Tokenizer

THINK = Marks("<think>", "</think>")
# written, opened by the prompt: text, reasoning
CASES = {
    ("<think>\nFour or five?\n</think>\n\nFour.", False): ("Four.", "Four or five?"),
    ("  \n<think>a\n\nb</think>c", False): ("c", "a\n\nb"),
    ("Four or five?\n</think>\n\nFour.\n", True): ("Four.\n", "Four or five?"),
    ("<think>\n\n</think>\n\nFour.", False): ("Four.", ""),
    ("no end </thin", True): ("", "no end </thin"),
    ("<think>no end  ", False): ("", "no end"),
    ("Plain.", False): ("Plain.", ""),
    ("  Plain, <think>later</think>.", False): ("  Plain, <think>later</think>.", ""),
    ("<thin", False): ("<thin", ""),
    (" \n", False): (" \n", ""),
    ("", False): ("", ""),
    ("", True): ("", ""),
    ("a < b </t> c</think>é!", True): ("é!", "a < b </t> c"),
}


# Marks are no tokens, tokens that are text, or special ones.
TOKENIZERS = {
    "letters": Tokenizer(of_bytes()),
    "tokens": Tokenizer(of_bytes((), ["<think>", "</think>"])),
    "special": Tokenizer(of_bytes(["<think>", "</think>"])),
}


def read(reader, tokenizer, written, often=True):
    """The text and the reasoning that come of what is written; reasoning is taken with each token, or at the end."""
    said, thought = "", ""
    for token in tokenizer.encode(written, add_special_tokens=False):
        said += reader.push(token)
        thought += reader.take_reasoning() if often else ""
    said += reader.flush()
    return said, thought + reader.take_reasoning()


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_thought_is_told_from_the_answer(kind, case):
    written, opened = case
    tokenizer = TOKENIZERS[kind]
    reader = ThoughtText(tokenizer, THINK, opened, tokenizer.among("<think>", "</think>"))
    assert read(reader, tokenizer, written) == CASES[case]


def test_what_is_given_out_never_depends_on_the_pieces():
    """Also what is held back is little: an answer's text comes with its token."""
    chance = random.Random(5)
    tokenizer = TOKENIZERS["letters"]
    for _ in range(200):
        parts = [chance.choice(["<think>", "</think>", "<", "</", "a", " ", "\n", "thi"]) for _ in range(8)]
        written, opened = "".join(parts), chance.random() < 0.5
        results = [read(ThoughtText(tokenizer, THINK, opened), tokenizer, written, often) for often in (True, False)]
        assert results[0] == results[1]
        end = written.find("</think>")
        begins = opened or written.lstrip().startswith("<think>")
        if begins and end >= 0:
            assert results[0][0] == written[end + len("</think>") :].lstrip()
        elif not begins:
            assert results[0] == (written, "")


def test_an_answers_text_comes_with_its_token():
    reader = ThoughtText(TOKENIZERS["letters"], THINK, True)
    for letter in TOKENIZERS["letters"].encode("</think>", add_special_tokens=False):
        assert reader.push(letter) == ""
    assert [reader.push(token) for token in TOKENIZERS["letters"].encode(" <ab", add_special_tokens=False)] == [
        "",
        "<",
        "a",
        "b",
    ]


def test_tokens_of_a_thought_are_counted():
    tokenizer = TOKENIZERS["special"]
    reader = ThoughtText(tokenizer, THINK, False, tokenizer.among("<think>", "</think>"))
    for token in tokenizer.encode("<think>abc</think>\nde", add_special_tokens=False):
        reader.push(token)
    assert reader.reasoning_tokens == 5  # its marks are part of it


# written by Gemma 4, by Granite 3.3: text, reasoning
TITLED = {
    "<|channel>thought\nFour?\n<channel|>Four.": ("Four.", "Four?"),
    "<|channel>thought\n<channel|>Four.": ("Four.", ""),
    "<|channel>thoughtful\n<channel|>Four.": ("Four.", "thoughtful"),
    "<|channel> \nthought\n thought\nthought<channel|>": ("", "thought\nthought"),
    "<|channel>thought": ("", ""),
}
ANSWERED = {
    "<think>Four?</think>\n<response>Four.\n</response>": ("Four.", "Four?"),
    "<think>Four?</think>\n<response>\nFour </resp\n</response>\n": ("Four </resp\n", "Four?"),
    "<think>Four?</think> Four. </response>": ("Four. </response>", "Four?"),
    "<think>Four?</think><respons": ("<respons", "Four?"),
    "<think>Four?</think><response>Four. </respo": ("Four. </respo", "Four?"),
    "<response>Four.</response>": ("<response>Four.</response>", ""),
}


@pytest.mark.parametrize("written", [*TITLED, *ANSWERED])
def test_a_title_and_marks_around_an_answer_belong_to_neither(written):
    of_gemma = next(marks for marks in MARKS if marks.title)
    marks = of_gemma if written in TITLED else Marks("<think>", "</think>", answer=("<response>", "</response>"))
    tokenizer = TOKENIZERS["letters"]
    reader = ThoughtText(tokenizer, marks, False)
    assert read(reader, tokenizer, written) == (TITLED | ANSWERED)[written]


@pytest.mark.parametrize("mark", ["response", "answer"])
def test_a_template_shows_what_is_around_answers(mark):
    shown = f"Write your thoughts between <think></think> and your response between <{mark}></{mark}>"
    assert ChatTemplate(shown, {}, "").thoughts == Marks("<think>", "</think>", answer=(f"<{mark}>", f"</{mark}>"))
    assert ChatTemplate("</think>" + shown[-12:], {}, "").thoughts == THINK


@pytest.mark.parametrize("marks", MARKS)
def test_a_template_shows_the_marks(marks):
    shown = ChatTemplate(
        "{{ '" + marks.opening + "' + messages[0].reasoning_content + '" + marks.closing + "' }}", {}, ""
    )
    assert shown.thoughts == marks
    assert marks.opened_by(f"assistant\n{marks.opening}\n")
    assert not marks.opened_by(f"assistant\n{marks.opening}\n\n{marks.closing}\n\n")


def test_most_templates_know_none():
    assert ChatTemplate("{{ messages[0].content }}", {}, "").thoughts is None


@pytest.mark.parametrize("opened", [False, True])
def test_blanks_without_end_are_given_out(opened):
    """A model that has nothing to say may write them for ever."""
    tokenizer = TOKENIZERS["letters"]
    reader, blank = ThoughtText(tokenizer, THINK, opened), tokenizer.encode("\n", add_special_tokens=False)[0]
    said = thought = ""
    for token in [*tokenizer.encode("a" if opened else "", add_special_tokens=False), *[blank] * 3000]:
        said += reader.push(token)
        thought += reader.take_reasoning()
    assert len(said + thought) > 1000
    assert said + reader.flush() == ("" if opened else "\n" * 3000)
