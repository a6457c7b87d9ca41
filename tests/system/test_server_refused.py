"""What the server refuses, and how it says so: bad values, bad bodies, unknown paths."""

from __future__ import annotations

import httpx
import openai
import pytest
from tests.system.serving import ask


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"model": "elsewhere"}, 404, "elsewhere"),
        ({"model": "fuor"}, 404, "four lets the router choose"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 3}, 400, "top_p"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"n": 129}, 400, "ask for 1 to 128"),
        ({"extra_body": {"temprature": 1}}, 400, "temperature"),
        ({"logit_bias": {"259": 1}}, 400, "token 259 but the vocabulary has 259"),
        ({"logit_bias": {"1": 101}}, 400, "-100 to 100"),
        ({"logit_bias": {"one": 1}}, 400, "no token id"),
        ({"logit_bias": {"1": "x"}}, 400, "give a number"),
        ({"presence_penalty": 3}, 400, "presence_penalty is 3"),
        ({"frequency_penalty": "x"}, 400, "frequency_penalty"),
        ({"extra_body": {"repetition_penalty": 0}}, 400, "repetition_penalty is 0"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "0 to 20"),
        ({"top_logprobs": 2}, 400, "set logprobs to true"),
        ({"logprobs": 3}, 400, "true or false"),
        ({"stream_options": {"include_usage": 1}}, 400, "[stream_options.include_usage] is 1; give true or false"),
        ({"stop": [3]}, 400, "stop"),
        ({"extra_body": {"ignore_eos": 1}}, 400, "true or false"),
        ({"extra_body": {"ignore_eos": True}, "response_format": {"type": "json_object"}}, 400, "[ignore_eos] is set"),
    ],
)
def test_bad_values_get_their_status_and_a_sentence(
    client: openai.OpenAI, change: dict, status: int, word: str
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        ask(client, "for ada", **change)
    assert caught.value.status_code == status
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"not json",
        b"[]",
        b"{}",
        b'{"model": "four"}',
        b'{"model": "four", "messages": []}',
        b'{"model": "four", "messages": [{"role": "user", "content": ""}]}',
        b'{"model": "ada", "messages": [{"role": "user", "content": " "}]}',
        b'{"model": "ada", "messages": [{"role": "user", "content": "a\\ud800"}]}',
        b'{"model": "four", "stop": 5, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "four", "stop": {"a": 1}, "messages": [{"role": "user", "content": "x"}]}',
        b'{"model": "four", "temperature": 1' + b"0" * 400 + b', "messages": [{"role": "user", "content": "x"}]}',
        b"[" * 100000,
        b'{"model": "four", "messages": [{"role": "assistant", "content": "x"}]}',
        b'{"model": "four", "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}',
        b'{"model": "four", "messages": [{"role": "user", "content": "' + b"x" * 300 + b'"}]}',
    ],
)
def test_bad_bodies_get_400_and_an_error_object(url: str, body: bytes) -> None:
    got = httpx.post(f"{url}/v1/chat/completions", content=body)
    assert got.status_code == 400, got.text
    error = got.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("[")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "line 1, column 1: Expecting value, but it is empty"),
        (b'{"model": "four"', "line 1, column 17: Expecting ',' delimiter, but it ends"),
        (
            b'{"a": 1,\n  b: 2}',
            "line 2, column 3: Expecting property name enclosed in double quotes, but there is 'b: 2}'",
        ),
        (b'{"a": "\xff"}', "byte 7 is 0xff, which is no UTF-8"),
        (b"[" * 100000, "nested too deeply"),
        (b"1" * 5000, "is not JSON: Exceeds the limit"),
        (b'{"a": [1, -Infinity]}', "is not JSON: -Infinity is no number"),
        (b'{"temperature": 1e400}', "is not JSON: 1e400 is more than a double holds"),
    ],
)
def test_a_body_that_is_no_json_is_told_where_it_breaks(url: str, body: bytes, words: str) -> None:
    got = httpx.post(f"{url}/v1/completions", content=body)
    assert got.status_code == 400
    assert words in got.json()["error"]["message"]
    assert got.json()["error"]["param"] == "body"


@pytest.mark.parametrize(
    ("body", "where", "words"),
    [
        (rb'{"prompt": ["a", "b\ud800"]}', "prompt[1]", "character 1 is U+D800, which is no character by itself"),
        (rb'{"logit_bias": {"\uDC00": 1}}', "logit_bias", "character 0 is U+DC00"),
        (b'{"a": [' + b'{"b": ' * 100 + b"1" + b"}" * 100 + b"]}", "a[0]" + ".b" * 38, "beyond 100 levels; nest less"),
        (b'{"prompt": 1, "model": "' + b"x" * 9999 + b'"}', "prompt", "is missing, empty or no text"),
        (b'{"model": "ada", "max_tokens": ' + b"9" * 4000 + b"}", "max_tokens", "9...9"),
        (
            b'{"model": "ada", "stop": "' + b"x" * 9999 + b'", "top_p": [[[[' + b"[" * 50 + b"]" * 54 + b"}",
            "top_p",
            "...",
        ),
    ],
)
def test_what_no_answer_could_repeat_is_refused_by_its_place(url: str, body: bytes, where: str, words: str) -> None:
    """In a few words, however long it is."""
    got = httpx.post(f"{url}/v1/completions", content=body)
    assert got.status_code == 400, got.text
    error = got.json()["error"]
    assert words in error["message"]
    assert error["param"] == where
    assert len(error["message"]) < 300


def test_unknown_paths_and_methods_have_error_objects(url: str) -> None:
    for path, near in (
        ("/nothing", "POST /v1/chat/completions or GET /v1/models"),
        ("/chat/completions", "POST /v1/chat/completions or "),
        ("/v1/embedding", "POST /v1/embeddings"),
        ("/api/embedding", "POST /api/embeddings"),
    ):
        got = httpx.get(f"{url}{path}")
        error = got.json()["error"]
        message = error if path.startswith("/api") else error["message"]
        assert message.startswith(f"[GET {path}] Not Found; did you mean {near}")
        assert (got.status_code, len(message) < 200) == (404, True)
    assert len(httpx.get(f"{url}/{'x' * 9000}").json()["error"]["message"]) < 1200
    refused = httpx.get(f"{url}/v1/chat/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert refused.json()["error"]["message"].endswith("Method Not Allowed; it takes POST")
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "composition": "four"}
