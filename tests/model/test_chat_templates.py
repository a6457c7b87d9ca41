"""Chat templates: the same text as transformers' apply_chat_template, for templates of several styles."""

import json

import pytest
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models
from transformers import AutoTokenizer

from coterie.checkpoint.chat import ChatTemplate
from coterie.core.errors import CheckpointError, RequestError, UnsupportedError

HEADERS = """{%- if tools is not none %}{{- raise_exception('no tools here') }}{% endif %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_text = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_text = '' %}
{%- endif %}
<|start|>system<|end|>

Today: {{ strftime_now('%Y') }}
{{ system_text }}<|eot|>
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}"""

CHATML = """{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
You answer.<|im_end|>
    {% endif %}
    {% if message.content | length == 0 %}
        {% continue %}
    {% endif %}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}
{% generation %}
{{ message.content }}<|im_end|>
{% endgeneration %}
{% else %}
{{ message.content }}<|im_end|>
{% endif %}
    {% if loop.index0 > 5 %}{% break %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""

INSTRUCT = """{{ bos_token }}{% set ns = namespace(system='', turn=0) %}
{%- for m in messages -%}
  {%- if m.role == 'system' -%}
    {%- set ns.system = m.content + '\\n\\n' -%}
  {%- elif m.role == 'user' -%}
    {%- if ns.turn % 2 -%}{{ raise_exception('Roles must alternate') }}{%- endif -%}
    {%- set ns.turn = ns.turn + 1 -%}
    [INST] {{ ns.system if loop.index0 < 2 }}{{ m['content'] }} [/INST]
  {%- else -%}
    {%- set ns.turn = ns.turn + 1 -%}
    {{ ' ' ~ m.content ~ eos_token }}
  {%- endif -%}
{%- endfor %}"""

AS_JSON = """{#- everything as JSON -#}
{%- macro show(m) -%}{{ m | tojson }}|{{ m | tojson(indent=2) }}|{{ m.items() | list | length }}{%- endmacro -%}
{% for m in messages %}{{ show(m) }}{{ '\\n' if not loop.last }}{% endfor %}
{{ dict(a=1, b=messages | length) | tojson(sort_keys=true) }} {{ unk_token }}{{ undefined_thing }}
{{- messages | map(attribute='role') | join(',') | upper }}{{ documents is none }}
"""

TEMPLATES = {"headers": HEADERS, "chatml": CHATML, "instruct": INSTRUCT, "json": AS_JSON}

USER = {"role": "user", "content": '  What is 47 + 85? <b>&"quoted"</b> \u00e9\u4e2d '}
ANSWER = {"role": "assistant", "content": "132\n"}
SYSTEM = {"role": "system", "content": " Be brief.\n"}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ANSWER, USER],
    "system and turns": [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
    "empty turn": [USER, {"role": "assistant", "content": ""}, USER],
}


SWITCHED = (
    CHATML
    + """{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}
{{ documents is none }}{{ add_generation_prompt }}{{ effort | default('none') }}{{ level }}"""
)


@pytest.mark.parametrize(
    "switches", [{}, {"enable_thinking": False}, {"enable_thinking": True, "effort": "low", "level": 3}]
)
def test_switches_reach_the_template(tmp_path, switches):
    folder = save(tmp_path, {"chat_template": SWITCHED})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    said = {"tokenize": False, "add_generation_prompt": True}
    wanted = tokenizer.apply_chat_template([USER], **said, **switches)
    assert ChatTemplate.from_folder(folder).render([USER], switches=switches) == wanted


def save(folder, config, template=None):
    library = LibraryTokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    library.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}, "unk_token": "<unk>"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokens, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=TEMPLATES)
def pair(request, tmp_path_factory):
    """Our template and their tokenizer, from one folder; the template is a string in tokenizer_config.json."""
    folder = save(tmp_path_factory.mktemp(request.param), {"chat_template": TEMPLATES[request.param]})
    return ChatTemplate.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_the_text_is_that_of_transformers(pair, messages, add_generation_prompt):
    ours, theirs = pair
    wanted = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    assert ours.render(messages, add_generation_prompt) == wanted


@pytest.mark.parametrize("said", ["It", "It is, <s> of it", "\n\nIt\n  is", "{"])
def test_a_begun_answer_ends_as_that_of_transformers(pair, said):
    ours, theirs = pair
    if "content" not in theirs.chat_template:
        pytest.skip("transformers wants the word in the template")
    messages = [USER, {"role": "assistant", "content": "It"}, USER, {"role": "assistant", "content": said}]
    wanted = theirs.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert ours.render_continued(messages) == wanted
    assert wanted.endswith(said.lstrip())
    assert ours.render_continued([*messages[:-1], {"role": "assistant", "content": said + " \n"}]) == wanted + " \n"


@pytest.mark.parametrize(
    ("template", "last", "fact"),
    [
        (CHATML, {"role": "user", "content": "x"}, "not an assistant's text without calls"),
        (CHATML, {"role": "assistant", "content": " \n"}, "not an assistant's text without calls"),
        (CHATML, {"role": "assistant", "content": "x", "tool_calls": [{}]}, "not an assistant's text without calls"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", {"role": "assistant", "content": "x"}, "does not write"),
        (
            "{% for m in messages %}{{ m.content.split('</t>')[-1] }}{% endfor %}",
            {"role": "assistant", "content": "hm</t>x"},
            "does not write",
        ),
        (
            "{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
            {"role": "assistant", "content": 'a"b'},
            "not write",
        ),
    ],
)
def test_what_no_answer_can_go_on_with(tmp_path, template, last, fact):
    with pytest.raises(RequestError, match=rf"\[messages\] the last one is to be continued.*{fact}"):
        ChatTemplate.from_folder(save(tmp_path, {"chat_template": template})).render_continued([USER, last])


@pytest.mark.parametrize("style", ["file", "list", "file wins"])
def test_where_templates_are_kept(tmp_path, style):
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
    config = {"file": {}, "list": {"chat_template": named}, "file wins": {"chat_template": "{{ 'other' }}"}}[style]
    folder = save(tmp_path, config, None if style == "list" else INSTRUCT)
    wanted = AutoTokenizer.from_pretrained(folder).apply_chat_template([USER], tokenize=False)
    assert ChatTemplate.from_folder(folder).render([USER], False) == wanted


def test_a_folder_without_a_template(tmp_path):
    assert ChatTemplate.from_folder(save(tmp_path, {})) is None


def test_what_a_template_refuses_is_a_request_error(tmp_path):
    template = ChatTemplate.from_folder(save(tmp_path, {"chat_template": INSTRUCT}))
    with pytest.raises(RequestError, match="Roles must alternate"):
        template.render([USER, USER])


@pytest.mark.parametrize(
    "escape",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.os }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(__class__=1) }}",
        "{{ 1 // 0 }}",
        "{{ messages | nothing.foo }}",
    ],
)
def test_the_sandbox_holds(tmp_path, escape):
    with pytest.raises((RequestError, CheckpointError)):
        ChatTemplate.from_folder(save(tmp_path, {"chat_template": escape})).render([USER])


def test_damaged_templates(tmp_path):
    with pytest.raises(CheckpointError, match="wrong at line 2"):
        ChatTemplate.from_folder(save(tmp_path, {"chat_template": "a\n{% for %}"}))
    with pytest.raises(CheckpointError, match="neither a text nor a list"):
        ChatTemplate.from_folder(save(tmp_path, {"chat_template": {"x": 1}}))
    with pytest.raises(UnsupportedError, match="no chat template named default among rag"):
        ChatTemplate.from_folder(save(tmp_path, {"chat_template": [{"name": "rag", "template": "x"}]}))
