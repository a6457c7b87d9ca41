r"""Constraints on answers other than a JSON schema: a regex, a choice of texts, a grammar; as llguidance's Lark.

    regex    [0-9]{4}        start: /[0-9]{4}/
    choice   a, ab           start: /(?:a|ab)/          one terminal: the parser does not follow thousands of rules
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
MAX_CHARS = 65_536  # of a constraint's text
MAX_GBNF = 10_000_000  # rules x characters of GBNF, which its conversion time grows with; about two seconds at most
_NOUNS = {REGEX: "regular expression", CHOICE: "choice", GRAMMAR: "grammar"}
_GBNF = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_ESCAPED = re.compile(r"(\\\\)|\\u([0-9A-Fa-f]{4})|\\U([0-9A-Fa-f]{8})")
_CITED = 40


@dataclass(frozen=True, slots=True)
class Constraint:
    """A constraint on a whole answer, other than a JSON schema. Made by `regex`, `choice` or `grammar`.

    `field`: the request's field that it came from, named in errors.
    """

    kind: str
    texts: tuple[str, ...]
    field: str = FIELD

    @classmethod
    def regex(cls, pattern: str, field: str = FIELD) -> Constraint:
        r"""Answers that a regular expression matches completely: Rust's syntax, without look-around or backreferences.

        `.` does not match a newline; `\d` and `\w` are Unicode-aware. Raises RequestError if it is empty or too long.
        """
        return _checked(cls(REGEX, (pattern,), field))

    @classmethod
    def choice(cls, texts: Sequence[str], field: str = FIELD) -> Constraint:
        """Answers that are one of these texts. Raises RequestError if there are none, or one is empty."""
        if isinstance(texts, str) or not texts:
            raise RequestError(field, f"is {shown(texts)}, which has no texts", "give a list of at least one")
        return _checked(cls(CHOICE, tuple(texts), field))

    @classmethod
    def grammar(cls, text: str, field: str = FIELD) -> Constraint:
        """Answers of a grammar: llguidance's Lark, from the rule `start`; or llama.cpp's GBNF, from the rule `root`.

        Lark terminals, and GBNF rules that can be converted to terminals, match greedily. Raises RequestError if it is
        empty or too long.
        """
        return _checked(cls(GRAMMAR, (text,), field))

    @property
    def is_converted(self) -> bool:
        """True if its Lark is converted from GBNF, so that line numbers do not refer to the user's text."""
        return self.kind == GRAMMAR and _GBNF.search(self.texts[0].replace("\r", "\n")) is not None

    def lark(self) -> str:
        """The constraint as llguidance's Lark, not validated. Raises RequestError for invalid GBNF."""
        if self.kind == GRAMMAR:
            return self._from_gbnf() if self.is_converted else self.texts[0]
        if self.kind == CHOICE:
            return f"start: /(?:{'|'.join(map(_literally, self.texts))})/"
        llguidance: Any = importlib.import_module("llguidance")
        return f"start: /{llguidance.regex_to_lark(self.texts[0], '')}/"

    def refusal(self, message: str) -> RequestError:
        """The error for a constraint that llguidance refuses, from its message."""
        why = _one_line(message, self.kind == GRAMMAR, self.is_converted)
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
        except Exception as error:  # the converter raises plain Exception
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
    """A regular expression that matches exactly this text."""
    return re.sub(r"[^0-9A-Za-z]", lambda found: f"\\x{{{ord(found[0]):X}}}", text)


def _letter(found: re.Match[str]) -> str:
    r"""An escaped character as itself, or as `\x` and two hex digits if it is ASCII and could be syntax.

    The GBNF converter misreads longer escapes.
    """
    if found[1]:
        return found[1]
    code = int(found[2] or found[3], 16)
    if code < 128:
        return f"\\x{code:02x}"
    return found[0] if 0xD800 <= code < 0xE000 or code > 0x10FFFF else chr(code)


def _one_line(message: str, has_lines: bool, is_converted: bool) -> str:
    """llguidance's message about a constraint in one line, with the position."""
    head, *behind = message.split("\n<state>", maxsplit=1)[0].split("\n")
    at = re.match(r"(?:at )?(\d+)\((\d+)\): ", head)
    said, where = (head[at.end() :], f" (line {at[1]}, column {at[2]})" * has_lines) if at else (head, "")
    if at and is_converted:
        source = next((line for line in behind if re.match(rf"\s*{at[1]} \| ", line)), "")
        where = f" (in Lark: {source.partition('| ')[2].strip()[:_CITED]})"
    why = next((line.removeprefix("error: ") for line in behind if line.startswith("error: ")), None)
    if why is not None:  # from the regex parser, with a ^ mark below the place
        place = next((place for place, line in enumerate(behind) if line.strip(" ^") == "" and "^" in line), 0)
        begins = behind[place - 1][behind[place].index("^") :] if place else ""
        said = f"{why}, at {shown(begins[:_CITED])}" if begins else why
    elif "(in regex): " in said:
        said = said.split("(in regex): ", maxsplit=1)[1]
    return " ".join(f"{said}{where}".split())[:300]
