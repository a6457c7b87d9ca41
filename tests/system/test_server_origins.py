"""What a browser lets pages of other sites do with a server, and what it is told to let them do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from tests.system.serving import served
from typer.testing import CliRunner, Result

from coterie.api import Coterie
from coterie.cli import serve as serving
from coterie.cli.main import app
from coterie.core.errors import CrowdedError, UsageError
from coterie.server.app import make_app

SITE, OTHER, KEY = "http://localhost:3000", "https://elsewhere.example", "a-key"
CHAT = {"model": "ada", "max_tokens": 3, "messages": [{"role": "user", "content": "x"}]}
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
WORDS = "access-control-allow-origin"


@pytest.fixture(scope="module")
def open_to(composition: Path) -> Iterator[dict[str, str]]:
    """Servers by whom they are open to."""
    with (
        served(Coterie.open(composition)) as nobody,
        served(Coterie.open(composition), (), (SITE, "null")) as site,
        served(Coterie.open(composition), (KEY,), (SITE,)) as keyed,
        served(Coterie.open(composition), (), ("*",)) as everybody,
    ):
        yield {"nobody": nobody, "site": site, "keyed": keyed, "everybody": everybody}


@pytest.mark.parametrize(
    ("server", "origin", "allowed"),
    [
        ("nobody", SITE, None),
        ("site", SITE, SITE),
        ("site", "null", "null"),
        ("site", OTHER, None),
        ("site", SITE + "1", None),
        ("keyed", SITE, SITE),
        ("everybody", OTHER, "*"),
    ],
)
def test_a_page_may_ask_and_read_where_its_origin_is_allowed(
    open_to: dict[str, str], server: str, origin: str, allowed: str | None
) -> None:
    """First a browser asks whether it may, without a key; then it asks, with the key that the page has."""
    headers = {"Origin": origin} | ({"Authorization": f"Bearer {KEY}"} if server == "keyed" else {})
    with httpx.Client(base_url=open_to[server]) as client:
        before = client.options("/v1/chat/completions", headers={"Origin": origin, **ASKS})
        assert before.headers.get(WORDS) == allowed
        assert (before.status_code == 200) == (allowed is not None)
        if allowed is not None:
            assert "POST" in before.headers["access-control-allow-methods"]
            assert before.headers["access-control-allow-headers"] == ASKS["Access-Control-Request-Headers"]
        for stream in (False, True):
            got = client.post("/v1/chat/completions", json={**CHAT, "stream": stream}, headers=headers)
            assert (got.status_code, got.headers.get(WORDS)) == (200, allowed)
        for path, status in (("/v1/models", 200), ("/v1/nothing", 404), ("/v1/models/eve", 404)):
            got = client.get(path, headers=headers)
            assert (got.status_code, got.headers.get(WORDS)) == (status, allowed)
        refused = client.post("/v1/models/ada/load", headers=headers).status_code == 403
        assert refused == (allowed is None)


def test_what_is_refused_can_be_read_too(open_to: dict[str, str]) -> None:
    got = httpx.get(f"{open_to['keyed']}/v1/models", headers={"Origin": SITE})
    assert (got.status_code, got.headers[WORDS]) == (401, SITE)
    got = httpx.post(f"{open_to['site']}/v1/chat/completions", content=b" " * (9 << 20), headers={"Origin": SITE})
    assert (got.status_code, got.headers[WORDS]) == (413, SITE)
    assert "is larger than 8388608 bytes" in got.json()["error"]["message"]


def test_a_page_can_read_when_to_ask_again(composition: Path) -> None:
    coterie = Coterie.open(composition)

    def crowded(*_: object) -> str:
        raise CrowdedError("engine", 3, 2)

    coterie.submit = crowded  # type: ignore[method-assign]
    with served(coterie, (), (SITE,)) as url:
        got = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers={"Origin": SITE})
    assert (got.status_code, got.headers["retry-after"]) == (429, "1")
    assert "Retry-After" in got.headers["access-control-expose-headers"]


@pytest.mark.parametrize(
    "origin",
    ["localhost:3000", "http://localhost:3000/", "http://", "http://a b", "HTTP://Host", "http://*.example", ""],
)
def test_what_no_browser_calls_an_origin_is_refused_at_the_start(composition: Path, origin: str) -> None:
    with Coterie.open(composition) as coterie, pytest.raises(UsageError, match="--allow-origin"):
        make_app(coterie, (), [SITE, origin])


@pytest.mark.parametrize("origin", ["http://[::1]:8080", "https://a-b.example", "app://obsidian.md", "null", "*"])
def test_what_browsers_call_origins_is_taken(composition: Path, origin: str) -> None:
    with Coterie.open(composition) as coterie:
        assert len(make_app(coterie, ("key",), [origin]).user_middleware) == 2


def test_the_command_takes_origins(composition: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def make(coterie: Coterie, keys: Sequence[str], origins: Sequence[str], *more: Any) -> Starlette:
        seen.append(tuple(origins))
        return make_app(coterie, keys, origins, *more)

    monkeypatch.setattr(serving, "make_app", make)
    monkeypatch.setattr(serving.Server, "run", lambda *_, **__: None)

    def serve(*words: str) -> Result:
        return CliRunner().invoke(app, ["serve", str(composition), "--port", "0", *words])

    two = serve("--allow-origin", SITE, "--allow-origin", OTHER)
    anybody, keyed = (serve("--allow-origin", "*", *more) for more in ((), ("--api-key", KEY)))
    assert seen == [(SITE, OTHER), ("*",), ("*",)]
    assert ["note: any page" in got.stdout for got in (two, anybody, keyed)] == [False, True, False]
    refused = serve("--allow-origin", "localhost")
    assert (refused.exit_code, len(seen)) == (2, 3)
    assert "[--allow-origin] 'localhost' is no origin; give scheme, host and port alone" in refused.stderr
