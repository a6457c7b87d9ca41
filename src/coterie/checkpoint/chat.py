"""Chat messages to one prompt text, by the checkpoint's own Jinja template, in a sandbox.

Knows nothing about tokens. The rendering environment is that of Hugging Face transformers' apply_chat_template
(documentation, "Writing a chat template"), so that a model sees the text it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coterie.checkpoint.files import read_object_if_present, read_text
from coterie.checkpoint.tokenizer import TOKENIZER_CONFIG, special_tokens
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError

TEMPLATE = "chat_template.jinja"


class ChatTemplate:
    """A template and the special tokens that it may name (bos_token, eos_token, ...)."""

    def __init__(self, source: str, tokens: Mapping[str, str], where: str) -> None:
        self._where, self._tokens = where, dict(tokens)
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            fact = f"the chat template is wrong at line {error.lineno}: {error.message}"
            raise CheckpointError(where, fact, "mend the template") from None

    @staticmethod
    def from_folder(path: str | Path) -> ChatTemplate | None:
        """The folder's template, or None when it has none. chat_template.jinja comes before tokenizer_config.json.

        Raises CheckpointError for a damaged file, UnsupportedError when there are several templates and no default.
        """
        folder = Path(path)
        tokens = special_tokens(folder)
        if (folder / TEMPLATE).exists():
            return ChatTemplate(read_text(folder / TEMPLATE), tokens, str(folder / TEMPLATE))
        where = str(folder / TOKENIZER_CONFIG)
        source = _default(read_object_if_present(folder / TOKENIZER_CONFIG).get("chat_template"), where)
        return None if source is None else ChatTemplate(source, tokens, where)

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt text of messages (`role`, `content`). Raises RequestError when the template refuses them."""
        values = {**self._tokens, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(values, messages=[dict(message) for message in messages])
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            fact = f"the chat template does not take these messages: {error}"
            raise RequestError(self._where, fact, "change the messages or send a raw prompt") from None


def _default(source: Any, where: str) -> str | None:
    """A template is a string, or a list of named ones of which `default` is used for plain chat."""
    if source is None or isinstance(source, str):
        return source
    entries = source if isinstance(source, list) else [source]
    if not all(isinstance(t, dict) and {"name", "template"} <= t.keys() for t in entries):
        raise CheckpointError(where, "chat_template is neither a text nor a list of named templates", "mend it")
    named = {template["name"]: template["template"] for template in entries}
    if not isinstance(named.get("default"), str):
        fact = f"there is no chat template named default among {', '.join(map(str, named)) or 'none'}"
        raise UnsupportedError(where, fact, "name one of them default")
    return str(named["default"])


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what a model wrote, for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's interface)

    def parse(self, parser: Parser) -> Node | list[Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return str(caller())


class _Namespace(jinja2.utils.Namespace):
    """Jinja's namespace without names that begin with an underscore, which could reach Python's internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        names = dict(*args[1:], **kwargs)
        for name in names:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML, which would change prompts."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    return environment
