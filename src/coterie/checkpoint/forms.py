"""Forms of tool calls: how each family of models writes them, and which form a chat template asks its model for.

This looks for telling words in the template's text. They can mislead, since other forms' templates may contain them
too; what a template actually renders for a call takes precedence (shown_calls.py).
Knows nothing about template syntax, tokens or requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from coterie.checkpoint.name_keyed import NameKeyed
from coterie.checkpoint.nesting import ParseTrigger
from coterie.checkpoint.pythonic import Pythonic
from coterie.checkpoint.quoted import Quoted
from coterie.checkpoint.sections import Sections
from coterie.checkpoint.tagged import Named, Tags

AnyLayout: TypeAlias = "Tags | Named | NameKeyed | Pythonic | Quoted | Sections"


@dataclass(frozen=True, slots=True)
class Form:
    """How a family writes calls: as JSON, or as `layout` describes.

    JSON is an object with a `name` and, under the key `arguments`, an object; or a list of these.
    A call follows the mark `opening` and precedes `closing`, unless that is empty. `listed`: several calls share one
    pair of marks, as a list. `bare`: an answer may also begin with a call without a mark, and further calls follow
    after semicolons. `head`: with the NAME of an offered tool filled in, it begins a call too, for models that leave
    out the opening mark. `unmarked`: models may leave out both marks at the beginning of an answer (unmarked.py). A
    template shows the form if it contains all `signs` and none of `counter_signs`.
    """

    signs: tuple[str, ...]
    counter_signs: tuple[str, ...]
    opening: str
    closing: str = ""
    arguments: str = "arguments"
    bare: bool = False
    listed: bool = False
    head: str = ""
    unmarked: bool = False
    layout: AnyLayout | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """All marks of a call; a tokenizer may have them as special tokens."""
        return self.opening, self.closing, *(() if self.layout is None else self.layout.marks)

    @property
    def apart(self) -> bool:
        """True if each of several calls has its own marks."""
        return (bool(self.closing) and not self.listed) or isinstance(self.layout, Named)

    def parse_trigger(self) -> ParseTrigger:
        """A new tracker of when a growing block of this form is worth parsing."""
        mark = self.layout.mark if isinstance(self.layout, Named) else "" if self.layout is None else None
        within = self.layout.within if isinstance(self.layout, Tags | Quoted) else None
        return ParseTrigger(self.opening, self.closing, mark, within)

    def shown_by(self, template: str) -> bool:
        """Whether a chat template's text shows this form."""
        return all(sign in template for sign in self.signs) and not any(sign in template for sign in self.counter_signs)


_FUNCTIONS = Tags("<function=NAME>\n", "<parameter=KEY>\nVALUE\n</parameter>\n", "</function>")
_INLINE = Tags("<function=NAME>\n", "<parameter=KEY>VALUE</parameter>\n", "</function>")
_INVOKED = Tags('<invoke name="NAME">\n', '<parameter name="KEY">VALUE</parameter>\n', "</invoke>")
_PAIRS = Tags("NAME\n", "<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n", lead="", tail="")
_FENCED = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```<｜tool▁call▁end｜>"
_PLAIN = "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>"
_CALLS_OF_DEEPSEEK = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_NO_LLAMAS = ("<tool_call>", "[TOOL_CALLS]", "<|START_OF_TURN_TOKEN|>")  # the last is Cohere's
FORMS = {
    # Hermes 2 Pro, Qwen2.5 and Qwen3; other families put XML between the same marks.
    "hermes": Form(*(("<tool_call>",), ("<function=", "<arg_key>"), "<tool_call>", "</tool_call>"), unmarked=True),
    # Mistral up to tokenizer version 7; later ones write a name and [ARGS].
    "mistral": Form(("[TOOL_CALLS]",), ("[ARGS]",), "[TOOL_CALLS]", listed=True),
    "mistral-named": Form(("[TOOL_CALLS]", "[ARGS]"), (), "[TOOL_CALLS]", layout=Named("[ARGS]", "[CALL_ID]")),
    # Qwen3-Coder and Qwen3.5; Seed-OSS; MiniMax-M2; GLM-4.5 and later.
    "functions": Form(
        *(("<tool_call>", "<function="), (), "<tool_call>", "</tool_call>"), head="<function=NAME>", layout=_FUNCTIONS
    ),
    "seed": Form(("<seed:tool_call>", "<function="), (), "<seed:tool_call>", "</seed:tool_call>", layout=_INLINE),
    "invoked": Form(("<minimax:tool_call>",), (), "<minimax:tool_call>", "</minimax:tool_call>", layout=_INVOKED),
    "pairs": Form(("<tool_call>", "<arg_key>"), (), "<tool_call>", "</tool_call>", layout=_PAIRS),
    # Granite 3's; Nemotron's Llamas and Nemotron Nano 2; Apriel and Hunyuan.
    "granite": Form(("<|tool_call|>",), (), "<|tool_call|>", listed=True),
    "nemotron": Form(("<TOOLCALL>",), (), "<TOOLCALL>", "</TOOLCALL>", listed=True),
    "apriel": Form(("<tool_calls>[",), (), "<tool_calls>", "</tool_calls>", listed=True),
    "apertus": Form(("<|tools_prefix|>",), (), "<|tools_prefix|>", "<|tools_suffix|>", listed=True, layout=NameKeyed()),
    # LFM2, most of whose templates do not render calls; Gemma 4.
    "lfm": Form(("List of tools: ",), (), "<|tool_call_start|>", "<|tool_call_end|>", listed=True, layout=Pythonic()),
    "gemma": Form(("<|tool_call>call:",), (), "<|tool_call>", "<tool_call|>", layout=Quoted()),
    # DeepSeek V3, R1 and its distillates; V3.1.
    "deepseek": Form(
        ("<｜tool▁calls▁begin｜>", "```json"), (), *_CALLS_OF_DEEPSEEK, listed=True, layout=Sections(_FENCED, "\n")
    ),
    "deepseek-plain": Form(
        ("<｜tool▁calls▁begin｜>",), ("```json",), *_CALLS_OF_DEEPSEEK, listed=True, layout=Sections(_PLAIN)
    ),
    # Llama 3.1 and 3.2; if a model writes the tag, it may also introduce code.
    "llama": Form(('"parameters":',), _NO_LLAMAS, "<|python_tag|>", "", "parameters", True),
}


def form_of(template: str) -> Form | None:
    """The first form whose signs a chat template contains, or None."""
    return next((form for form in FORMS.values() if form.shown_by(template)), None)
