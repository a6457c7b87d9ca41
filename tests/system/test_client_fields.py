"""Fields that clients of other services and servers send by default, and what of them counts here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.model.test_tool_templates import HERMES
from tests.system.scripted import write_scripted
from tests.system.serving import served

from coterie.api import Coterie
from coterie.checkpoint.constraint import Constraint
from coterie.core.errors import RequestError
from coterie.server import fields
from coterie.server.inputs import parse_response
from coterie.server.openai import SUPPORTED, parse_chat

BASE = {"model": "one", "messages": [{"role": "user", "content": "x"}], "seed": 1}
# As far as it is known from their code, documents and issues; each is beside BASE, and asks for what BASE does.
DEFAULTS = {
    "GuideLLM": {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    "Copilot": {"prompt_cache_options": {"mode": "implicit"}, "stream_options": {"include_usage": True}},
    "for Ollama": {"keep_alive": "5m", "num_ctx": 4096},
    "for LM Studio": {"max_tokens": -1, "ttl": 300, "repeat_penalty": None},
    "for vLLM": {"skip_special_tokens": True, "spaces_between_special_tokens": True, "min_tokens": 0, "bad_words": []},
    "for OpenRouter": {"usage": {"include": True}, "provider": {"sort": "price"}, "transforms": [], "reasoning": {}},
    "LiteLLM": {"metadata": {"a": "b"}, "litellm_session_id": "x", "user": "y"},
    "for llama-server": {
        **{
            "cache_prompt": True,
            "id_slot": -1,
            "n_predict": -1,
            "mirostat": 0,
            "mirostat_tau": 5.0,
            "mirostat_eta": 0.1,
        },
        **{"dynatemp_range": 0, "dynatemp_exponent": 1, "typical_p": 1, "xtc_probability": 0.0, "xtc_threshold": 0.1},
        **{
            "dry_multiplier": 0,
            "dry_base": 1.75,
            "dry_allowed_length": 2,
            "dry_penalty_last_n": -1,
            "repeat_last_n": 64,
        },
        **{"reasoning_format": "auto", "timings_per_token": True, "return_progress": True, "min_keep": 0, "n_probs": 0},
    },
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_clients_send_by_default_changes_nothing(name: str) -> None:
    assert parse_chat({**BASE, **DEFAULTS[name]}).query == parse_chat(BASE).query


def test_what_codex_sends_beside_its_items() -> None:
    body = {"model": "one", "input": "x"}
    more = {"client_metadata": {}, "access_programs": [], "prompt_cache_key": "k", "store": False}
    seed = parse_response({**body, "seed": 1}).query
    assert parse_response({**body, "seed": 1, **more}).query == seed


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"repeat_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"repeat_penalty": 1.5, "repetition_penalty": 1.5, "repeat_last_n": -1}, {"repetition_penalty": 1.5}),
        ({"repeat_penalty": 1, "repeat_last_n": 64}, {"repetition_penalty": 1}),
        ({"repeat_penalty": 1.5, "repeat_last_n": 64.0}, {"repetition_penalty": 1.5}),
        ({"repeat_penalty": 1.5, "presence_penalty": 1, "repeat_last_n": 0},
         {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}),
        ({"n_predict": 7}, {"max_tokens": 7}),
        ({"structured_outputs": {"json": {"type": "array"}, "disable_fallback": True}},
         {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}}),
        ({"structured_outputs": {"json": '{"type": "array"}', "regex": None}},
         {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}}),
        ({"structured_outputs": {"json_object": True}}, {"response_format": {"type": "json_object"}}),
        ({"structured_outputs": {"json_object": False}}, {}),
        *[({"response_format": {"type": kind, "schema": {"type": "array"}}},
           {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}})
          for kind in ("json_object", "json_schema")],
        ({"response_format": {"type": "json_object", "schema": {}}}, {"response_format": {"type": "json_object"}}),
        ({"guided_json": {"type": "array"}, "guided_decoding_backend": "xgrammar"},
         {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}}),
        ({"json_schema": {"type": "array"}, "grammar": ""},
         {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "array"}}}}),
        ({"num_predict": 7, "max_tokens": None}, {"max_tokens": 7}),
        ({"max_completion_tokens": -1}, {}),
        ({"max_completion_tokens": 7, "num_predict": 7}, {"max_tokens": 7}),
        ({"reasoning": {"effort": "low"}}, {"reasoning_effort": "low"}),
        ({"reasoning": {"enabled": False}}, {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
        ({"reasoning": {"enabled": True, "max_tokens": 9, "exclude": False}, "reasoning_effort": "none"},
         {"reasoning_effort": "none"}),
    ],
)  # fmt: skip
def test_two_words_for_one_thing(theirs: dict, ours: dict) -> None:
    assert parse_chat({**BASE, **theirs}).query == parse_chat({**BASE, **ours}).query


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"repeat_penalty": 1.5, "repetition_penalty": 1.2},
            r"\[repeat_penalty\] is 1.5, while repetition",
        ),
        ({"n_predict": 1, "max_tokens": 2}, r"\[n_predict\] is 1, while max_tokens is 2; give one of them"),
        ({"max_completion_tokens": 3, "max_tokens": 5}, r"\[max_completion_tokens\] is 3, while max_tokens is 5; give"),
        ({"max_completion_tokens": 3, "n_predict": 5}, r"\[max_completion_tokens\] is 3, while max_tokens is 5; give"),
        ({"repeat_penalty": 1.5, "repeat_last_n": 32}, r"\[repeat_last_n\] is 32, but a repetition penalty is of all"),
        ({"max_tokens": -2}, r"\[max_tokens\] is -2"),
        ({"n_predict": "many"}, r"\[max_tokens\] is 'many'"),
        ({"temprature": 1}, r"\[temprature\] is not a known field; did you mean temperature"),
        ({"mirostat": 2}, r"\[mirostat\] is 2, which Coterie does not implement; leave it out"),
        ({"typical_p": 0.9}, r"\[typical_p\] is 0.9"),
        ({"min_tokens": 5}, r"\[min_tokens\] is 5"),
        ({"transforms": ["middle-out"]}, r"\[transforms\] is"),
        ({"stop_token_ids": [3]}, r"\[stop_token_ids\] is"),
        ({"reasoning": {"exclude": True}}, r"\[reasoning.exclude\] is True"),
        ({"reasoning": {"effort": "much"}}, r"\[reasoning.effort\] is 'much'"),
        ({"reasoning": "high"}, r"\[reasoning\] is 'high'; give an object"),
        ({"stream_options": {"continuous_usage_stats": "x"}}, r"\[stream_options.continuous_usage_stats\] is 'x'"),
        ({"structured_outputs": {"choice": []}}, r"\[structured_outputs.choice\] is \[\], which has no texts"),
        ({"structured_outputs": {"choice": ["a", 3]}}, r"choice\] is \['a', 3\]; give a list of texts"),
        ({"structured_outputs": {"choice": ["a", ""]}}, r"\[structured_outputs.choice\] has an empty text"),
        ({"structured_outputs": {"choice": "ab"}}, r"\[structured_outputs.choice\] is 'ab'; give a list of texts"),
        ({"structured_outputs": {"regex": ""}}, r"\[structured_outputs.regex\] is empty"),
        ({"structured_outputs": {"regex": False}}, r"\[structured_outputs.regex\] is False; give a text"),
        ({"structured_outputs": {"regex": "a", "grammar": "b"}}, r"\[structured_outputs.regex\] and grammar were both"),
        ({"structured_outputs": {"structural_tag": "a"}}, r"structural_tag\] is 'a', which Coterie does not implement"),
        ({"guided_choice": []}, r"\[guided_choice\] is \[\], which has no texts"),
        ({"guided_regex": "x" * 65_537}, r"\[guided_regex\] has 65537 characters; give at most 65536"),
        ({"guided_regex": "\ud800"}, r"\[guided_regex\] character 0 is U\+D800"),
        ({"regex": "a", "ebnf": "b"}, r"\[ebnf\] and regex were both given; give one of them"),
        ({"guided_json": "{"}, r"\[guided_json\] is not JSON"),
        ({"structured_outputs": {"json": 3}}, r"\[structured_outputs.json\] is 3; give a schema"),
        ({"structured_outputs": {"json": "{"}}, r"\[structured_outputs.json\] is not JSON"),
        ({"structured_outputs": {"json": {}, "json_object": True}}, r"json\] and json_object were both given"),
        ({"structured_outputs": {"json": {}}, "response_format": {"type": "text"}}, "response_format were both given"),
        ({"structured_outputs": "json"}, r"\[structured_outputs\] is 'json'; give an object"),
    ],
)
def test_what_would_change_an_answer_is_refused(change: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        parse_chat({**BASE, **change})


@pytest.mark.parametrize(
    ("body", "form"),
    [
        ({"structured_outputs": {"regex": "a+"}}, Constraint.regex("a+", "structured_outputs.regex")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint.choice(["a", "b"], "structured_outputs.choice")),
        ({"structured_outputs": {"grammar": "start: A"}}, Constraint.grammar("start: A", "structured_outputs.grammar")),
        ({"guided_regex": "a+"}, Constraint.regex("a+", "guided_regex")),
        ({"guided_choice": ["a", "b"]}, Constraint.choice(["a", "b"], "guided_choice")),
        ({"guided_grammar": "start: A"}, Constraint.grammar("start: A", "guided_grammar")),
        ({"regex": "a+", "json_schema": None}, Constraint.regex("a+", "regex")),
        ({"ebnf": "root ::= a"}, Constraint.grammar("root ::= a", "ebnf")),
        ({"grammar": "root ::= a"}, Constraint.grammar("root ::= a", "grammar")),
    ],
)
def test_forms_of_other_servers(body: dict, form: Constraint) -> None:
    assert parse_chat({**BASE, **body}).query.form == form


def test_a_field_is_in_one_list() -> None:
    """Nothing that counts here is passed over, and nothing is both."""
    assert not fields.IGNORED & (fields.NEUTRAL.keys() | fields.SYNONYMS.keys())
    assert not (fields.IGNORED - {"priority", "service_tier", "metadata", "store"}) & set(SUPPORTED)
    assert not fields.SYNONYMS.keys() & set(SUPPORTED)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root: Path = tmp_path_factory.mktemp("said")
    write_scripted(root / "one", ["It", " is", " four."], HERMES)
    with served(Coterie.open(root)) as found:
        yield found


def test_text_completions_take_the_same(url: str) -> None:
    body = {"model": "one", "prompt": "x\n"}

    def complete(**more: object) -> httpx.Response:
        return httpx.post(f"{url}/v1/completions", json={**body, **more})

    for more in ({}, *DEFAULTS.values(), {"n_predict": 16}, {"echo": False, "best_of": 1}):
        given = {key: value for key, value in more.items() if key not in ("reasoning", "stream", "stream_options")}
        assert complete(**given).json()["choices"][0]["text"] == "It is four."
    assert complete(num_predict=2).json()["choices"][0]["text"] == "It is"
    for more, words in (({"max_tokens": -2}, "-2"), ({"mirostat": 1}, "mirostat"), ({"keepalive": 1}, "known field")):
        got = complete(**more)
        assert (got.status_code, words in got.text) == (400, True), got.text
