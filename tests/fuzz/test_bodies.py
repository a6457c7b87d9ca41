"""Damaged bodies of every endpoint, over HTTP: each has an answer or an error of that API, and the server goes on.

Knows nothing about what fields mean. The seeds are fixed, so that a case which fails can be made again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fuzz import mutate
from tests.model.test_tool_templates import HERMES
from tests.system.serving import served
from tests.system.tiny import write_expert

from coterie.api import Coterie

CASES = 40
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
FUNCTION = {"name": "add", "description": "adds", "parameters": SCHEMA}
CALL = {"id": "call12345", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "presence_penalty": 0.5, "n": 2}
CHAT = {
    "model": "ada",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "What is 2 + 3?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call12345", "content": "5"},
        {"role": "user", "content": "and?"},
    ],
    "max_tokens": 3,
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": "auto",
    "stop": ["x"],
    "logprobs": True,
    "top_logprobs": 2,
    "logit_bias": {"5": 1.5},
    "stream_options": None,
    "chat_template_kwargs": {"enable_thinking": False},
    **SAMPLING,
}
FORM = {"type": "json_schema", "json_schema": {"name": "f", "schema": SCHEMA, "strict": True}}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        CHAT,
        {"model": "ada", "messages": CHAT["messages"][:2], "response_format": FORM},
        {"model": "ada", "messages": CHAT["messages"][:2], "structured_outputs": {"choice": ["a", "ab"]}},
    ],
    "/v1/completions": [
        {"model": "ada", "prompt": ["a b", "c"], "max_tokens": 3, "logprobs": 2, "echo": True, **SAMPLING},
        {"model": "ada", "prompt": [1, 2, 3], "max_tokens": 2, "stop": "x", "suffix": None},
        {"model": "ada", "prompt": "x", "max_tokens": 3, "guided_regex": "[ab]{1,2}", "grammar": None},
    ],
    "/v1/responses": [
        {
            "model": "ada",
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "x"}]},
                {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "5"},
                {"role": "user", "content": "and?"},
            ],
            "max_output_tokens": 3,
            "tools": [{"type": "function", **FUNCTION, "strict": False}],
            "text": {"format": {"type": "text"}},
            "reasoning": {"effort": "low", "summary": "auto"},
            "store": False,
        }
    ],
    "/v1/messages": [
        {
            "model": "ada",
            "max_tokens": 3,
            "system": [{"type": "text", "text": "Be brief."}],
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "add", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "5"}]},
            ],
            "tools": [{"name": "add", "description": "adds", "input_schema": SCHEMA}],
            "stop_sequences": ["x"],
            "thinking": {"type": "disabled"},
        }
    ],
    "/v1/messages/count_tokens": [{"model": "ada", "messages": [{"role": "user", "content": "x"}]}],
    "/tokenize": [
        {"model": "ada", "prompt": "a b"},
        {"model": "ada", "messages": CHAT["messages"][:2], "tools": CHAT["tools"]},
    ],
    "/detokenize": [{"model": "ada", "tokens": [65, 66, 256]}],
}
REFUSALS = (400, 404, 409, 413, 429, 503)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("experts")
    for seed, name in enumerate(("ada", "bob")):
        folder: Path = write_expert(root / name, seed, max_position_embeddings=1024)
        (folder / "chat_template.jinja").write_text(HERMES)
    with served(Coterie.open(root)) as found:
        yield found


def said(answer: httpx.Response) -> str:
    """The message of an error, and that it is one."""
    error = answer.json()["error"]
    assert isinstance(error, dict)
    return str(error["message"])


@pytest.mark.parametrize("path", BODIES)
def test_damaged_bodies(url: str, path: str) -> None:
    statuses = []
    with httpx.Client(timeout=20) as client:
        for seed in range(CASES):
            rng = random.Random(seed)
            sound = rng.choice(BODIES[path])
            streams = {"stream": True} if path.startswith("/v1/") and rng.random() < 0.3 else {}
            answer = client.post(url + path, content=mutate.json_text(rng, {**sound, **streams}))
            statuses.append(answer.status_code)
            assert answer.status_code in (200, *REFUSALS), (path, seed, answer.text[:300])
            if answer.status_code != 200:
                assert said(answer).isprintable(), (path, seed)
                assert len(answer.content) < 5000, (path, seed)
            elif answer.headers["content-type"].startswith("text/event-stream"):
                assert '"error": {' not in answer.text, (path, seed, answer.text[-300:])
            else:
                json.loads(answer.text)
        assert client.get(f"{url}/health").status_code == 200
    assert {200, 400} <= set(statuses)


@pytest.mark.parametrize("act", ["load", "unload", "pin", "unpin"])
def test_odd_names_of_experts(url: str, act: str) -> None:
    names = ("ada", "x" * 5000, "..", "%2e%2e%2fada", "%00", "%0a", "%ff", "ada%2fload", "~", "%F0%9F%98%80")
    with httpx.Client(timeout=20) as client:
        for name in names:
            answer = client.post(f"{url}/v1/models/{name}/{act}", content=b"{")
            assert answer.status_code in (200, *REFUSALS, 405), (name, answer.text[:300])
            if answer.status_code != 200:
                assert said(answer).isprintable()
        assert client.get(f"{url}/health").status_code == 200


def test_an_expert_whose_tokenizer_panics_ends_no_answer_of_others(tmp_path: Path) -> None:
    """Neither where a text is cut into tokens nor, in the middle of a step, where an answer is spelled."""
    broken = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    changes = {"cuts": "pre_tokenizer", "spells": "decoder", "sound": ""}
    for seed, (name, part) in enumerate(changes.items()):
        file = write_expert(tmp_path / name, seed) / "tokenizer.json"
        made = json.loads(file.read_text())
        strip = {"type": "Strip", "content": "a", "start": 0, "stop": 300}
        if part == "pre_tokenizer":
            made[part] = {"type": "Sequence", "pretokenizers": [broken, made[part]]}
        elif part:
            made[part] = {"type": "Sequence", "decoders": [made[part], strip]}
        file.write_text(json.dumps(made))
    with served(Coterie.open(tmp_path)) as found, httpx.Client(timeout=20) as client:

        def ask(model: str, text: str) -> httpx.Response:
            body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 4}
            return client.post(f"{found}/v1/chat/completions", json=body)

        refused = ask("cuts", "a" * 40 + "b")
        assert (refused.status_code, "fails on a text of" in said(refused)) == (400, True)
        assert ask("spells", "b").status_code == 200
        assert ask("cuts", "b").status_code == 200
        assert ask("sound", "b").status_code == 200
