"""Masks of regular expressions, choices and grammars over several kinds of vocabulary: what they let through fits."""

from __future__ import annotations

import re

import numpy as np
import pytest
from tests.pure.test_grammar import VOCABULARIES

from coterie.checkpoint.answer_structure import AnswerStructure
from coterie.checkpoint.constraint import Constraint
from coterie.checkpoint.grammar import Grammar, grammar_of
from coterie.checkpoint.thoughts import Marks
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import RequestError

TEXTS = ("a", "ab", 'é/"\\\n(b|c)*', "日本", "x y")
EXPRESSION = 'start: sum\nsum: INT | "(" sum ")" | sum "+" INT\nINT: /[0-9]/'
GBNF = 'root ::= "\\u00e9\\x41\\u0022" [\\u00e0-\\u00ff]{2} x # a comment\nx ::= "\\\\u00e9" "/" | "(" x ")"\n'
FORMS = {
    "regex": (Constraint.regex(r"[0-9]{2,4}/(é|ab|\\)?"), r"[0-9]{2,4}/(é|ab|\\)?"),
    "anchored": (Constraint.regex("^(yes|no)$"), "yes|no"),
    "perhaps nothing": (Constraint.regex("(ab)?"), "(ab)?"),
    "two lines": (Constraint.regex("a\nb{2}"), "a\nbb"),
    "choice": (Constraint.choice(TEXTS), "|".join(map(re.escape, TEXTS))),
    "one": (Constraint.choice(["no other"]), "no other"),
    "many": (Constraint.choice([f"w{i}" for i in range(5000)]), "w([0-9]|[1-9][0-9]{1,2}|[1-4][0-9]{3})"),
    "lark": (Constraint.grammar(EXPRESSION), r"[0-9(+)]+"),
    "gbnf": (Constraint.grammar(GBNF), r'éA"[à-ÿ]{2}\(*\\u00e9/\)*'),
}


def made(name: str) -> tuple[Tokenizer, tuple[int, ...], Grammar]:
    tokenizer, ends = VOCABULARIES[name]()
    return tokenizer, ends, grammar_of(tokenizer, tokenizer.vocab_size + 7, ends)


def walk(
    name: str, form: Constraint, seed: int, structure: AnswerStructure | None = None, most: int = 400
) -> str | None:
    """Text of tokens drawn alike from those that may come; None where it is not whole after so many."""
    tokenizer, ends, grammar = made(name)
    rng, mask, said = np.random.default_rng(seed), grammar.constrained(form, structure or AnswerStructure()), b""
    for _ in range(most):
        if mask.complete:
            return said.decode()
        token = int(rng.choice(np.flatnonzero(mask.allowed())))
        if token in ends:
            return said.decode()
        mask.accept(token)
        said += tokenizer.token_bytes(token)
    return None


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("form", FORMS)
def test_whatever_is_drawn_fits(name: str, form: str) -> None:
    constraint, pattern = FORMS[form]
    found = [walk(name, constraint, seed) for seed in range(6)]
    whole = [said for said in found if said is not None]
    assert whole
    for said in whole:
        assert re.fullmatch(pattern, said), said
        assert said.count("(") == said.count(")")


def test_each_text_of_a_choice_may_come() -> None:
    assert {walk("byte-level", FORMS["choice"][0], seed) for seed in range(80)} == set(TEXTS)


def test_the_end_may_come_where_a_text_is_whole_and_only_there() -> None:
    tokenizer, ends, grammar = made("byte-level")
    known = {tokenizer.token_bytes(token): token for token in range(tokenizer.vocab_size)}
    mask, seen = grammar.constrained(Constraint.choice(["a", "abc"])), []
    for letter in (b"a", b"b", b"c"):
        seen.append(bool(mask.allowed()[ends[0]]))
        mask.accept(known[letter])
    assert seen == [False, True, False]
    assert mask.complete


def test_behind_a_thought_and_in_a_channel() -> None:
    opened = AnswerStructure(Marks("<think>", "</think>"), True)
    channels = AnswerStructure(channels=True), "<|channel|>final<|message|>"
    for structure, before in ((AnswerStructure(Marks("<think>", "</think>")), ""), channels):
        for form in ("choice", "regex", "gbnf"):
            constraint, pattern = FORMS[form]
            found = [walk("byte-level", constraint, seed, structure, 60) for seed in range(8)]
            # The end of this vocabulary is that of a thought in a channel, too.
            whole = [said for said in found if said is not None and said.startswith(before)]
            assert whole
            assert all(re.fullmatch(pattern, said.removeprefix(before)) for said in whole)
    tokenizer, ends, grammar = made("byte-level")
    mask = grammar.constrained(Constraint.choice(["yes", "no"]), opened)
    for token in tokenizer.encode("So.</think>\nye", add_special_tokens=False):
        assert not mask.allowed()[ends[0]]
        mask.accept(token)
    assert tokenizer.decode([*mask.forced()][:1]) == "s"


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (
            Constraint.regex("a/b(c"),
            r"is no regular expression that can be enforced: unclosed group, at '\(c'; change it",
        ),
        (Constraint.regex("[a"), "unclosed character class, at '\\[a'"),
        (Constraint.regex("b(?=a)"), r"look-ahead and look-behind, is not supported, at '\(\?=a\)'"),
        (Constraint.regex(r"(a)\1"), "backreferences are not supported"),
        (Constraint.regex(r"\bfoo"), "lookarounds not supported yet"),
        (Constraint.regex(r"[^\s\S]"), "leads to where no token may come"),
        (Constraint.grammar("start: a\na: /x/ b"), r'unknown name: "b" \(line 2, column 4\); change it'),
        (Constraint.grammar("x: /x/"), "no start rule found"),
        (Constraint.grammar("start: start"), "leads to where no token may come"),
        (Constraint.grammar("start: /a(b/"), r"unclosed group, at '\(b' \(line 1, column 8\)"),
        (Constraint.grammar('start: %json {"not": {}}'), 'Unimplemented keys: \\["not"\\]'),
        (Constraint.grammar("root ::= x"), "Rule 'x' not found"),
        (Constraint.grammar('root ::= "x'), "Unexpected end of input at line 1"),
        (Constraint.grammar("root ::= [z-a]"), r"invalid character class range.* \(in Lark: start: /\[z-a\]/\)"),
        (Constraint.grammar("x ::= [a-z]"), "No 'root' rule found"),
        (
            Constraint.grammar("\r".join(f"r{i} ::= [a]" for i in range(1000))),
            "has 1000 rules in 12889 char.* shorten it",
        ),
    ],
)
def test_what_cannot_be_kept_is_told_with_its_place(form: Constraint, said: str) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        made("byte-level")[2].constrained(form)
    assert "\n" not in str(caught.value)


DEEP = 3000
DOUBLED = "\n".join(["start: R0", *(f"R{i}: R{i + 1} R{i + 1}" for i in range(40)), 'R40: "a"'])
HOSTILE = {
    "nested counts": Constraint.regex("((x{1000}){1000}){1000}"),
    "nested counts later": Constraint.regex("[ab]((x{1000}){1000}){1000}"),
    "nested ranges": Constraint.regex("((a{100,200}){100,200}){100,200}"),
    "a billion": Constraint.regex("a{1000000000}"),
    "perhaps": Constraint.regex("a?" * 1000 + "a" * 1000),
    "both": Constraint.grammar("start: A\nA: /.{300}a.*/ & /.*b.{301}/ & ~/.*c.{200}/"),
    "doubled": Constraint.grammar(DOUBLED),
    "parentheses": Constraint.regex("(" * DEEP + "a" + ")" * DEEP),
    "parentheses in GBNF": Constraint.grammar("root ::= " + "(" * DEEP + '"a"' + ")" * DEEP),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_grow_without_end_is_refused(name: str) -> None:
    """At once, or where it has grown too far: never by the memory of the machine."""
    with pytest.raises(RequestError, match=r"too (many|big|deep)|nested|exhausted"):
        walk("byte-level", HOSTILE[name], 1)


def test_a_form_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar, count = made("byte-level")[2], []
    real = grammar._llmatcher
    monkeypatch.setattr(grammar, "_llmatcher", lambda *args, **options: count.append(1) or real(*args, **options))
    for _ in range(3):
        grammar.constrained(Constraint.regex("once[0-9]"))
    assert len(count) == 1
