r"""Forms of answers that are no JSON schema: a regular expression, a choice of texts, a grammar; in llguidance's Lark.

    regex    [0-9]{4}        start: /[0-9]{4}/
    choice   a, ab           start: /(?:a|ab)/          one terminal: thousands of rules at once are not followed
    grammar  root ::= "a"    start: "a"                 GBNF, as llama.cpp has it; Lark stays as it is

Knows nothing about tokens. Sources: github.com/guidance-ai/llguidance, docs/syntax.md; llama.cpp, grammars/README.md;
docs.rs/regex, "Syntax".
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coterie.core.errors import RequestError, check_unicode, shown

REGEX, CHOICE, GRAMMAR = "regex", "choice", "grammar"
FIELD = "form"
MAX_CHARS = 65_536  # of a form's text
MAX_GBNF = 10_000_000  # rules of GBNF times characters: what its conversion takes grows so, to some two seconds
_NOUNS = {REGEX: "regular expression", CHOICE: "choice", GRAMMAR: "grammar"}
_GBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_ESCAPED = re.compile(r"(\\\\)|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})")
_CITED = 40


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer is held to as a whole, where that is no JSON schema. Made by `regex`, `choice` or `grammar`.

    `field`: what of a request gave it, which errors name.
    """

    kind: str
    texts: tuple[str, ...]
    field: str = FIELD

    @classmethod
    def regex(cls, pattern: str, field: str = FIELD) -> Constraint:
        r"""Answers that a regular expression matches in whole: Rust's syntax, without look-around and references back.

        `.` is no newline, and `\d` and `\w` are Unicode's. Raises RequestError where it is empty or too long.
        """
        return _checked(cls(REGEX, (pattern,), field))

    @classmethod
    def choice(cls, texts: Sequence[str], field: str = FIELD) -> Constraint:
        """Answers that are one of some texts. Raises RequestError where there are none, or an empty one."""
        if isinstance(texts, str) or not texts:
            raise RequestError(field, f"is {shown(texts)}, which has no texts", "give a list of at least one")
        return _checked(cls(CHOICE, tuple(texts), field))

    @classmethod
    def grammar(cls, text: str, field: str = FIELD) -> Constraint:
        """Answers of a grammar: Lark, as llguidance has it, from `start`; or llama.cpp's GBNF, from `root`.

        Terminals of Lark, and rules of GBNF that could be such, take as much as they can. Raises RequestError where it
        is empty or too long.
        """
        return _checked(cls(GRAMMAR, (text,), field))

    @property
    def is_converted(self) -> bool:
        """True where lines of its Lark are none of its own."""
        return self.kind == GRAMMAR and _GBNF.search(self.texts[0].replace("\r", "\n")) is not None

    def lark(self) -> str:
        """The form as llguidance's Lark, which nothing has checked. Raises RequestError for GBNF that is none."""
        if self.kind == GRAMMAR:
            return self._from_gbnf() if self.is_converted else self.texts[0]
        if self.kind == CHOICE:
            return f"start: /(?:{'|'.join(map(_literally, self.texts))})/"
        llguidance: Any = importlib.import_module("llguidance")
        return f"start: /{llguidance.regex_to_lark(self.texts[0], '')}/"

    def refusal(self, message: str) -> RequestError:
        """The error of one that llguidance refuses, by what it says of it."""
        why = _told(message, self.kind == GRAMMAR, self.is_converted)
        fact = f"is no {_NOUNS[self.kind]} that can be enforced: {why}"
        return RequestError(self.field, fact, "change it")

    def _from_gbnf(self) -> str:
        text = _ESCAPED.sub(_letter, self.texts[0].replace("\r", "\n"))
        num_rules = len(_GBNF.findall(text))
        if num_rules * len(text) > MAX_GBNF:
            fact = f"has {num_rules} rules in {len(text)} characters, a product above {MAX_GBNF}"
            raise RequestError(self.field, fact, "shorten it, or give Lark in place of GBNF")
        try:
            return str(importlib.import_module("llguidance.gbnf_to_lark").gbnf_to_lark(text))
        except RecursionError as error:
            raise RequestError(self.field, "is nested too deeply", "give names to its inner parts") from error
        except Exception as error:  # it raises no other kind
            raise self.refusal(str(error)) from error


def _checked(made: Constraint) -> Constraint:
    size = sum(map(len, made.texts))
    if not all(made.texts):
        raise RequestError(made.field, "has an empty text" if made.kind == CHOICE else "is empty", "write something")
    if size > MAX_CHARS:
        raise RequestError(made.field, f"has {size} characters", f"give at most {MAX_CHARS}")
    for text in made.texts:
        check_unicode(text, made.field)
    return made


def _literally(text: str) -> str:
    """A text as a regular expression."""
    return re.sub(r"[^0-9A-Za-z]", lambda found: f"\\x{{{ord(found[0]):X}}}", text)


def _letter(found: re.Match[str]) -> str:
    """An escaped character as itself, or where that could mean something as two digits: others are misread."""
    if found[1]:
        return found[1]
    code = int(found[2] or found[3], 16)
    if code < 128:
        return f"\\x{code:02x}"
    return found[0] if 0xD800 <= code < 0xE000 or code > 0x10FFFF else chr(code)


def _told(message: str, has_lines: bool, is_converted: bool) -> str:
    """What llguidance says of a form in one line, with the place."""
    head, *behind = message.split("\n<state>", maxsplit=1)[0].split("\n")
    at = re.match(r"(?:at )?(\d+)\((\d+)\): ", head)
    said, where = (head[at.end() :], f" (line {at[1]}, column {at[2]})" * has_lines) if at else (head, "")
    if at and is_converted:
        source = next((line for line in behind if re.match(rf"\s*{at[1]} \| ", line)), "")
        where = f" (in Lark: {source.partition('| ')[2].strip()[:_CITED]})"
    why = next((line.removeprefix("error: ") for line in behind if line.startswith("error: ")), None)
    if why is not None:  # of a regular expression, with a mark below it
        place = next((place for place, line in enumerate(behind) if line.strip(" ^") == "" and "^" in line), 0)
        begins = behind[place - 1][behind[place].index("^") :] if place else ""
        said = f"{why}, at {shown(begins[:_CITED])}" if begins else why
    elif "(in regex): " in said:
        said = said.split("(in regex): ", maxsplit=1)[1]
    return " ".join(f"{said}{where}".split())[:300]
