"""Reranking: over a real socket, in Python, beside chats and vectors, and what commands say of who does it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.system.serving import served
from tests.system.tiny import write_adapter, write_expert, write_reranker
from typer.testing import CliRunner

from coterie.api import Coterie, Message, Options, Query
from coterie.api.ready import Ready
from coterie.cli.main import app
from coterie.core.errors import CoterieError, NotFoundError, RequestError, UnsupportedError
from coterie.engine.policy import Policy
from coterie.engine.request import Request
from coterie.models.fine_tunes.merge import merge_folder

QUERY, DOCUMENTS = "to whom?", ["for ada", "for bob " * 4, "", "none of these", "for ada"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reranker, an encoder that gives vectors, and two that chat, behind rules."""
    root = tmp_path_factory.mktemp("rerank")
    write_reranker(root / "judge", 3)
    write_reranker(root / "vec", 4)
    config = root / "vec" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": ["BertModel"]}))
    for seed, name in enumerate(("ada", "dan")):
        write_expert(root / name, seed)
    names = ("judge", "vec", "ada", "dan")
    experts = "".join(f'[[expert]]\nname = "{name}"\ncheckpoint = "{name}"\n' for name in names)
    rule = '[[router.rule]]\nexpert = "judge"\nkeywords = ["judge"]\n'
    router = f'name = "all"\n[router]\nkind = "rules"\nfallback = "dan"\n{rule}'
    (root / "c.toml").write_text(router + experts)
    return root / "c.toml"


@pytest.fixture(scope="module")
def url(folder: Path):
    with served(Coterie.open(folder, Options(policy=Policy(max_batch=3, max_step_tokens=40)))) as found:
        yield found


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[float]:
    """Each pair by itself."""
    with Coterie.open(folder.parent / "judge") as coterie:
        return [coterie.rerank(QUERY, [document])[0].score for document in DOCUMENTS]


def ask(http: httpx.Client, url: str, path: str = "/v1/rerank", **body: object) -> httpx.Response:
    return http.post(url + path, json={"model": "judge", "query": QUERY, "documents": DOCUMENTS, **body})


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_the_best_come_first(path: str, url: str, http: httpx.Client, alone: list[float]) -> None:
    found = ask(http, url, path).json()
    order = sorted(range(5), key=lambda place: -alone[place])
    assert [one["index"] for one in found["results"]] == order  # of equal ones the first first
    np.testing.assert_allclose([one["relevance_score"] for one in found["results"]], [alone[at] for at in order])
    tokens = sum(len(QUERY) + len(document) for document in DOCUMENTS)
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert (found["object"], found["model"], set(found["results"][0])) == (
        "list",
        "judge",
        {"index", "relevance_score"},
    )
    assert all(0 < score < 1 for score in alone)


def test_voyages_form(url: str, http: httpx.Client) -> None:
    """By `top_k`, or `truncation`, which its client always sends; documents are texts."""
    plain = ask(http, url).json()
    found = ask(http, url, top_k=2, return_documents=True, truncation=True).json()
    assert [(one["index"], one["relevance_score"]) for one in found["data"]] == [
        (one["index"], one["relevance_score"]) for one in plain["results"][:2]
    ]
    assert [one["document"] for one in found["data"]] == [DOCUMENTS[one["index"]] for one in found["data"]]
    assert (found["object"], found["model"], found["usage"]) == ("list", "judge", plain["usage"])
    assert ask(http, url, truncation=True, top_k=None).json()["data"] == plain["results"]


def test_the_form_of_text_embeddings_inference(folder: Path, url: str, http: httpx.Client) -> None:
    """A list alone; no model is named, and that is the one that scores."""
    for raw in (False, True):
        plain = ask(http, url, raw_scores=raw).json()["results"]
        body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": raw, "return_text": True}
        for more in ({}, {"model": "judge", "truncate": True, "truncation_direction": "Right"}):
            found = http.post(f"{url}/rerank", json={**body, **more}).json()
            assert [(one["index"], one["score"]) for one in found] == [
                (one["index"], one["relevance_score"]) for one in plain
            ]
            assert [one["text"] for one in found] == [DOCUMENTS[one["index"]] for one in found]
    assert http.post(f"{url}/rerank", json={**body, "top_n": 2}).json() == found[:2]
    bare = http.post(f"{url}/rerank", json={"query": QUERY, "texts": ["x"]}).json()
    assert [set(one) for one in bare] == [{"index", "score"}]
    with Coterie.open(folder.parent / "ada") as coterie, served(coterie) as without:
        refused = http.post(f"{without}/rerank", json={"query": QUERY, "texts": ["x"]})
    assert refused.status_code == 400
    assert "has 0 experts that score documents" in refused.json()["error"]["message"]


def test_fewer_with_their_texts_and_scores_as_they_are(url: str, http: httpx.Client, alone: list[float]) -> None:
    best = ask(http, url, top_n=2, return_documents=True).json()["results"]
    assert [one["document"]["text"] for one in best] == [DOCUMENTS[one["index"]] for one in best]
    assert [one["relevance_score"] for one in best] == pytest.approx(sorted(alone)[:-3:-1])
    whole = ask(http, url, top_n=99, raw_scores=True, documents=[{"text": one} for one in DOCUMENTS]).json()["results"]
    logits = {one["index"]: one["relevance_score"] for one in whole}
    np.testing.assert_allclose([1 / (1 + np.exp(-logits[at])) for at in range(5)], alone)


def test_the_compositions_name_means_the_only_one(url: str, http: httpx.Client) -> None:
    assert ask(http, url, model="all").json()["model"] == "judge"
    given = http.post(f"{url}/v1/embeddings", json={"model": "all", "input": "a"}).json()
    assert given["model"] == "vec"


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        ({"query": ""}, "query", "missing or empty"),
        ({"query": "y" * 70}, "query", "has 70 tokens"),
        ({"documents": []}, "documents", "missing, empty or no list"),
        ({"documents": "one"}, "documents", "no list"),
        ({"documents": ["a", {"title": "b"}]}, "documents[1]", "is no text"),
        ({"documents": ["a"] * 2049}, "documents", "has 2049 items"),
        ({"documents": ["\ud800"]}, "documents[0]", "U+D800"),
        ({"top_n": 0}, "top_n", "1 or more"),
        ({"return_documents": "yes"}, "return_documents", "true or false"),
        ({"top_k": 2, "top_n": 3}, "top_k", "is 2, while top_n is 3; give one of them"),
        ({"top_k": 0}, "top_k", "is 0; allowed is 1 or more"),
        ({"truncation": False}, "truncation", "is False, which Coterie does not implement"),
        ({"texts": ["a"], "documents": None, "truncation_direction": "left"}, "truncation_direction", "is 'left'"),
        ({"texts": ["a"]}, "texts", "and documents were both given"),
        ({"texts": ["a", 3], "documents": None}, "texts[1]", "is no text"),
        ({"prompt_name": "ask"}, "prompt_name", "prompts of this expert are: none"),
        ({"model": "ada"}, None, "was not made to score documents"),
        ({"model": "vec"}, None, "was not made to score documents"),
    ],
)
def test_what_is_wrong_is_said(body: dict, field: str | None, said: str, url: str, http: httpx.Client) -> None:
    whole = {"model": "judge", "query": QUERY, "documents": DOCUMENTS, **body}
    answer = http.post(f"{url}/v1/rerank", content=json.dumps(whole), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert said in error["message"]
    assert field is None or error["param"] == field


def test_who_scores_answers_nobody(url: str, http: httpx.Client) -> None:
    asked = {"messages": [{"role": "user", "content": "hello judge"}], "max_tokens": 2}
    routed = http.post(f"{url}/v1/chat/completions", json={"model": "all", **asked}).json()["coterie"]
    assert (routed["expert"], "scores documents" in routed["reason"]) == ("dan", True)
    for path, body in (("chat/completions", asked), ("embeddings", {"input": "a"})):
        refused = http.post(f"{url}/v1/{path}", json={"model": "judge", **body})
        assert refused.status_code == 400
        assert "ask it to rerank" in refused.json()["error"]["message"]


def test_many_at_once_beside_chats(url: str, http: httpx.Client, alone: list[float]) -> None:
    def one(place: int) -> object:
        if place % 3 == 0:
            body = {"model": "ada", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
            return http.post(f"{url}/v1/chat/completions", json=body).status_code
        return {found["index"]: found["relevance_score"] for found in ask(http, url).json()["results"]}

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(one, range(12)))
    assert all(answer == 200 for answer in found[::3])
    for scores in (answer for place, answer in enumerate(found) if place % 3):
        np.testing.assert_allclose([scores[at] for at in range(5)], alone)


def test_lists_and_commands_say_what_an_expert_gives(url: str, http: httpx.Client, folder: Path) -> None:
    rows = http.get(f"{url}/v1/models").json()["data"]
    wanted = {"judge": "scores", "vec": "vectors", "ada": "tokens", "dan": "tokens"}
    assert {row["id"]: row["coterie"]["gives"] for row in rows[1:]} == wanted
    lengths = {row["id"]: row["max_model_len"] for row in rows}
    with Coterie.open(folder) as coterie:
        assert lengths == {rows[0]["id"]: 128} | {name: model.max_context for name, model in coterie.models.items()}
    shown = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["ps", "--url", url]).stdout
    assert "scores" in next(line for line in shown.splitlines() if "judge" in line)
    checked = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["check", str(folder)]).stdout
    assert all(word in checked for word in ("bert (scores)", "bert (vectors)"))
    priced = CliRunner().invoke(app, ["simulate", str(folder), "--machine", "toy"])
    assert (priced.exit_code, "generate no text: judge, vec" in " ".join(priced.stderr.split())) == (2, True)


def test_in_python(folder: Path, alone: list[float]) -> None:
    with Coterie.open(folder) as coterie:
        found = coterie.rerank(QUERY, DOCUMENTS, top_n=2)
        assert [one.score for one in found] == pytest.approx(sorted(alone)[:-3:-1])
        assert coterie.rerank(QUERY, []) == []
        assert [one.score for one in coterie.rerank(QUERY, DOCUMENTS[0])] == pytest.approx(alone[:1])
        for none in (0, -1):
            with pytest.raises(RequestError, match=rf"\[top_n\] is {none}"):
                coterie.rerank(QUERY, DOCUMENTS, top_n=none)
        with pytest.raises(RequestError, match="was not made to score"):
            coterie.rerank(QUERY, DOCUMENTS, "ada")
        with pytest.raises(NotFoundError):
            coterie.rerank(QUERY, DOCUMENTS, "eve")
        with pytest.raises(RequestError, match="scores documents"):
            coterie.ask(Query((Message("user", "a"),), "judge"))
    with Coterie.open(folder.parent / "ada") as coterie, pytest.raises(RequestError, match="has 0 experts that score"):
        coterie.rerank(QUERY, DOCUMENTS)


def test_all_documents_are_scored_by_the_same_files(
    tmp_path: Path, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though they are replaced after the first documents were scored."""
    judge, other = (write_reranker(tmp_path / str(seed) / "judge", seed) for seed in (3, 7))
    with Coterie.open(other) as alone:
        expected = {one.index: one.score for one in alone.rerank(QUERY, DOCUMENTS)}
    coterie, asked = Coterie.open(judge.parent), list[object]()
    coterie.load("judge")  # else its load may not be over when it is to be replaced
    submit = coterie.submit

    def replacing(query: Query | Ready, more: int = 0) -> str:
        asked.append(query)
        if len(asked) == 3:
            (other / "model.safetensors").replace(judge / "model.safetensors")
            assert coterie.rescan().renewed == ("judge",)
        return submit(query, more)

    monkeypatch.setattr(coterie, "submit", replacing)
    monkeypatch.setattr("coterie.server.choices.AT_ONCE", 2)
    with served(coterie) as url:
        found = ask(http, url).json()["results"]
    assert {one["index"]: one["relevance_score"] for one in found} == pytest.approx(expected)
    assert len(asked) == 4 + len(DOCUMENTS)


@pytest.mark.parametrize("number", [float("nan"), 1e38])
def test_a_head_that_makes_no_numbers_is_told_of(tmp_path: Path, http: httpx.Client, number: float) -> None:
    file = write_reranker(tmp_path / "judge", 3) / "model.safetensors"
    data = bytearray(file.read_bytes())
    first = 8 + int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8:first])["classifier.weight"]["data_offsets"]
    data[first + begin : first + end] = np.full((end - begin) // 4, number, "<f4").tobytes()
    file.write_bytes(data)
    with served(Coterie.open(file.parent)) as url:
        found = ask(http, url, raw_scores=True)
    assert (found.status_code, "values that are not numbers" in found.json()["error"]["message"]) == (500, True)


def test_types_are_one_for_each_token() -> None:
    with pytest.raises(RequestError, match="2 numbers for 3 tokens"):
        Request("r", "e", (1, 2, 3), 1, types=(0, 1))


def test_nothing_is_served_beside_who_scores_nor_merged_into_it(tmp_path: Path) -> None:
    base = write_expert(
        tmp_path / "base", 0, tie_word_embeddings=True, architectures=["LlamaForSequenceClassification"]
    )
    adapter = write_adapter(tmp_path / "adapter", ("q_proj",))
    with pytest.raises(CoterieError, match=r"score\.weight, of the head that scores, is missing"):
        Coterie.open(base)
    judge = write_reranker(tmp_path / "judge", 1)
    with pytest.raises(UnsupportedError, match="BertForSequenceClassification, whose head scores"):
        merge_folder(judge, adapter, tmp_path / "merged")


@pytest.mark.parametrize("most", [1, 4])
def test_more_documents_than_may_wait_are_scored(
    folder: Path, most: int, http: httpx.Client, alone: list[float]
) -> None:
    with served(Coterie.open(folder, Options(max_waiting=most))) as url:
        found = ask(http, url).json()["results"]
    assert {one["index"]: one["relevance_score"] for one in found} == pytest.approx(dict(enumerate(alone)))
