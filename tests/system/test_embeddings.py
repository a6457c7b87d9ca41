"""Embeddings: by the official OpenAI client over a real socket, beside chats, and in Python."""

from __future__ import annotations

import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from tests.system.serving import served, until
from tests.system.tiny import CONFIG, write_adapter, write_delta_net, write_expert

from coterie.api import Coterie, Message, Options, Query
from coterie.api.embeddings import normalised
from coterie.checkpoint.sentence import Embedding
from coterie.core.errors import CrowdedError, NotFoundError, RequestError, UnsupportedError
from coterie.engine.policy import Policy
from coterie.engine.request import Request
from coterie.models.model import FLOAT32
from coterie.server import choices
from coterie.server.body import written

TEXTS = ("a", "What is 47 plus 85?", "for ada: " + "a long text " * 8, "for ada: " + "a long text " * 8 + "ends")
SMALL = Policy(max_batch=4, max_step_tokens=23)


@pytest.fixture(scope="module")
def url(composition: Path):
    # A budget of two of the four experts, so that requests at once must switch.
    with served(Coterie.open(str(composition), Options(near_bytes=200 * 1024))) as found:
        yield found


@pytest.fixture(scope="module")
def alone(composition: Path):
    """Each text by itself, in whole, with nothing reused; pooled as usual."""
    with Coterie.open(str(composition), Options(reuse=False)) as coterie:
        yield lambda text, expert="ada": coterie.embed(text, expert)[0]


@pytest.fixture(scope="module")
def exact(composition: Path):
    """The same in float32, as modelled machines have it whatever the CPU."""
    with Coterie.open(str(composition), Options(reuse=False, activations=FLOAT32)) as coterie:
        yield lambda text: coterie.embed(text, "ada")[0]


def vectors(response) -> np.ndarray:
    return np.array([one.embedding for one in response.data], np.float32)


def test_a_text_a_list_and_tokens(client: openai.OpenAI, alone) -> None:
    one = client.embeddings.create(model="ada", input=TEXTS[1], encoding_format="float")
    assert (one.object, one.model, one.data[0].index, one.data[0].object) == ("list", "ada", 0, "embedding")
    assert one.usage.prompt_tokens == one.usage.total_tokens == len(TEXTS[1])
    np.testing.assert_array_equal(vectors(one)[0], alone(TEXTS[1]))
    many = client.embeddings.create(model="ada", input=list(TEXTS), encoding_format="float")
    assert [found.index for found in many.data] == [0, 1, 2, 3]
    np.testing.assert_array_equal(vectors(many), np.stack([alone(text) for text in TEXTS]))
    ids = [list(text.encode()) for text in TEXTS]
    np.testing.assert_array_equal(vectors(client.embeddings.create(model="ada", input=ids)), vectors(many))
    np.testing.assert_array_equal(vectors(client.embeddings.create(model="ada", input=ids[1])), vectors(one))
    assert np.allclose(np.linalg.norm(vectors(many), axis=1), 1, atol=1e-6)


def test_a_folder_by_itself_has_its_experts_name_and_takes_any_text(folder: Path, http: httpx.Client, alone) -> None:
    """An @ in a text that is no prompt addresses nobody, and tokens may be special ones, which spell nothing."""
    with served(Coterie.open(folder / "ada")) as url:
        for text in ("@ada go on", "@adaa go on"):
            found = openai.OpenAI(base_url=f"{url}/v1", api_key="none").embeddings.create(model="ada", input=text)
            np.testing.assert_array_equal(vectors(found)[0], alone(text))
        given = http.post(f"{url}/v1/embeddings", json={"model": "ada", "input": [[256, 257], [97]]})
        assert given.status_code == 200, given.text


def test_base64_is_the_same_numbers(url: str, client: openai.OpenAI, http: httpx.Client) -> None:
    by_default = client.embeddings.create(model="bob", input=list(TEXTS))  # the client asks for base64 by itself
    plain = client.embeddings.create(model="bob", input=list(TEXTS), encoding_format="float")
    np.testing.assert_array_equal(vectors(by_default), vectors(plain))
    body = {"model": "bob", "input": TEXTS[0], "encoding_format": "base64"}
    (data,) = http.post(f"{url}/v1/embeddings", json=body).json()["data"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(data["embedding"]), "<f4"), vectors(plain)[0])


@pytest.mark.parametrize(("most", "beside"), [(63, True), (64, False)])  # two vectors have 64
@pytest.mark.parametrize("form", ["float", "base64"])
def test_many_numbers_are_written_beside_the_loop(
    url: str, http: httpx.Client, monkeypatch: pytest.MonkeyPatch, form: str, most: int, beside: bool
) -> None:
    body, threads = {"model": "ada", "input": ["a", "b"], "encoding_format": form}, list[str]()
    before = http.post(f"{url}/v1/embeddings", json=body)

    def seen(found: dict[str, Any], run: int) -> bytes:
        threads.append(threading.current_thread().name)
        assert (run, len(found["data"])) == (1, 2)
        return written(found, run)

    monkeypatch.setattr(choices, "written", seen)
    monkeypatch.setattr(choices, "QUICK_NUMBERS", most)
    after = http.post(f"{url}/v1/embeddings", json=body)
    assert after.json()["data"] == before.json()["data"]
    assert after.headers["content-type"] == "application/json"
    assert [name.startswith("coterie-reading") for name in threads] == [beside]


def test_fewer_dimensions_are_the_first_ones_of_length_one(client: openai.OpenAI, alone) -> None:
    found = vectors(client.embeddings.create(model="ada", input=TEXTS[1], dimensions=5))
    np.testing.assert_allclose(found, normalised(alone(TEXTS[1])[None, :5]), rtol=1e-6)
    with pytest.raises(openai.BadRequestError, match="vectors of ada have 32"):
        client.embeddings.create(model="ada", input="a", dimensions=33)


def test_many_inputs_at_once_and_chats_beside_them(client: openai.OpenAI, alone) -> None:
    """More than one slice of inputs, of two experts, while both answer."""
    texts = [f"text number {n}" for n in range(150)]

    def chat(expert: str) -> str:
        asked = [{"role": "user", "content": "go on"}]
        return client.chat.completions.create(model=expert, messages=asked, max_tokens=60).choices[0].message.content

    before = {expert: chat(expert) for expert in ("ada", "bob")}
    with ThreadPoolExecutor(8) as pool:
        chats = {expert: pool.submit(chat, expert) for expert in before}
        embedded = {
            expert: pool.submit(lambda expert=expert: vectors(client.embeddings.create(model=expert, input=texts)))
            for expert in before
        }
        assert {expert: future.result() for expert, future in chats.items()} == before
        for expert, future in embedded.items():
            np.testing.assert_array_equal(future.result()[::50], np.stack([alone(t, expert) for t in texts[::50]]))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"input": ""}, "input[0]"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input[1]"),
        ({"input": [[1, 2], []]}, "input[1]"),
        ({"input": {"a": 1}}, "input"),
        ({}, "input"),
        ({"input": ["a"] * 2049}, "2049"),
        ({"input": [259]}, "tokens 0 to 258"),
        ({"input": "a" * 200}, "context"),
        ({"input": "a", "encoding_format": "int8"}, "float or base64"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "prompt_name": "query"}, "prompts of this expert are: none"),
        ({"input": "a", "stream": True}, "stream"),
        ({"input": "a", "model": "four"}, "name one of them"),
    ],
)
def test_what_is_wrong_is_told(url: str, http: httpx.Client, body: dict, said: str) -> None:
    response = http.post(f"{url}/v1/embeddings", json={"model": "ada", **body})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert said in error["message"]
    assert error["type"] == "invalid_request_error"


def test_an_unknown_expert_is_not_found(url: str, http: httpx.Client) -> None:
    assert http.post(f"{url}/v1/embeddings", json={"model": "eve", "input": "a"}).status_code == 404


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("device", ["cpu", "modelled:toy"])
def test_pieces_batches_and_what_is_reused_change_no_bit(
    device: str, pooling: str, folder: Path, exact, pooled
) -> None:
    with pooled(folder, pooling, Options(reuse=False, device=device, activations=FLOAT32)) as coterie:
        whole = [coterie.embed(text, "ada")[0] for text in TEXTS]
    with pooled(folder, pooling, Options(policy=SMALL, device=device, activations=FLOAT32)) as coterie:
        for _ in range(2):
            found = coterie.embed(TEXTS, "ada")
            np.testing.assert_array_equal(found, np.stack(whole))
        asked = coterie.ask_all([Query((Message("user", TEXTS[3]),), "ada", raw=True, embeds=True)] * 2)
        cached = [answer.cached_tokens for answer in asked]
        assert all(cached) if pooling == "last" else not any(cached)
        assert [answer.prompt_tokens for answer in asked] == [len(TEXTS[3])] * 2
    if pooling == "mean":
        np.testing.assert_array_equal(np.stack(whole), np.stack([exact(text) for text in TEXTS]))
    else:
        assert np.abs(whole[2] - exact(TEXTS[2])).max() > 1e-3


@pytest.fixture
def pooled(monkeypatch):
    """Opens experts that say nothing of how they pool, so that they do as is said here."""

    def opened(folder: Path, pooling: str, options: Options) -> Coterie:
        monkeypatch.setattr("coterie.api.texts.DEFAULT_EMBEDDING", Embedding(pooling))
        return Coterie.open(folder, options)

    return opened


def test_a_sequence_with_a_recurrent_state_embeds_too(tmp_path: Path) -> None:
    write_delta_net(tmp_path / "net", 5)
    with Coterie.open(tmp_path / "net", Options(policy=SMALL)) as coterie:
        together = coterie.embed(TEXTS)
        answer = coterie.ask(Query((Message("user", TEXTS[1]),), max_tokens=5)).text
    with Coterie.open(tmp_path / "net") as coterie:
        np.testing.assert_array_equal(together, np.stack([coterie.embed(text)[0] for text in TEXTS]))
        assert coterie.ask(Query((Message("user", TEXTS[1]),), max_tokens=5)).text == answer


def test_adapters_embed_each_by_its_own_weights_while_they_share_steps(tmp_path: Path) -> None:
    base = write_expert(tmp_path / "base", 1)
    names = ("one", "two", "three")
    for seed, name in enumerate(names):
        folder = write_adapter(tmp_path / name, ("q_proj", "down_proj"), seed=seed)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    queries = [Query((Message("user", text),), name, raw=True, embeds=True) for name in names for text in TEXTS]
    chats = [Query((Message("user", "go on"),), name, max_tokens=40) for name in names]
    with Coterie.open(tmp_path, Options(policy=SMALL)) as coterie:
        mixed = coterie.ask_all([q for pair in zip(queries, chats * 4, strict=True) for q in pair])
    with Coterie.open(tmp_path) as coterie:
        one_by_one = [coterie.ask(query) for query in queries], [coterie.ask(query) for query in chats]
    assert [answer.vector for answer in mixed[::2]] == [answer.vector for answer in one_by_one[0]]
    assert [answer.text for answer in mixed[1::2]] == [answer.text for answer in one_by_one[1]] * 4
    assert len({answer.vector for answer in mixed[::2]}) == len(queries)


def test_a_machine_of_several_units_gives_the_same_and_takes_modelled_time(folder: Path, exact) -> None:
    with Coterie.open(folder, Options(device="modelled:sn40l-node")) as coterie:
        coterie.load("ada")
        begun_s = coterie.parts.device.now()
        np.testing.assert_array_equal(coterie.embed(TEXTS[1], "ada")[0], exact(TEXTS[1]))
        assert 0 < coterie.parts.device.now() - begun_s < 1e-2


def test_who_makes_tokens_up_gives_no_vectors(folder: Path) -> None:
    with (
        Coterie.open(folder, Options(device="synthetic:toy")) as coterie,
        pytest.raises(UnsupportedError, match="computes none"),
    ):
        coterie.embed("a", "ada")


def test_whose_vectors_are_meant(folder: Path, tmp_path: Path) -> None:
    with Coterie.open(folder) as coterie:
        with pytest.raises(RequestError, match="4 experts and none that only gives vectors"):
            coterie.embed("a")
        with pytest.raises(NotFoundError):
            coterie.embed("a", "eve")
        assert len(coterie.embed([], "ada")) == 0
    write_expert(tmp_path / "only", 0)
    with Coterie.open(tmp_path / "only") as coterie:
        assert coterie.embed("a").shape == (1, CONFIG["hidden_size"])


def test_a_vector_that_is_cancelled_or_fails_leaves_nothing(folder: Path) -> None:
    with Coterie.open(folder, Options(policy=SMALL)) as coterie:
        first = coterie.submit(Query((Message("user", TEXTS[2]),), "ada", raw=True, embeds=True))
        coterie.step()
        coterie.cancel(first)
        chunks = [chunk for _ in range(20) for chunk in coterie.step(0.01)]
        assert [chunk.answer.finish_reason for chunk in chunks if chunk.answer] == ["cancelled"]
        assert coterie.embed(TEXTS[2], "ada").shape == (1, 32)
        coterie.parts.engine.check_integrity()


def test_a_mean_that_would_reuse_what_is_there_is_refused() -> None:
    with pytest.raises(RequestError, match="pooled by its mean"):
        Request("r", "e", (1,), 1, pooling="mean")


def test_an_expert_that_gives_vectors_alone_answers_nobody(tmp_path: Path, http: httpx.Client) -> None:
    """A router passes it over, who names it is told, and the composition's name means its vectors."""
    for seed, name in enumerate(("vec", "dan")):
        write_expert(tmp_path / name, seed)
    modules = [{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]
    (tmp_path / "vec" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "vec" / "1_Pooling").mkdir()
    (tmp_path / "vec" / "1_Pooling" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    rule = '[[router.rule]]\nexpert = "vec"\nkeywords = ["vec"]\n'
    experts = "".join(f'[[expert]]\nname = "{name}"\ncheckpoint = "{name}"\n' for name in ("vec", "dan"))
    router = '[router]\nkind = "rules"\nfallback = "dan"\n'
    (tmp_path / "c.toml").write_text(f'name = "both"\n{router}{rule}{experts}')
    with served(Coterie.open(tmp_path / "c.toml")) as url:
        asked = {"messages": [{"role": "user", "content": "hello vec"}], "max_tokens": 2}
        routed = http.post(f"{url}/v1/chat/completions", json={"model": "both", **asked}).json()["coterie"]
        assert (routed["expert"], "gives vectors" in routed["reason"]) == ("dan", True)
        refused = http.post(f"{url}/v1/chat/completions", json={"model": "vec", **asked})
        assert refused.status_code == 400
        assert "ask it for embeddings" in refused.json()["error"]["message"]
        given = http.post(f"{url}/v1/embeddings", json={"model": "both", "input": "a"}).json()
        assert given["model"] == "vec"


@pytest.mark.parametrize("most", [1, 3, 8, 300])
def test_more_texts_than_may_wait_are_taken_as_they_find_places(composition: Path, most: int, alone) -> None:
    texts = [f"text {number}" for number in range(19)]
    with served(Coterie.open(composition, Options(max_waiting=most))) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        found = client.embeddings.create(model="ada", input=texts, encoding_format="float")
        np.testing.assert_array_equal(vectors(found), np.stack([alone(text) for text in texts]))
        until(lambda: "coterie_requests_submitted_total 19.0" in httpx.get(f"{url}/metrics").text)
        assert "coterie_requests_refused_total 0.0" in httpx.get(f"{url}/metrics").text


def test_who_finds_no_place_is_refused_and_who_has_begun_waits_for_one(
    composition: Path, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    coterie = Coterie.open(composition, Options(max_waiting=6))
    engine = coterie.parts.engine
    check, full = (
        engine.check_room,
        list[int](),
    )  # before how many submitted requests there was no place, again and again

    def checked(client: str, most: int, count: int = 1) -> None:
        if full and engine.metrics.submitted == full[0]:
            full.pop(0)
            raise CrowdedError("queue", most, most)
        check(client, most, count)

    monkeypatch.setattr(engine, "check_room", checked)
    monkeypatch.setattr("coterie.server.choices.RETRY_S", 0.01)
    monkeypatch.setattr("coterie.server.choices.AT_ONCE", 2)
    body = {"model": "ada", "input": ["one", "two", "three", "four", "five"]}
    with served(coterie) as url:
        expected = http.post(f"{url}/v1/embeddings", json=body).json()["data"]
        full += [5 + 2, 5 + 2, 5 + 4]
        assert http.post(f"{url}/v1/embeddings", json=body).json()["data"] == expected
        assert not full
        assert engine.metrics.submitted == 10
        full += [10]
        refused = http.post(f"{url}/v1/embeddings", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert engine.metrics.submitted == 10
