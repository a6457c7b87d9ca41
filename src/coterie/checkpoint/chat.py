"""Chat messages to one prompt text, by the checkpoint's own Jinja template, in a sandbox.

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
TOOLS = ("tools", "xml_tools")  # variables that templates have tools in, the second SmolLM3's
_SHOWN: LruCache[Shown] = LruCache(64)  # by what was read of templates, and their special tokens
OWN = ("messages", *TOOLS, "documents", "add_generation_prompt")  # variables that are no switches
_HERE = "[the-answer-goes-on-here]"  # is rendered, and cut off again


class ChatTemplate:
    """A template and the special tokens that it may name (bos_token, eos_token, ...).

    `for_tools`: another template, for prompts that offer tools. `has_channels`: answers are written in channels
    (channels.py). `thoughts`: marks around what is thought, or None. `source`: as it was read.
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
        """How its model writes calls of tools, or None: it is offered none, or in a form that is not read here."""
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
        """The folder's template, or None when it has none. Files of templates come before tokenizer_config.json.

        `tokens_from`: the folder that has the special tokens, where it is another one.

        Raises CheckpointError for a damaged file, UnsupportedError when there are several templates and no default.
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
        """The prompt text of messages (`role`, `content`, `tool_calls`, ...) that offers tools, as JSON schemas.

        `switches`: values of other variables that a template may read, such as enable_thinking.
        Raises RequestError when the template refuses them.
        """
        if any(message.get("tool_calls") for message in messages) and self._calls.as_text:
            messages = [_with_texts(message) for message in messages]
        return self._text(messages, add_generation_prompt, tools, switches)

    def render_begun(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        switches: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The same where the last message is the assistant's and the beginning of the answer: it ends with its text.

        Whatever the template has behind that is cut off, as by transformers' `continue_final_message`; blanks at the
        text's end stay. Raises RequestError when the last message is no such text, or not written as it stands.
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
        """As `render`, of messages as they are."""
        offered = list(tools) or None
        values = {**self._tokens, **switches, **dict.fromkeys(TOOLS, offered), "documents": None}
        values["add_generation_prompt"] = add_generation_prompt
        template = self._for_tools if offered else self._template
        try:
            return _environment().render(template.made, {**values, "messages": [self._taken(one) for one in messages]})
        except Exception as error:  # a template is a program, which fails in any way
            said = str(error) if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {error}"
            fact = f"the chat template does not take these messages: {said}"
            raise RequestError(self._where, fact, "change the messages or send a raw prompt") from None

    def _taken(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A message as the template takes it: in channels, what was thought and said before a call is one text."""
        said, thought = message.get("content"), message.get("thinking")
        if not (self.has_channels and message.get("tool_calls") and said and thought):
            return dict(message)
        return {**message, "content": "", "thinking": f"{thought}\n{said}"}


def _with_texts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose calls have their arguments as JSON texts."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


@dataclass(frozen=True, slots=True, eq=False)
class _Template:
    """A template that was read. `variables`: those that it wants values for."""

    made: jinja2.Template
    variables: frozenset[str]


@lru_cache(maxsize=64)
def _read(source: str) -> _Template:
    """One for all experts that have it: fine-tunes mostly keep their base's. Raises what Jinja raises."""
    made = _environment().template(source)
    return _Template(made, frozenset(jinja2.meta.find_undeclared_variables(_environment().parse(source))))


def _parse(source: str, where: str) -> _Template:
    try:
        return _read(source)
    except jinja2.TemplateSyntaxError as error:
        fact = f"the chat template is wrong at line {error.lineno}: {error.message}"
        raise CheckpointError(where, fact, "mend the template") from None
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:  # of Python's compiler
        fact = f"the chat template is nested too deeply, or no program: {type(error).__name__}"
        raise CheckpointError(where, fact, "mend the template") from None


def _named(source: Any, where: str) -> dict[str, Any]:
    """Templates by name, of a string, which is the default one, or of a list of named ones."""
    if source is None or isinstance(source, str):
        return {} if source is None else {DEFAULT: source}
    entries = source if isinstance(source, list) else [source]
    if not all(isinstance(t, dict) and {"name", "template"} <= t.keys() for t in entries):
        raise CheckpointError(where, "chat_template is neither a text nor a list of named templates", "mend it")
    return {template["name"]: template["template"] for template in entries}


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

    def __repr__(self) -> str:
        return "<Namespace>"  # what it holds may hold namespaces, without end


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own filter escapes HTML, which would change prompts."""
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
