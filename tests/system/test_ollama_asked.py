"""What requests of Ollama's API say, field by field, and what is told of models: by the queries and rows themselves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.system.serving import served
from tests.system.tiny import write_expert, write_reranker

from coterie.api import Coterie, Query
from coterie.checkpoint.calls import Call, Found
from coterie.composition.composition import Composition
from coterie.composition.expert import Expert
from coterie.core.errors import RequestError
from coterie.core.sampling import PartialSampling
from coterie.server.ollama.answers import Calls, OllamaAnswers
from coterie.server.ollama.asked import conversation, parse_chat, parse_generate
from coterie.server.ollama.models import all_models, capabilities, loaded
from coterie.server.ollama.names import expert_of, keep_alive, own_name, timestamp

ONE = Composition("lone", (Expert("ada", config="llama-2-7b"),), None, Path())
TWO = Composition("both", (Expert("ada", config="llama-2-7b"), Expert("bob:latest", config="llama-2-7b")), None, Path())
ASKED = [{"role": "user", "content": "hi"}]
ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}}
TIMES = {"old": 1_000_000_000, "new": 1_500_000_000, "scores": 1_200_000_000}  # when their files were written


def chat(**body: object) -> Query:
    found = parse_chat({"model": "ada", "messages": ASKED, **body}, ONE).query
    assert found is not None
    return found


def text(**body: object) -> Query:
    found = parse_generate({"model": "ada", **body}, ONE).query
    assert found is not None
    return found


def test_a_text_with_a_suffix_or_raw_is_put_into_no_template():
    for body, raw, suffix in (
        ({"prompt": "a"}, False, ""),
        ({"prompt": "a", "raw": True}, True, ""),
        ({"prompt": "a", "suffix": "b"}, True, "b"),
        ({"suffix": "b"}, True, "b"),
    ):
        found = text(**body)
        assert (found.raw, found.suffix) == (raw, suffix), body
        assert found.messages[-1].content == body.get("prompt", "")
    said = text(prompt="a", system="Be short.")
    assert [(one.role, one.content) for one in said.messages] == [("system", "Be short."), ("user", "a")]
    assert parse_generate({"model": "ada", "system": "Be short."}, ONE).query is None


def test_numbers_that_mean_none_set_nothing():
    def sampling(**options: object) -> PartialSampling:
        found = chat(options=options).sampling
        assert isinstance(found, PartialSampling)
        return found

    assert sampling(seed=-1).seed != sampling(seed=-1).seed  # any one, of 53 bits
    assert sampling(seed=7).seed == 7
    assert [chat(options={"num_predict": count}).max_tokens for count in (-2, -1, 1, 9)] == [None, None, 1, 9]
    assert chat().max_tokens is None
    assert chat(format="").form == chat(format=None).form == chat().form == ""


def test_thinking_is_said_by_both_names_that_templates_have():
    for wish in (True, False):
        assert chat(think=wish).switches == {"enable_thinking": wish, "thinking": wish}


def test_tools_need_no_type():
    for tool in ({"function": ADD}, {"type": "function", "function": ADD}):
        assert chat(tools=[tool]).tools == ({"type": "function", "function": ADD},)
    with pytest.raises(RequestError, match=r"tools\[0\]"):
        chat(tools=[7])


class Cut:
    """A reader whose text is two calls, the last of which may have been cut."""

    num_calls = 2

    def __init__(self, cut: bool) -> None:
        self.cut = cut

    def push(self, piece: str) -> list[Found]:
        return [Call("add", f'{{"a": {number}}}') for number in range(2)] if piece else []

    def flush(self) -> list[Found]:
        return []


def test_calls_of_one_answer_are_numbered_and_one_that_was_cut_is_none():
    for cut, made in ((False, [(0, {"a": 0}), (1, {"a": 1})]), (True, [(0, {"a": 0})])):
        found = Calls(Cut(cut))
        calls = found.push("x")[1] + found.push("", last=True)[1]
        assert [(call["function"]["index"], call["function"]["arguments"]) for call in calls] == made


def called(*calls: dict) -> dict:
    return {"role": "assistant", "content": "", "tool_calls": [*calls]}


def came(**more: object) -> dict:
    return {"role": "tool", "content": "3", **more}


def test_what_came_of_calls_is_told_apart_by_ids_names_and_order():
    add = {"function": {"name": "add", "arguments": {"a": 1}}}
    now = {"function": {"name": "now"}}
    first, second, *_ = conversation([called(add, add), came(), came()])[1:]
    assert first.call_id != second.call_id
    assert (first.name, second.name) == ("add", "add")  # whose they are, where they do not say
    made, *found = conversation([called(now, add), came(tool_name="add"), came(tool_name="now")])
    assert [(one.call_id, one.name) for one in found] == [
        (made.calls[1].call_id, "add"),
        (made.calls[0].call_id, "now"),
    ]
    assert made.calls[0].arguments == {}
    own = conversation([called({**add, "id": "x1"}, {**add, "id": "x2"}), came(tool_call_id="x2"), came()])
    assert [call.call_id for call in own[0].calls] == ["x1", "x2"]
    assert [(one.call_id, one.name) for one in own[1:]] == [("x2", "add"), ("x1", "add")]
    rest = conversation([called({**add, "id": "x1"}, {**now, "id": "x2"}), came(tool_call_id="x1"), came()])
    assert [(one.call_id, one.name) for one in rest[1:]] == [("x1", "add"), ("x2", "now")]
    other = conversation([called(add), came(tool_call_id="of another", tool_name="add")])
    assert other[1].call_id == "of another"


def test_a_name_is_its_own_before_it_has_a_tag_more_or_less():
    names = {"ada": "ada", "ada:latest": "ada", "bob": "bob:latest", "bob:latest": "bob:latest", "both:latest": "both"}
    assert {name: own_name(name, TWO) for name in names} == names
    twins = replace(TWO, experts=(Expert("ada", config="x"), Expert("ada:latest", config="x")))
    assert [own_name(name, twins) for name in ("ada", "ada:latest")] == ["ada", "ada:latest"]
    assert own_name("nobody", TWO) == "nobody"


def test_who_is_meant_by_the_compositions_name():
    assert (expert_of("lone", ONE), expert_of("both", TWO), expert_of("bob:latest", TWO)) == ("ada", None, "bob:latest")
    assert expert_of("ada", replace(TWO, name="ada")) == "ada"


def test_what_is_no_time_is_refused():
    for given in (True, [5], "5 m", "", "nan", "inf"):
        with pytest.raises(RequestError, match=r"\[keep_alive\]"):
            keep_alive({"keep_alive": given})
    assert [keep_alive({"keep_alive": one}) for one in ("2h", "3us", "4ms")] == pytest.approx([7200, 3e-6, 4e-3])


def test_moments_are_as_go_writes_them():
    assert timestamp(0.5) == "1970-01-01T00:00:00.500000Z"


@pytest.fixture(scope="module")
def coterie(tmp_path_factory: pytest.TempPathFactory) -> Coterie:
    root: Path = tmp_path_factory.mktemp("told")
    for place, name in enumerate(("old", "new")):
        write_expert(root / name, place)
    write_reranker(root / "scores", 3)
    for name, written_s in TIMES.items():
        for path in (root / name).iterdir():
            os.utime(path, (written_s, written_s))
    rest = ["[router]", 'kind = "rules"', 'fallback = "old"', "[[router.rule]]", 'expert = "new"', 'keywords = ["x"]']
    experts = [line for name in TIMES for line in ("[[expert]]", f'name = "{name}"', f'checkpoint = "{name}"')]
    (root / "c.toml").write_text("\n".join(['name = "told"', *rest, *experts]))
    return Coterie.open(root / "c.toml")


@pytest.fixture(scope="module")
def url(coterie: Coterie) -> Iterator[str]:
    with served(coterie) as found:
        yield f"{found}/api"


def test_lists_have_who_answers_and_the_composition_is_all_of_them(coterie: Coterie) -> None:
    rows = {row["name"]: row for row in all_models(coterie)["models"]}
    assert set(rows) == {"told:latest", "old:latest", "new:latest"}  # who only scores is in no chat's list
    sizes = {name: coterie.models[name].layout.size_bytes for name in TIMES}
    assert {name: rows[f"{name}:latest"]["size"] for name in ("old", "new")} == {n: sizes[n] for n in ("old", "new")}
    assert rows["told:latest"]["size"] == sum(sizes.values())
    for name, written_s in (("told", max(TIMES.values())), ("old", TIMES["old"]), ("new", TIMES["new"])):
        assert rows[f"{name}:latest"]["modified_at"] == timestamp(written_s), name
    assert capabilities(coterie.texts["scores"]) == []
    assert capabilities(coterie.texts["old"])[0] == "completion"


def test_a_digest_is_another_one_where_files_are_others(tmp_path: Path) -> None:
    folder = write_expert(tmp_path / "ada", 1)

    def digest(written_s: int) -> str:
        os.utime(folder / "model.safetensors", (written_s, written_s))
        with Coterie.open(folder) as coterie:
            (row,) = [row for row in all_models(coterie)["models"] if row["name"] == "ada:latest"]
        return row["digest"]

    assert digest(TIMES["old"]) == digest(TIMES["old"]) != digest(TIMES["new"])


def test_who_is_in_memory_has_its_context_and_no_bytes_of_a_gpu(coterie: Coterie, url: str) -> None:
    got = httpx.post(f"{url}/generate", json={"model": "new:latest"}).json()
    assert (got["model"], got["done_reason"]) == ("new:latest", "load")  # the name by which it was asked
    (row,) = [row for row in httpx.get(f"{url}/ps").json()["models"] if row["name"] == "new:latest"]
    assert (row["size_vram"], row["context_length"]) == (0, coterie.models["new"].max_context)
    assert "modified_at" not in row
    assert row["expires_at"] > "9999"
    httpx.post(f"{url}/generate", json={"model": "new", "keep_alive": 0})
    assert "new:latest" not in [row["name"] for row in httpx.get(f"{url}/ps").json()["models"]]
    assert loaded(coterie)["models"] == httpx.get(f"{url}/ps").json()["models"]


def test_pages_of_others_unload_nothing_behind_an_answer_either(url: str) -> None:
    body = {"model": "old", "keep_alive": 0, "options": {"num_predict": 1}}
    for path, asked in (("generate", {"prompt": "x"}), ("embed", {"input": "x"})):
        got = httpx.post(f"{url}/{path}", json={**body, **asked}, headers={"Origin": "http://elsewhere"})
        assert got.status_code == 403, path


def test_who_is_pinned_stays_behind_an_answer(coterie: Coterie, url: str) -> None:
    root = url.removesuffix("/api")
    assert httpx.post(f"{root}/v1/models/old/pin").status_code == 200
    body = {"model": "old", "keep_alive": 0, "options": {"num_predict": 1}}
    for path, asked in (("generate", {"prompt": "x"}), ("embed", {"input": "x"})):
        assert httpx.post(f"{url}/{path}", json={**body, **asked}).status_code == 200
    assert "old:latest" in [row["name"] for row in httpx.get(f"{url}/ps").json()["models"]]
    assert httpx.post(f"{root}/v1/models/old/unpin").status_code == 200
    assert httpx.post(f"{url}/embed", json={**body, "input": "x"}).status_code == 200
    assert "old:latest" not in [row["name"] for row in httpx.get(f"{url}/ps").json()["models"]]


def test_vectors_count_all_their_texts_and_look_at_options(url: str) -> None:
    got = [httpx.post(f"{url}/embed", json={"model": "old", "input": each}).json() for each in (["one"], ["one"] * 3)]
    assert got[1]["prompt_eval_count"] == 3 * got[0]["prompt_eval_count"]
    wrong = {"model": "old", "input": "x", "options": {"temperature": -1}}
    assert "options.temperature" in httpx.post(f"{url}/embed", json=wrong).json()["error"]
    for nothing in ("", [], None):
        httpx.post(f"{url}/generate", json={"model": "old", "keep_alive": 0})
        answer = httpx.post(f"{url}/embed", json={"model": "old:latest", "input": nothing}).json()
        assert answer == {"model": "old:latest", "embeddings": []}
        assert "old:latest" in [row["name"] for row in httpx.get(f"{url}/ps").json()["models"]]  # it was loaded


def test_a_model_is_fetched_in_lines_unless_it_is_told_not_to(url: str) -> None:
    for stream, kind in ((None, "application/x-ndjson"), (True, "application/x-ndjson"), (False, "application/json")):
        got = httpx.post(f"{url}/pull", json={"model": "old"} | ({} if stream is None else {"stream": stream}))
        assert got.headers["content-type"] == kind
        assert got.json() == {"status": "success"}


def test_each_line_of_a_stream_has_the_logprobs_of_its_text(url: str) -> None:
    body = {"model": "old", "prompt": "x", "logprobs": True, "top_logprobs": 1, "options": {"num_predict": 6}}
    *parts, last = [json.loads(line) for line in httpx.post(f"{url}/generate", json=body).text.splitlines()]
    found = [one for part in parts for one in part["logprobs"]]
    assert len(found) == last["eval_count"] > 1
    assert all(len(one["top_logprobs"]) == 1 for one in found)


def test_what_an_answer_took_has_its_parts(coterie: Coterie) -> None:
    answer = replace(
        coterie.ask(replace(Query.text("x"), model="old", max_tokens=2)),
        ttft_s=3.0,
        total_s=7.0,
        routed_s=0.5,
        queued_s=1.0,
        switch_s=0.25,
        finish_reason="length",
    )
    (last,) = OllamaAnswers(Query.text("x"), True, False, 0.0, coterie.texts).ending((answer,))
    assert {name: last[name] / 1e9 for name in last if name.endswith("_duration")} == {
        "total_duration": 7.0,
        "load_duration": 0.25,
        "prompt_eval_duration": 1.5,
        "eval_duration": 4.0,
    }
    assert (last["done"], last["done_reason"], last["eval_count"]) == (True, "length", len(answer.token_ids))
    early = replace(answer, ttft_s=1.0)  # it was routed and waited for longer, by rounding
    (last,) = OllamaAnswers(Query.text("x"), True, False, 0.0, coterie.texts).ending((early,))
    assert last["prompt_eval_duration"] == 0


def test_what_fails_in_a_stream_is_told_in_the_fields_of_this_api(coterie: Coterie) -> None:
    answers = OllamaAnswers(Query.text("x"), True, True, 0.0, coterie.texts)
    (line,) = answers.failure(RequestError("max_tokens", "is 0", "give more"), "an id")
    assert line == {"error": "[options.num_predict] is 0; give more"}
