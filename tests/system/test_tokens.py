"""POST /tokenize and /detokenize, compared with the tokenizers themselves and with what an answer counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import tokenizers
from starlette.responses import JSONResponse
from tests.model.test_tool_templates import HERMES, TOOLS
from tests.system.scripted import write_scripted
from tests.system.serving import served

from coterie.api import Coterie
from coterie.checkpoint.chat import ChatTemplate
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.server import tokens
from coterie.server.body import written
from coterie.server.tokens import RUN

SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie spät? \u00e9"}]


@pytest.fixture(scope="module")
def coterie(tmp_path_factory: pytest.TempPathFactory) -> Coterie:
    root = tmp_path_factory.mktemp("speakers")
    for name in ("one", "two"):
        write_scripted(root / name, ["hello", " there"], HERMES)
    return Coterie.open(root)


@pytest.fixture(scope="module")
def url(coterie: Coterie) -> Iterator[str]:
    with served(coterie) as found:
        yield found


def post(url: str, path: str, body: dict) -> dict:
    got = httpx.post(f"{url}{path}", json=body)
    assert got.status_code == 200, got.text
    return got.json()


def test_a_prompts_tokens_are_the_tokenizers(url: str, coterie: Coterie) -> None:
    text = "hello there, \u00e9"
    wanted = Tokenizer.from_folder(coterie.models["one"].path).encode(text)
    got = post(url, "/tokenize", {"model": "one", "prompt": text})
    assert got == {"count": len(wanted), "max_model_len": 4096, "tokens": wanted}
    assert 259 in wanted
    assert post(url, "/detokenize", {"model": "one", "tokens": wanted}) == {"prompt": text}
    assert post(url, "/detokenize", {"model": "one", "tokens": []}) == {"prompt": ""}


def test_a_prompt_is_seen_as_its_template_wrote_it(url: str, coterie: Coterie) -> None:
    """Special tokens too, as vLLM's and llama-server's endpoints have them, unless they are not wanted."""
    seen = [*b"ab", 256, 257]
    assert coterie.texts["one"].tokenizer.special_ids >= {256, 257}
    shown = "".join(["ab", *[coterie.texts["one"].tokenizer.spelled([token]) for token in (256, 257)]])
    assert post(url, "/detokenize", {"model": "one", "tokens": seen}) == {"prompt": shown}
    assert shown.startswith("ab<|end|>")
    for skips, wanted in ((True, "ab"), (False, shown), (None, shown)):
        body = {"model": "one", "tokens": seen, "skip_special_tokens": skips}
        assert post(url, "/detokenize", body) == {"prompt": wanted}
    tokens = post(url, "/tokenize", {"model": "one", "messages": SAID})["tokens"]
    text = ChatTemplate.from_folder(coterie.models["one"].path).render(SAID)
    assert post(url, "/detokenize", {"model": "one", "tokens": tokens}) == {"prompt": text}


@pytest.mark.parametrize("tools", [None, TOOLS])
def test_messages_have_the_tokens_that_an_answer_counts(url: str, coterie: Coterie, tools: list | None) -> None:
    folder = coterie.models["one"].path
    text = ChatTemplate.from_folder(folder).render(SAID, tools=tools or ())
    got = post(url, "/tokenize", {"model": "one", "messages": SAID, "tools": tools})
    assert got["tokens"] == Tokenizer.from_folder(folder).encode(text, add_special_tokens=False)
    answer = post(url, "/v1/chat/completions", {"model": "one", "messages": SAID, "tools": tools})
    assert answer["usage"]["prompt_tokens"] == got["count"]


def test_a_composition_speaks_for_experts_with_one_tokenizer(url: str, coterie: Coterie) -> None:
    name = coterie.composition.name
    assert post(url, "/tokenize", {"model": name, "prompt": "abc"})["tokens"] == [97, 98, 99]
    assert post(url, "/detokenize", {"model": name, "tokens": [97]}) == {"prompt": "a"}
    whole = coterie.texts["two"]
    coterie.texts["two"] = replace(whole, vocab_size=200)
    try:
        got = httpx.post(f"{url}/tokenize", json={"model": name, "prompt": "abc"})
        assert (got.status_code, "different tokenizers" in got.text) == (400, True)
    finally:
        coterie.texts["two"] = whole


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/tokenize", {"model": "one"}, 400, "[prompt] is missing"),
        ("/tokenize", {"prompt": "a"}, 400, "[model] is missing"),
        ("/tokenize", {"model": "eve", "prompt": "a"}, 404, "eve"),
        ("/tokenize", {"model": "one", "prompt": 3}, 400, "[prompt] is 3"),
        ("/tokenize", {"model": "one", "prompt": ""}, 400, "no tokens"),
        ("/tokenize", {"model": "one", "prompt": "a", "tools": TOOLS}, 400, "[tools]"),
        ("/tokenize", {"model": "one", "prompt": "a", "add_special_tokens": False}, 400, "add_special_tokens"),
        ("/tokenize", {"model": "one", "prompt": "a", "messages": SAID}, 400, "[prompt] and messages"),
        ("/tokenize", {"model": "one", "messages": []}, 400, "[messages]"),
        ("/tokenize", {"model": "one", "messages": SAID, "add_generation_prompt": False}, 400, "generation"),
        ("/detokenize", {"model": "one"}, 400, "[tokens]"),
        ("/detokenize", {"model": "one", "tokens": [1.5]}, 400, "[tokens]"),
        ("/detokenize", {"model": "one", "tokens": [5, 261]}, 400, "[tokens] token 1 is 261"),
        ("/detokenize", {"model": "eve", "tokens": [5]}, 404, "eve"),
        ("/detokenize", {"model": "one", "tokens": [5], "skip_special_tokens": 3}, 400, "[skip_special_tokens] is 3"),
    ],
)
def test_what_is_refused_is_named(url: str, path: str, body: dict, status: int, words: str) -> None:
    got = httpx.post(f"{url}{path}", json=body)
    assert (got.status_code, words in got.json()["error"]["message"]) == (status, True), got.text


def test_messages_want_an_experts_name(url: str, coterie: Coterie) -> None:
    got = httpx.post(f"{url}/tokenize", json={"model": coterie.composition.name, "messages": SAID})
    assert got.status_code == 400
    assert "has 2 experts, each with a chat template of its own; name the expert" in got.json()["error"]["message"]


def test_one_expert_alone_goes_by_its_compositions_name_too(tmp_path: Path) -> None:
    write_scripted(tmp_path / "alone" / "one", ["hello"], HERMES)
    with served(Coterie.open(tmp_path / "alone")) as url:
        named, whole = (post(url, "/tokenize", {"model": name, "messages": SAID}) for name in ("one", "alone"))
        assert named == whole


def test_a_prompt_gets_its_tokenizers_special_tokens_and_a_conversation_its_templates(tmp_path: Path) -> None:
    folder = write_scripted(tmp_path / "alone" / "one", ["hello"], HERMES)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.post_processor = tokenizers.processors.TemplateProcessing("<|user|> $A", special_tokens=[("<|user|>", 257)])
    library.save(str(folder / "tokenizer.json"))
    with served(Coterie.open(tmp_path / "alone")) as url:
        assert post(url, "/tokenize", {"model": "one", "prompt": "ab"})["tokens"] == [257, 97, 98]
        assert post(url, "/tokenize", {"model": "one", "messages": SAID})["tokens"][0] != 257


def test_no_more_is_cut_into_tokens_than_may_be_a_prompt(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And more than that only where a text may have fewer: 16 letters a token are looked at."""
    monkeypatch.setattr(tokens, "LISTED", 5000)
    said = "it is " * 20_000
    whole = post(url, "/tokenize", {"model": "one", "prompt": said[: 16 * 5000]})
    assert whole["count"] == 16 * 5000
    for path, body, param in (
        ("/tokenize", {"prompt": said}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": said}]}, "prompt"),
        ("/v1/responses/input_tokens", {"input": said}, "input"),
        ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": said}]}, "messages"),
    ):
        got = httpx.post(f"{url}{path}", json={"model": "one", **body})
        assert (got.status_code, got.json()["error"].get("param", param)) == (400, param), got.text
        assert f"[{param}] has more than 5000 tokens" in got.json()["error"]["message"]


@pytest.mark.parametrize("count", [0, 1, RUN - 1, RUN, RUN + 1, 3 * RUN + 7])
def test_tokens_are_written_some_at_a_time_as_the_library_writes_them(count: int) -> None:
    found = {"count": count, "max_model_len": 128, "tokens": [7 * token % 999 for token in range(count)]}
    assert written(found, RUN) == JSONResponse(found).body


@pytest.mark.parametrize("count", range(6))
@pytest.mark.parametrize("within", [0, 1, 2])
def test_lists_in_lists_are_written_as_the_library_writes_them(count: int, within: int) -> None:
    items = [{'a \u2028"': [[place, {}], [], list(range(place))]} for place in range(count)]
    found = {"id": "\u00e9", "choices": items, "none": None, "empty": {}}
    assert written(found, 2, within) == JSONResponse(found).body
    assert written({**found, "choices": iter(items)}, 2, within) == JSONResponse(found).body
