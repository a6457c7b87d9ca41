"""Renders chat messages into one prompt, by the checkpoint's own Jinja template, in a sandbox.

Knows nothing about tokens. The rendering environment is that of Hugging Face transformers' apply_chat_template
(documentation, "Writing a chat template"), so that a model sees the text it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import jinja2.meta
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser

from coterie.checkpoint.bounded import BoundedEnvironment, gathered
from coterie.checkpoint.channels import CALL_FORM, CHANNEL, MESSAGE
from coterie.checkpoint.files import read_object_if_present, read_text
from coterie.checkpoint.forms import Form
from coterie.checkpoint.shown_calls import Shown, shown_calls
from coterie.checkpoint.thoughts import marks_of
from coterie.checkpoint.tokenizer import TOKENIZER_CONFIG, special_tokens
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError
from coterie.core.lru_cache import LruCache

TEMPLATE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
DEFAULT, FOR_TOOLS = "default", "tool_use"  # names of templates
TOOLS = ("tools", "xml_tools")  # template variables for tools; xml_tools is SmolLM3's
_SHOWN: LruCache[Shown] = LruCache(64)  # by compiled templates and special tokens
RESERVED_VARIABLES = (
    "messages",
    *TOOLS,
    "documents",
    "add_generation_prompt",
)  # variables that a request cannot set as switches
_HERE = "[the-answer-goes-on-here]"  # a marker that is rendered after the text to continue, and cut off again


class ChatTemplate:
    """A template and the special tokens that it may use (bos_token, eos_token, ...).

    `for_tools`: another template, for prompts that offer tools. `has_channels`: answers are written in channels
    (channels.py). `thoughts`: the marks around reasoning, or None. `source`: the template's text.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], where: str, for_tools: str | None = None) -> None:
        self._where, self._tokens, self.source = where, dict(tokens), source
        self._template = _parse(source, where)
        self._for_tools = self._template if for_tools is None else _parse(for_tools, where)
        self._offered = source if for_tools is None else for_tools
        self.takes_tools = not self._for_tools.variables.isdisjoint(TOOLS)
        self.has_channels = CHANNEL in source and MESSAGE in source
        self.thoughts = marks_of(source)

    @property
    def form(self) -> Form | None:
        """The form in which its model writes tool calls; None if it takes no tools or the form is not supported."""
        return self._calls.form

    @cached_property
    def _calls(self) -> Shown:
        if not self.takes_tools:
            return Shown(None)
        if self.has_channels:
            return Shown(CALL_FORM)
        source = (self._template, self._for_tools, tuple(self._tokens.items()))
        return _SHOWN.get(source, lambda: shown_calls(self._offered, self._text))

    @staticmethod
    def from_folder(path: str | Path, tokens_from: Path | None = None) -> ChatTemplate | None:
        """The folder's template, or None if it has none. Template files take precedence over tokenizer_config.json.

        `tokens_from`: the folder with the special tokens, if it is another one.

        Raises CheckpointError for a damaged file, UnsupportedError if there are several templates and no default.
        """
        folder = Path(path)
        files = {DEFAULT: folder / TEMPLATE} if (folder / TEMPLATE).exists() else {}
        files |= {file.stem: file for file in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
        where = str(files.get(DEFAULT, folder / (MORE_TEMPLATES if files else TOKENIZER_CONFIG)))
        if files:
            named = {name: read_text(file) for name, file in files.items()}
        else:
            named = _named(read_object_if_present(folder / TOKENIZER_CONFIG).get("chat_template"), where)
        if named and not isinstance(named.get(DEFAULT), str):
            fact = f"there is no chat template named {DEFAULT} among {', '.join(map(str, named))}"
            raise UnsupportedError(where, fact, f"name one of them {DEFAULT}")
        if not named:
            return None
        return ChatTemplate(named[DEFAULT], special_tokens(tokens_from or folder), where, named.get(FOR_TOOLS))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        switches: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The prompt for messages (`role`, `content`, `tool_calls`, ...), offering `tools`, given as JSON schemas.

        `switches`: other variables that a template may read, such as enable_thinking.
        Raises RequestError if the template refuses them.
        """
        if any(message.get("tool_calls") for message in messages) and self._calls.as_text:
            messages = [_with_texts(message) for message in messages]
        return self._text(messages, add_generation_prompt, tools, switches)

    def render_continued(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        switches: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The prompt for an answer that continues the last message, an assistant's: it ends with that message's text.

        What the template writes after it is cut off, as by transformers' `continue_final_message`; white space at the
        end of the text stays. Raises RequestError if the last message is not plain assistant text, or if the template
        does not write it unchanged.
        """
        *before, last = messages
        said = last["content"]
        if last["role"] != "assistant" or last.get("tool_calls") or not said.strip():
            fact = "the last one is to be continued, but is not an assistant's text without calls"
            raise RequestError("messages", fact, "end with the assistant's text, or let a new answer begin")
        marked = [*before, {**last, "content": said + _HERE}]
        text, mark, _ = self.render(marked, False, tools, switches).rpartition(_HERE)
        if not mark or not text.endswith(said.lstrip()):
            fact = "the last one is to be continued, but the chat template does not write its text unchanged"
            remedy = "send reasoning as reasoning_content, or let a new answer begin"
            raise RequestError("messages", fact, remedy)
        return text

    def _text(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]],
        switches: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """As `render`, without converting arguments of calls to JSON text."""
        offered = list(tools) or None
        values = {**self._tokens, **switches, **dict.fromkeys(TOOLS, offered), "documents": None}
        values["add_generation_prompt"] = add_generation_prompt
        template = self._for_tools if offered else self._template
        try:
            return _environment().render(template.made, {**values, "messages": [self._taken(one) for one in messages]})
        except Exception as error:  # a template is a program, and may fail in any way
            said = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            fact = f"the chat template does not take these messages: {said}"
            raise RequestError(self._where, fact, "change the messages or send a raw prompt") from None

    def _taken(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message in the form the template takes: with channels, reasoning and text before a call are merged."""
        said, thought = message.get("content"), message.get("thinking")
        if not (self.has_channels and message.get("tool_calls") and said and thought):
            return dict(message)
        return {**message, "content": "", "thinking": f"{thought}\n{said}"}


def _with_texts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with the arguments of its calls as JSON text."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


@dataclass(frozen=True, slots=True, eq=False)
class _Template:
    """A compiled template. `variables`: the undeclared ones, which the caller may set."""

    made: jinja2.Template
    variables: frozenset[str]


@lru_cache(maxsize=64)
def _read(source: str) -> _Template:
    """Compiled once for all experts that share it: fine-tunes mostly keep their base's. Raises what Jinja raises."""
    made = _environment().template(source)
    return _Template(made, frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(source))))


def _parse(source: str, where: str) -> _Template:
    try:
        return _read(source)
    except jinja2.TemplateSyntaxError as error:
        fact = f"the chat template is wrong at line {error.lineno}: {error.message}"
        raise CheckpointError(where, fact, "mend the template") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:  # from Python's compiler
        fact = f"the chat template is nested too deeply, or no program: {type(error).__name__}"
        raise CheckpointError(where, fact, "mend the template") from None


def _named(source: Any, where: str) -> dict[str, Any]:
    """Templates by name, from a string (the default template) or a list of named ones."""
    if source is None or isinstance(source, str):
        return {} if source is None else {DEFAULT: source}
    entries = source if isinstance(source, list) else [source]
    if not all(isinstance(t, dict) and {"name", "template"} <= t.keys() for t in entries):
        raise CheckpointError(where, "chat_template is neither a text nor a list of named templates", "mend it")
    return {template["name"]: template["template"] for template in entries}


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks model output for training; here only its content is rendered."""

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

    def __repr__(self) -> str:
        return "<Namespace>"  # its contents may contain it, in a cycle


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Replaces Jinja's own filter, which escapes HTML and so would change prompts."""
    encoder = json.JSONEncoder(ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return gathered(encoder.iterencode(value))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@lru_cache(maxsize=1)
def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    environment.bound_filters()
    return environment
