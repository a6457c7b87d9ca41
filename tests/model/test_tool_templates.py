"""Chat templates that offer tools: the text of transformers' apply_chat_template, in the style of three families."""

from __future__ import annotations

import pytest
from tests.model.test_chat_templates import CHATML, save
from transformers import AutoTokenizer

from coterie.api import Message
from coterie.api.types import ToolCall
from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.forms import FORMS
from coterie.core.errors import UnsupportedError

# Each is written here, after what its family's templates do with tools, calls and results.
HERMES = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "You may call these functions, one JSON object with its signature a line:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\nTo call one, write\\n<tool_call>\\n" }}
    {{- "{\\"name\\": <name>, \\"arguments\\": <object>}\\n</tool_call>" }}
    {{- "<|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant' }}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

FUNCTIONS = """{%- if tools %}
    {{- '<|im_start|>system\\nYou may call these functions:\\n<tools>' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\nTo call one, write\\n<tool_call>\\n<function=NAME>\\n<parameter=KEY>\\nVALUE" }}
    {{- "\\n</parameter>\\n</function>\\n</tool_call><|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set tool_call = tool_call.function %}
            {{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n' }}
            {%- for key, value in tool_call.arguments | items %}
                {{- '<parameter=' + key + '>\\n' }}
                {{- value if value is string else value | tojson }}
                {{- '\\n</parameter>\\n' }}
            {%- endfor %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

LLAMA = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools is not none %}{{- 'Environment: ipython\\n' }}{%- endif %}
{{- system_message + '<|eot_id|>' }}
{%- if tools is not none %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nAnswer with the JSON of a call, as ' }}
    {{- '{"name": function name, "parameters": dictionary of argument name and its value}.\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
    {{- messages[0]['content'] | trim + '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}{{- raise_exception('Only one call at once!') }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

MISTRAL = """{{- bos_token }}
{%- set user_messages = messages | selectattr('role', 'equalto', 'user') | list %}
{%- for message in messages %}
    {%- if message['role'] == 'user' %}
        {%- if tools is not none and message == user_messages[-1] %}
            {{- '[AVAILABLE_TOOLS] [' }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != 'return' %}
                    {{- '"' + key + '": ' + (val | tojson) }}{{- ', ' if not loop.last }}
                {%- endfor %}
                {{- '}}' }}{{- ', ' if not loop.last else ']' }}
            {%- endfor %}
            {{- '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + message['content'] + '[/INST]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- '[TOOL_CALLS] [' }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.id | length != 9 %}{{- raise_exception('an id has 9 letters') }}{%- endif %}
            {{- tool_call.function | tojson | replace('}}', '}') }}{{- ', "id": "' + tool_call.id + '"}' }}
            {{- ', ' if not loop.last else ']' + eos_token }}
        {%- endfor %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] | trim + eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- '[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"""

TEMPLATES = {"hermes": HERMES, "functions": FUNCTIONS, "llama": LLAMA, "mistral": MISTRAL}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds numbers: <a> & 'b' \u00e9",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]
USER = Message("user", "What is 2 + 3?")
CALLED = Message("assistant", "", (ToolCall("abcdefgh1", "add", {"a": 2, "b": "\u00e9"}),))
RESULT = Message("tool", "5", call_id="abcdefgh1", name="add")
CONVERSATIONS = {
    "asked": [USER],
    "called": [USER, CALLED, RESULT],
    "over": [USER, CALLED, RESULT, Message("assistant", "It is 5."), USER],
}


@pytest.mark.parametrize("tools", [TOOLS, []], ids=["tools", "none"])
@pytest.mark.parametrize("said", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("family", TEMPLATES)
def test_the_text_is_that_of_transformers(tmp_path, family, said, tools):
    """Theirs gets what a person who writes for them would send: dictionaries with arguments that are objects."""
    folder = save(tmp_path, {"chat_template": TEMPLATES[family]})
    theirs = []
    for message in said:
        theirs.append({"role": message.role, "content": message.content})
        if message.calls:
            function = {"name": "add", "arguments": {"a": 2, "b": "\u00e9"}}
            theirs[-1]["tool_calls"] = [{"id": "abcdefgh1", "type": "function", "function": function}]
        if message.role == "tool":
            theirs[-1] |= {"tool_call_id": "abcdefgh1", "name": "add"}
    library = AutoTokenizer.from_pretrained(folder)
    wanted = library.apply_chat_template(theirs, tools=tools or None, tokenize=False, add_generation_prompt=True)
    ours = ChatTemplate.from_folder(folder)
    assert ours.render([message.to_dict() for message in said], tools=tools) == wanted
    assert ("add" in wanted) == (bool(tools) or len(said) > 1)
    assert ours.takes_tools
    assert ours.form is FORMS[family]


@pytest.mark.parametrize("kept", ["list", "files"])
def test_a_template_of_its_own_for_tools(tmp_path, kept):
    named = {"default": CHATML, "tool_use": HERMES}
    if kept == "list":
        entries = [{"name": name, "template": template} for name, template in named.items()]
        folder = save(tmp_path, {"chat_template": entries})
    else:
        folder = save(tmp_path, {"chat_template": "not this one"}, CHATML)
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text(HERMES)
    library, ours = AutoTokenizer.from_pretrained(folder), ChatTemplate.from_folder(folder)
    said = [USER.to_dict()]
    for tools in (None, TOOLS):
        wanted = library.apply_chat_template(said, tools=tools, tokenize=False, add_generation_prompt=True)
        assert ours.render(said, tools=tools or []) == wanted
        assert ("<tools>" in wanted) == bool(tools)
    assert ours.form is FORMS["hermes"]


def test_a_template_without_tools(tmp_path):
    ours = ChatTemplate.from_folder(save(tmp_path, {"chat_template": CHATML + "{# tools <tool_call> #}"}))
    assert not ours.takes_tools
    assert ours.form is None


def test_more_templates_need_a_default_too(tmp_path):
    folder = save(tmp_path, {})
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("x")
    with pytest.raises(UnsupportedError, match="no chat template named default among rag"):
        ChatTemplate.from_folder(folder)
