"""The web page: what is served, that it needs nothing from elsewhere, and, where there is a node, what it shows."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.system.playing import EVIL, HTML, needs_node, play, stream
from tests.system.serving import served

from coterie.api import Coterie, Options
from coterie.server.app import make_app
from coterie.server.events import snapshot
from coterie.server.page import policy

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = re.findall(r"<script>(.*?)</script>", HTML, re.DOTALL)
STYLE = re.findall(r"<style>(.*?)</style>", HTML, re.DOTALL)


@pytest.fixture(scope="module")
def coterie(composition: Path) -> Iterator[Coterie]:
    with Coterie.open(str(composition), Options(near_bytes=200 * 1024)) as found:
        yield found


def test_it_is_served_as_it_stands(composition: Path) -> None:
    with served(Coterie.open(str(composition))) as url:
        got = httpx.get(f"{url}/")
        assert (got.status_code, got.text) == (200, HTML)
        assert got.headers["content-type"] == "text/html; charset=utf-8"
        assert got.headers["content-security-policy"] == policy(HTML)
        assert got.headers["x-content-type-options"] == "nosniff"


def test_a_server_with_keys_gives_the_page_to_all_and_the_rest_to_who_has_one(composition: Path) -> None:
    coterie = Coterie.open(str(composition))
    with served(coterie, keys=["abc"]) as url:
        assert httpx.get(f"{url}/").status_code == 200
        assert httpx.get(f"{url}/v1/events").status_code == 401
        with httpx.stream("GET", f"{url}/v1/events", headers={"Authorization": "Bearer abc"}) as got:
            assert got.status_code == 200
            assert next(got.iter_lines()) == "id: 0"


def test_the_policy_allows_just_what_is_in_it() -> None:
    directives = dict(part.split(" ", 1) for part in policy(HTML).split("; "))
    digests = {
        kind: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for kind, (text,) in (("script", SCRIPT), ("style", STYLE))
    }
    assert directives["script-src"] == digests["script"]
    assert directives["style-src"] == digests["style"]
    assert directives["default-src"] == directives["form-action"] == directives["frame-ancestors"] == "'none'"
    assert directives["connect-src"] == "'self'"
    # What the policy would stop: attributes that are style or script.
    markup = HTML.replace(SCRIPT[0], "").replace(STYLE[0], "")
    assert not re.search(r"\s(style|on[a-z]+)=", markup)


def test_it_needs_nothing_from_elsewhere() -> None:
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\ssrc=", HTML)
    assert re.findall(r'href="([^"]*)"', HTML) == ["data:,"]


def test_every_path_that_it_names_is_served(coterie: Coterie) -> None:
    """Each by where the page is, so that both may be below a path of a proxy's."""
    named = set(re.findall(r'ask\("([^"]*)"', SCRIPT[0]))
    served_paths = {route.path for route in make_app(coterie).routes}
    assert named == {"v1/events", "v1/chat/completions"}
    assert {f"/{path}" for path in named} <= served_paths
    assert not re.search(r'"/v1', SCRIPT[0])


def test_nothing_is_put_in_as_html() -> None:
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|new Function", HTML
    )


def test_the_script_names_what_is_in_the_page() -> None:
    ids = re.findall(r'\sid="([^"]+)"', HTML)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([^"]+)"\)', SCRIPT[0])) <= set(ids)
    assert {*re.findall(r'aria-labelledby="([^"]+)"', HTML)} <= set(ids)


def test_the_wheel_has_it() -> None:
    assert 'wheel.packages = ["src/coterie"]' in (ROOT / "pyproject.toml").read_text()
    page = ROOT / "src" / "coterie" / "server" / "page.html"
    assert page.is_file()
    if (ROOT / ".git").exists():  # what git ignores is left out of wheels
        assert subprocess.run(["git", "check-ignore", "-q", str(page)], cwd=ROOT, check=False).returncode == 1


@needs_node
def test_what_happens_is_shown(tmp_path: Path, coterie: Coterie) -> None:
    first = snapshot(coterie, coterie.status(), coterie.watch.residents())
    first["experts"][1]["description"] = EVIL
    size = first["experts"][0]["size_bytes"]
    happened = (
        ("snapshot", first),
        ("queued", {"expert": "ada", "request": "r-1"}),
        ("load_begun", {"expert": "ada", "size_bytes": size, "from": "disk", "to": "dram", "links": ["disk->dram"],
                        "evicted": [{"expert": "dan", "tier": "dram"}], "time": 1.0}),
        ("admitted", {"expert": "ada", "request": "r-1"}),
        ("load_ended", {"expert": "ada", "size_bytes": size, "seconds": 0.0125, "bytes_per_s": 80 * size, "time": 2.0}),
        ("ended", {"expert": "ada", "request": "r-1", "was": "running", "reason": "stop", "tokens": 7, "hit": False}),
        ("queued", {"expert": "ada", "request": "r-2"}),
        ("pinned", {"expert": "ada"}),
        ("load_begun", {"expert": "bob", "size_bytes": size, "from": "disk", "to": "dram", "links": ["disk->dram"],
                        "evicted": [], "time": 3.0}),
        ("load_failed", {"expert": "bob", "error": EVIL, "time": 4.0}),
        ("dropped", {"expert": "bob", "tier": "dram"}),
    )  # fmt: skip
    found = play(tmp_path, {"/v1/events": [stream(*happened)]}, [])
    shown = found["shown"]
    assert found["states"] == ["resident", "absent", "absent", "absent"]
    assert "resident, pinned" in shown["experts"]
    assert "1 waiting" in shown["experts"]
    assert EVIL in shown["experts"]  # as text
    assert f"bob · failed: {EVIL}" in shown["switches"]
    assert "in 12.5 ms" in shown["switches"]
    assert "from disk · in place of dan" in shown["switches"]
    assert ", 1 expert " in shown["tiers"]
    for total in ("waiting 1", "running 0", "answers 1", "tokens 7", "hits 0 (0 %)", "switches 2", "failed loads 1"):
        assert total in shown["totals"]
    assert shown["model"] == "four: the router chooses ada bob cyd dan"


@needs_node
def test_many_experts_can_be_looked_through(tmp_path: Path, coterie: Coterie) -> None:
    many = snapshot(coterie, coterie.status(), coterie.watch.residents())
    first = many["experts"][0]
    many["experts"] = [{**first, "name": f"Qwen2.5-{n}b.q4_k_m", "description": "odd" * (n % 2)} for n in range(150)]
    answers = {"/v1/events": [stream(("snapshot", many))]}
    for sought, count in ((None, 150), ("2.5-14", 11), (" ODD ", 75), ("zz", 0)):
        found = play(tmp_path, answers, [["find", "input", sought]])
        assert (found["found"], found["sought"]) == (count, True)
    answers = {"/v1/events": [stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))]}
    assert play(tmp_path, answers, [["find", "input", "zz"]])["found"] == 4  # few are not looked through


@needs_node
def test_numbers_are_plain(tmp_path: Path, coterie: Coterie) -> None:
    loaded = [
        {"expert": "ada", "size_bytes": size, "seconds": s, "bytes_per_s": rate, "time": 1.0}
        for size, s, rate in (
            (1023 << 10, 0.99999, 1010 * 2**20),
            (700, 1234.5, 12.345),
            (2**30 - 1, 0.1236, 5e9),
            (1, 0.000506, 1),
        )
    ]
    found = play(tmp_path, {"/v1/events": [stream(*(("load_ended", facts) for facts in loaded))]}, [])
    switches = found["shown"]["switches"]
    for said in (
        "1023 KiB in 1.00 s · 1010 MiB/s",
        "700 B in 1235 s · 12 B/s",
        "1.00 GiB in 124 ms · 4.66 GiB/s",
        "in 506 us",
    ):
        assert said in switches


@needs_node
def test_tiles_stay_while_things_happen(tmp_path: Path, coterie: Coterie) -> None:
    """A tile that is replaced loses the focus, and a click that has begun."""
    answers = {
        "/v1/events": [
            stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents()))),
            stream(("pinned", {"expert": "ada"})),
        ]
    }
    found = play(tmp_path, answers, [["model", "change", None]])
    assert "absent, pinned" in found["shown"]["experts"]
    assert found["filled"] == 0
    whole = stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))
    found = play(tmp_path, {"/v1/events": [whole, whole, stream(("pinned", {"expert": "ada"}))]}, [])
    assert "absent, pinned" in found["shown"]["experts"]
    assert found["made"] == 1  # the page asked anew: the same experts have the same tiles


@needs_node
def test_other_experts_have_other_tiles(tmp_path: Path, coterie: Coterie) -> None:
    fewer = snapshot(coterie, coterie.status(), coterie.watch.residents())
    del fewer["experts"][1]
    found = play(
        tmp_path,
        {
            "/v1/events": [
                stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents()))),
                stream(("snapshot", fewer)),
            ]
        },
        [],
    )
    assert (len(found["states"]), found["made"]) == (3, 2)
    assert "bob" not in found["shown"]["model"]


@needs_node
def test_a_key_is_asked_for_and_sent(tmp_path: Path, coterie: Coterie) -> None:
    answers = {
        "/v1/events": [
            {"key": "secret", **stream(("snapshot", snapshot(coterie, coterie.status(), coterie.watch.residents())))}
        ]
    }
    found = play(tmp_path, answers, [])
    assert (found["shown"]["link"], found["hidden"], len(found["asked"])) == ("no key", False, 1)
    assert play(tmp_path, answers, [["key-form", "submit", "wrong"]])["hidden"] is False
    found = play(tmp_path, answers, [["key-form", "submit", text] for text in ("wrong", "secret")])
    sent = [ask["headers"].get("Authorization") for ask in found["asked"]]
    assert sent[:3] == [None, "Bearer wrong", "Bearer secret"]
    assert found["hidden"] is True
    assert found["shown"]["title"] == "four"
