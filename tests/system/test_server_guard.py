"""Who may ask, how many may wait, and when who was refused should ask again."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from starlette.applications import Starlette
from tests.system.serving import ask, served, until
from tests.system.test_cli_ps import run as ps
from tests.system.test_python import open_held
from typer.testing import CliRunner, Result

from coterie.api import Coterie, Options, Query
from coterie.cli import serve as serving
from coterie.cli.main import app
from coterie.core.errors import ClosedError, CrowdedError, UsageError
from coterie.engine.metrics import Metrics
from coterie.engine.request import Request, Timings
from coterie.server import guard
from coterie.server.app import make_app
from coterie.server.keys import digests_of
from coterie.server.response_store import DEFAULT_BYTES

KEYS = ("first-key", "the-second-key")
PATHS = ("/v1/models", "/v1/models/ada", "/v1/events", "/metrics", "/v1/status", "/nothing", "/health/", "//health")


MESSAGES = [{"role": "user", "content": "x"}]


def refuse(query: Query, more: int) -> str:
    raise ClosedError("server", "is being shut down", "ask again when it is back")


def as_openai(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer first"},
        {"Authorization": "Bearer first-key2"},
        {"Authorization": "Bearer FIRST-KEY"},
        {"Authorization": "first-key"},
        {"Authorization": "Basic first-key"},
        {"Authorization": "Bearer first-key the-second-key"},
        {"Api-Key": "first-key"},
        [(b"Authorization", b"Bearer first-key\xff")],
    ],
)
def test_without_a_right_key_there_is_only_health_and_the_page(guarded: str, headers: dict) -> None:
    with httpx.Client(base_url=guarded, headers=headers) as client:
        for path in PATHS:
            got = client.get(f"{guarded}{path}")  # whole, or two slashes would be read as a host
            assert got.request.url.raw_path == path.encode()
            assert (got.status_code, got.headers["www-authenticate"]) == (401, "Bearer")
            assert got.json()["error"]["code"] == "invalid_api_key"
        for path in ("/v1/chat/completions", "/v1/models/ada/load"):
            assert client.post(path, json={}).status_code == 401
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/").status_code == 200


@pytest.fixture(scope="module")
def guarded(composition: Path):
    with served(Coterie.open(composition), KEYS) as url:
        yield url


@pytest.mark.parametrize("key", KEYS)
def test_with_any_of_the_keys_everything_is_open(guarded: str, key: str) -> None:
    with as_openai(guarded, key) as client:
        assert ask(client, "for ada").model == "ada"
    with as_openai(guarded, "wrong") as client, pytest.raises(openai.AuthenticationError, match="not one of this"):
        ask(client, "for ada")
    got = httpx.get(f"{guarded}/metrics", headers={"authorization": f"bearer  {key}"})
    assert got.status_code == 200


def test_ps_shows_its_key(guarded: str) -> None:
    for arguments, environment in ((("--api-key", KEYS[1]), {}), ((), {"COTERIE_API_KEY": " ".join(KEYS)})):
        assert ps("--url", guarded, *arguments, **environment).exit_code == 0
    got = ps("--url", guarded)
    assert got.exit_code == 2
    assert "the server wants a key: [Authorization] no key" in got.stderr
    assert got.stderr.rstrip().endswith("; give --api-key, or set COTERIE_API_KEY")


def test_every_key_is_compared_whatever_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    asked = guard.Guard(lambda *_: None, digests_of(["a", "b" * 40, "c"]), lambda _, __, body: body)
    assert [guard._is_among(token, asked._digests) for token in (b"a", b"c", b"", b"b" * 39)] == [
        True,
        True,
        False,
        False,
    ]
    assert compared == [(32, 32)] * 12


@pytest.mark.parametrize("what", ["load", "load?wait=true", "unload", "pin", "unpin"])
def test_a_page_of_another_site_handles_no_experts(url: str, guarded: str, what: str) -> None:
    """A browser sends such a POST without asking the server first whether it may."""
    own, path = url.removeprefix("http://"), f"/v1/models/ada/{what}"
    for origin in ("http://elsewhere.example", "null", f"http://{own}.example", f"http://{own}1"):
        got = httpx.post(f"{url}{path}", headers={"Origin": origin})
        assert (got.status_code, got.json()["error"]["type"]) == (403, "invalid_request_error")
        assert got.json()["error"]["message"].startswith(f"[Origin] {origin} is not {own}, where this server is; ")
    for where, headers in (
        (url, {}),
        (url, {"Origin": url}),
        (guarded, {"Origin": "http://elsewhere.example", "Authorization": f"Bearer {KEYS[0]}"}),
    ):
        assert httpx.post(f"{where}{path}", headers=headers).status_code in (200, 202, 409)


@pytest.mark.parametrize("key", ["", "two words", "clé", "a\nb"])
def test_keys_that_no_header_carries_are_refused_at_the_start(composition: Path, key: str) -> None:
    with Coterie.open(composition) as coterie, pytest.raises(UsageError, match="--api-key"):
        make_app(coterie, ["right", key])


def test_the_command_takes_keys_and_says_who_may_ask(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[str, ...], int | None]] = []

    def make(
        coterie: Coterie,
        keys: Sequence[str],
        origins: Sequence[str],
        rest_s: float | None,
        urgent: Sequence[str],
        responses_bytes: int,
    ) -> Starlette:
        assert not origins
        assert rest_s is None
        assert responses_bytes == (3 * 2**20 if seen[3:] else DEFAULT_BYTES)
        assert list(urgent) == (["five"] if seen[3:] else [])
        seen.append((tuple(keys), coterie._options.max_waiting))
        return make_app(coterie, keys, origins)

    monkeypatch.setattr(serving, "make_app", make)
    monkeypatch.setattr(serving.Server, "run", lambda *_, **__: None)

    def serve(*words: str, **environment: str) -> Result:
        return CliRunner(env=environment).invoke(app, ["serve", str(composition), "--port", "0", *words])

    plain, anywhere = serve(), serve("--host", "0.0.0.0")
    assert "Authorization" not in plain.stdout + anywhere.stdout
    assert ["note: anyone who reaches this address" in got.stdout for got in (plain, anywhere)] == [False, True]
    keyed = serve("--host", "0.0.0.0", "--api-key", "one", "--api-key", "two", "--max-waiting", "7")
    assert '-H "Authorization: Bearer $COTERIE_API_KEY"' in keyed.stdout
    assert not any(word in keyed.stdout for word in ("note: any", "one", "two"))
    assert serve(COTERIE_API_KEY="three four").exit_code == 0
    assert seen == [((), 1024), ((), 1024), (("one", "two"), 7), (("three", "four"), 1024)]
    assert serve("--api-key", "one", "--response-store", "3MiB", COTERIE_URGENT_KEY="five").exit_code == 0
    assert seen[4:] == [(("one",), 1024)]
    refused = serve("--api-key", "two words")
    assert (refused.exit_code, len(seen)) == (2, 5)
    assert refused.stderr == (
        "coterie: [--api-key] a key is empty, or has spaces or accents; give plain letters and digits\n"
    )


@pytest.mark.parametrize("keys", ["", " "])
def test_a_variable_for_keys_without_one_does_not_open_the_server_to_all(composition: Path, keys: str) -> None:
    got = CliRunner(env={"COTERIE_API_KEY": keys}).invoke(app, ["serve", str(composition), "--port", "0"])
    assert (got.exit_code, got.stdout) == (2, "")
    assert "[COTERIE_API_KEY] is set but holds no key; give it a key, or unset it" in " ".join(got.stderr.split())


def test_more_than_may_wait_are_told_when_to_come_back(composition: Path) -> None:
    coterie, arrives, waits = open_held(composition, Options(max_waiting=3))
    with served(coterie) as url, as_openai(url) as client, ThreadPoolExecutor(2) as pool:
        arrives.clear()
        first = pool.submit(ask, client, "for ada")
        assert waits.wait(20)
        second = pool.submit(ask, client, "for bob")
        while coterie.parts.engine.queue.num_waiting < 2:
            pass
        for stream in (False, True):
            with pytest.raises(
                openai.RateLimitError, match=r"2 requests wait, 2 of them yours, and 3 may, .*; ask again later"
            ) as caught:
                ask(client, "for cyd", stream=stream)
            assert caught.value.code == "rate_limit_exceeded"
            assert caught.value.response.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/health").status_code == 200
        arrives.set()
        assert [first.result(30).model, second.result(30).model] == ["ada", "bob"]
        assert ask(client, "for cyd").model == "cyd"
        until(lambda: "coterie_requests_refused_total 2.0" in httpx.get(f"{url}/metrics").text)


def test_several_answers_are_taken_together_or_not_at_all(composition: Path) -> None:
    """Of the four places one client may have two."""
    coterie, arrives, waits = open_held(composition, Options(max_waiting=4))
    body = {"model": "ada", "prompt": "x", "max_tokens": 2}
    with (
        served(coterie) as url,
        httpx.Client(base_url=f"{url}/v1", timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        arrives.clear()
        first = pool.submit(client.post, "/completions", json=body)
        assert waits.wait(20)
        while coterie.parts.engine.queue.num_waiting < 1:
            pass
        got = client.post("/completions", json={**body, "n": 2})
        assert (got.status_code, got.headers["retry-after"]) == (429, "1")
        for several in ({"n": 3}, {"prompt": ["x", "y", "z"]}):
            got = client.post("/completions", json={**body, **several})
            assert (got.status_code, got.json()["error"]["param"]) == (400, "n")
            assert "asks for 3 answers at once, but no more than 2 may wait" in got.text
        metrics = coterie.status().metrics
        assert (metrics.submitted, metrics.refused) == (1, 2)
        arrives.set()
        assert first.result(30).status_code == 200
        assert len(client.post("/completions", json={**body, "n": 2}).json()["choices"]) == 2
        assert not coterie.status().metrics.finished["cancelled"]


def test_who_asks_much_at_once_keeps_nobody_else_waiting_for_all_of_it(composition: Path) -> None:
    """One has 100 requests waiting for an expert whose bytes the disk keeps back when another one asks."""
    coterie, arrives, _ = open_held(composition, Options(max_waiting=1024))
    engine = coterie.parts.engine
    body = {"model": "ada", "max_tokens": 4, "messages": MESSAGES}

    async def flood_and_ask(url: str) -> tuple[list[int], str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"{url}/v1", timeout=300, limits=limits) as client:

            async def post(key: str) -> httpx.Response:
                headers = {"Authorization": f"Bearer {key}"}
                return await client.post("/chat/completions", json=body, headers=headers)

            flood = [asyncio.create_task(post(KEYS[0])) for _ in range(100)]
            while engine.metrics.submitted < 100:
                assert not any(each.done() for each in flood), "nothing is there to answer with"
                await asyncio.sleep(0.01)
            other = asyncio.create_task(post(KEYS[1]))
            while engine.metrics.submitted < 101:
                assert not other.done(), "nothing is there to answer with"
                await asyncio.sleep(0.01)
            status, held = coterie.status(), 100 - engine.policy.max_batch
            assert (status.waiting, status.held, status.expert("ada").waiting) == (101, held, 101)
            arrives.set()
            statuses = [each.status_code for each in await asyncio.gather(*flood)]
            return statuses, (await other).json()["id"].removeprefix("chatcmpl-")

    arrives.clear()
    with served(coterie, KEYS) as url:
        try:
            statuses, other = asyncio.run(flood_and_ask(url))
        finally:
            arrives.set()
        headers = {"Authorization": f"Bearer {KEYS[0]}"}
        until(lambda: "coterie_held_requests 0.0" in httpx.get(f"{url}/metrics", headers=headers).text)
    assert statuses == [200] * 100
    log, most = list(engine.decisions), engine.policy.max_batch
    asked, begun = log.index(("submit", other, "ada")), log.index(("admit", other))
    ahead = [sum(entry[0] == what for entry in log[:asked]) for what in ("submit", "admit")]
    assert ahead[0] - ahead[1] > most >= sum(entry[0] == "admit" for entry in log[asked:begun])


def test_what_runs_does_not_count_as_waiting(composition: Path) -> None:
    with Coterie.open(composition, Options(max_waiting=1)) as coterie:
        for _ in range(3):
            coterie.submit(Query.text("x", "ada"))
            with pytest.raises(CrowdedError):
                coterie.submit(Query.text("x", "ada"))
            while coterie.status().waiting:
                coterie.step()
        assert coterie.status().metrics.refused == 3


def test_a_server_that_ends_says_when_to_come_back(composition: Path) -> None:
    coterie = Coterie.open(composition)
    with served(coterie) as url:
        with as_openai(url) as client:
            ask(client, "for ada")
        coterie.parts.engine.metrics.tpot.sum_s = 100.0
        coterie.submit = refuse
        got = httpx.post(f"{url}/v1/chat/completions", json={"model": "ada", "messages": MESSAGES})
    assert (got.status_code, got.json()["error"]["code"]) == (503, "shutting_down")
    assert got.headers["retry-after"] == "60"


@pytest.mark.parametrize(
    ("answers", "tokens", "gap_s", "seconds"), [(0, 0, 0, 1), (4, 21, 0.5, 11), (2, 3, 0.01, 1), (3, 500, 1, 60)]
)
def test_retry_after_is_the_time_of_an_answer(answers: int, tokens: int, gap_s: float, seconds: int) -> None:
    metrics = Metrics()
    for _ in range(answers):
        metrics.drawn_tokens += tokens
        asked = Request("r", "ada", (1,), tokens)
        metrics.count_end(asked, "stop", Timings(0.0, 0.0, 1.0, 1.0 + gap_s * (tokens - 1)), 1 + tokens)
    for status in (429, 503):
        assert guard.retry_headers(status, metrics) == {"Retry-After": str(seconds)}
    for status in (400, 404, 409, 500):
        assert guard.retry_headers(status, metrics) == {}
