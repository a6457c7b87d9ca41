"""The web page: what is served, that it needs nothing from elsewhere, and, where there is a node, what it shows."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from tests.system.serving import served

from coterie.api import Coterie, Options
from coterie.server.app import make_app
from coterie.server.events import encode, snapshot
from coterie.server.page import policy

ROOT = Path(__file__).resolve().parents[2]
HTML = (files("coterie.server") / "page.html").read_text(encoding="utf-8")
SCRIPT = re.findall(r"<script>(.*?)</script>", HTML, re.DOTALL)
STYLE = re.findall(r"<style>(.*?)</style>", HTML, re.DOTALL)
NODE = shutil.which("node")


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
    named = set(re.findall(r'"(/[^"\n ]*)"', SCRIPT[0]))
    served_paths = {route.path for route in make_app(coterie).routes}
    assert named == {"/v1/events", "/v1/chat/completions"} <= served_paths


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


def play(folder: Path, answers: dict[str, list[dict]], does: list[list[str]]) -> dict:
    """Runs the page's script against these answers, does this (id, event, text), and says what is shown."""
    assert NODE is not None
    (folder / "page.html").write_text(HTML)
    (folder / "scene.json").write_text(json.dumps({"answers": answers, "does": does}))
    script = Path(__file__).with_name("page_in_node.js")
    command = [NODE, str(script), str(folder / "page.html"), str(folder / "scene.json")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


needs_node = pytest.mark.skipif(NODE is None, reason="node is not installed")
EVIL = '<img src=x onerror="alert(1)">'


def stream(*happened: tuple[str, dict]) -> dict:
    return {"body": b"".join(encode(what, facts, 1) for what, facts in happened).decode()}


@needs_node
def test_what_happens_is_shown(tmp_path: Path, coterie: Coterie) -> None:
    first = snapshot(coterie)
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
    assert f"bob failed: {EVIL}" in shown["switches"]
    assert "in 12.5 ms" in shown["switches"]
    assert "from disk · in place of dan" in shown["switches"]
    assert ", 1 experts" in shown["tiers"]
    for total in ("waiting 1", "running 0", "answers 1", "tokens 7", "hits 0 (0 %)", "switches 2", "failed loads 1"):
        assert total in shown["totals"]
    assert shown["model"] == "four: the router chooses ada bob cyd dan"


@needs_node
def test_an_answer_is_shown_as_text_with_who_gave_it(tmp_path: Path, coterie: Coterie) -> None:
    details = {"expert": "bob", "confidence": 0.8, "is_fallback": False, "hit": False, "switch_s": 0.0021,
               "ttft_s": 0.5, "tokens_per_s": 99.6}  # fmt: skip
    head = {"id": "chatcmpl-1", "model": "bob"}
    parts = [
        ": waiting for bob, 1 of 2 GiB",
        *[
            "data: " + json.dumps({**head, "choices": [{"delta": delta}], **more})
            for delta, more in (({"content": "1 < 2 "}, {}), ({"content": EVIL}, {}), ({}, {"coterie": details}))
        ],
        "data: [DONE]",
    ]
    routed = {"expert": "bob", "request": "chatcmpl-1", "runners_up": [{"expert": "ada", "confidence": 0.15}]}
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie)), ("routed", routed))],
        "/v1/chat/completions": [{"body": "\n\n".join(parts) + "\n\n"}],
    }
    found = play(tmp_path, answers, [["ask", "submit", "which is less?"]])
    talk = found["shown"]["talk"]
    assert talk.startswith(f"which is less? 1 < 2 {EVIL}")
    facts = "bob · confidence 0.80 · switch 2.10 ms · first token 500 ms · 100 tokens/s · then ada 0.15"
    assert talk.endswith(facts)
    body = json.loads(next(ask["body"] for ask in found["asked"] if ask["path"] == "/v1/chat/completions"))
    assert body == {"model": "four", "messages": [{"role": "user", "content": "which is less?"}], "stream": True}


@needs_node
def test_an_answer_that_fails_or_breaks_off_is_no_part_of_the_conversation(tmp_path: Path, coterie: Coterie) -> None:
    begun = "data: " + json.dumps({"id": "1", "model": "bob", "choices": [{"delta": {"content": "half an"}}]}) + "\n\n"
    failed = "data: " + json.dumps({"error": {"message": EVIL}}) + "\n\n"
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie)))],
        "/v1/chat/completions": [{"body": begun + failed}, {"body": begun}, {"body": begun + "data: [DONE]\n\n"}],
    }
    found = play(tmp_path, answers, [["ask", "submit", text] for text in ("one", "two", "three")])
    talk = found["shown"]["talk"]
    assert f"one half an {EVIL} two half an the answer broke off; ask again three half an bob" == talk
    asked = [json.loads(ask["body"])["messages"] for ask in found["asked"] if "body" in ask]
    assert asked == [[{"role": "user", "content": text}] for text in ("one", "two", "three")]


@needs_node
def test_what_was_thought_stands_before_the_answer_and_goes_back(tmp_path: Path, coterie: Coterie) -> None:
    deltas = [{"content": ""}, {"reasoning_content": "Hm, "}, {"reasoning_content": EVIL}, {"content": "Four."}]
    head = {"id": "1", "model": "bob"}
    parts = [f"data: {json.dumps({**head, 'choices': [{'delta': delta}]})}\n\n" for delta in deltas]
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie)))],
        "/v1/chat/completions": [{"body": "".join([*parts, "data: [DONE]\n\n"])}] * 2,
    }
    found = play(tmp_path, answers, [["ask", "submit", "2 + 2?"], ["ask", "submit", "sure?"]])
    talk = f"2 + 2? thought Hm, {EVIL} Four. bob sure? thought Hm, {EVIL} Four. bob"
    assert " ".join(found["shown"]["talk"].split()) == talk
    *_, asked = [json.loads(ask["body"])["messages"] for ask in found["asked"] if "body" in ask]
    assert asked[1] == {"role": "assistant", "content": "Four.", "reasoning_content": f"Hm, {EVIL}"}


def answered(*pieces: str, reason: str = "stop", done: bool = True, **more: object) -> dict:
    """An answer as it is streamed, in these pieces."""
    deltas = [{"delta": {"content": piece}} for piece in pieces]
    choices = [*deltas, *([{"delta": {}, "finish_reason": reason}] if done else [])]
    parts = [f"data: {json.dumps({'id': '1', 'model': 'bob', 'choices': [one]})}\n\n" for one in choices]
    return {"body": "".join([*parts, "data: [DONE]\n\n"] if done else parts), **more}


MARKDOWN = f"""## How
Use `sorted`, **not** {EVIL}:

```python
def f(a):
    return `a` **2
```
~~~
``` no end of it
~~~
* one `open
** two"""


@needs_node
@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_code_stands_apart_however_it_comes(tmp_path: Path, coterie: Coterie, size: int) -> None:
    pieces = [MARKDOWN[at : at + size] for at in range(0, len(MARKDOWN), size)]
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie)))],
        "/v1/chat/completions": [answered(*pieces), answered("so")],
    }
    found = play(tmp_path, answers, [["ask", "submit", "how?"], ["ask", "submit", "and?"]])
    blocks = ["def f(a):\n     return `a` **2\n", "``` no end of it\n"]  # lines are joined by a blank in this document
    assert found["marked"]["pre"] == blocks
    assert found["marked"]["code"] == ["sorted", *blocks]
    assert found["marked"]["strong"] == ["not"]
    talk = found["shown"]["talk"]
    assert f"how? How\n Use  sorted ,  not  {EVIL}:\n" in talk
    assert "* one `open\n ** two" in talk
    *_, asked = [json.loads(ask["body"])["messages"] for ask in found["asked"] if "body" in ask]
    assert asked[1] == {"role": "assistant", "content": MARKDOWN}


@needs_node
def test_a_block_that_does_not_end_is_shown(tmp_path: Path, coterie: Coterie) -> None:
    """Cut by a limit, which is told."""
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie)))],
        "/v1/chat/completions": [answered("So:\n```\nx = ", "1", reason="length")],
    }
    details = {"expert": "bob", "confidence": 1, "hit": True, "ttft_s": 1, "tokens_per_s": 2, "reason": "it was named"}
    last = f"data: {json.dumps({'id': '1', 'choices': [], 'coterie': details})}\n\n"
    body = answers["/v1/chat/completions"][0]["body"]
    answers["/v1/chat/completions"][0]["body"] = body.replace("data: [DONE]", last + "data: [DONE]")
    found = play(tmp_path, answers, [["ask", "submit", "how?"]])
    assert found["marked"]["pre"] == ["x = 1"]
    assert found["shown"]["talk"].endswith("2 tokens/s · cut: it has as many tokens as it may")


@needs_node
def test_what_was_read_before_a_stop_may_be_asked_about(tmp_path: Path, coterie: Coterie) -> None:
    """Without any, the question is there to be asked again, as where the answer fails."""
    failed = {"body": 'data: {"error": {"message": "no"}}\n\n'}
    begun, none = answered("It is ", "lo", done=False, hangs=True), answered(done=False, hangs=True)
    answers = {
        "/v1/events": [stream(("snapshot", snapshot(coterie)))],
        "/v1/chat/completions": [begun, answered("Well."), none, failed],
    }
    stop = ["stop", "click", None]
    does = [["ask", "submit", "why?"], stop, ["ask", "submit", "why that?"], ["ask", "submit", "third"], stop]
    found = play(tmp_path, answers, does)
    asked = [json.loads(ask["body"])["messages"] for ask in found["asked"] if "body" in ask]
    said = [("user", "why?"), ("assistant", "It is lo"), ("user", "why that?")]
    assert [(one["role"], one["content"]) for one in asked[1]] == said
    assert "why? It is lo stopped why that? Well. bob third  stopped" in found["shown"]["talk"]
    assert found["prompt"] == "third"
    found = play(tmp_path, {**answers, "/v1/chat/completions": answers["/v1/chat/completions"][3:]}, does[:1])
    assert found["prompt"] == "why?"


@needs_node
def test_a_folder_without_a_router_asks_an_expert(tmp_path: Path, folder: Path) -> None:
    """Its own name would be refused: nobody chooses there."""
    with Coterie.open(folder) as coterie:
        answers = {
            "/v1/events": [stream(("snapshot", snapshot(coterie)))],
            "/v1/chat/completions": [answered("x")],
        }
        found = play(tmp_path, answers, [["ask", "submit", "hello"]])
    assert found["shown"]["model"] == "ada bob cyd dan"
    assert json.loads(next(ask["body"] for ask in found["asked"] if "body" in ask))["model"] == "ada"
    with Coterie.open(folder / "bob") as coterie:
        answers = {"/v1/events": [stream(("snapshot", snapshot(coterie)))]}
        found = play(tmp_path, answers, [])
    assert (found["shown"]["model"], found["chosen"]) == ("bob", "bob")


@needs_node
def test_many_experts_can_be_looked_through(tmp_path: Path, coterie: Coterie) -> None:
    many = snapshot(coterie)
    first = many["experts"][0]
    many["experts"] = [{**first, "name": f"Qwen2.5-{n}b.q4_k_m", "description": "odd" * (n % 2)} for n in range(150)]
    answers = {"/v1/events": [stream(("snapshot", many))]}
    for sought, count in ((None, 150), ("2.5-14", 11), (" ODD ", 75), ("zz", 0)):
        found = play(tmp_path, answers, [["find", "input", sought]])
        assert (found["found"], found["sought"]) == (count, True)
    answers = {"/v1/events": [stream(("snapshot", snapshot(coterie)))]}
    assert play(tmp_path, answers, [["find", "input", "zz"]])["found"] == 4  # few are not looked through


@needs_node
def test_numbers_are_plain(tmp_path: Path, coterie: Coterie) -> None:
    loaded = [
        {"expert": "ada", "size_bytes": size, "seconds": s, "bytes_per_s": rate, "time": 1.0}
        for size, s, rate in ((1023 << 10, 0.99999, 1010 * 2**20), (700, 1234.5, 12.345), (2**30 - 1, 0.1236, 5e9))
    ]
    found = play(tmp_path, {"/v1/events": [stream(*(("load_ended", facts) for facts in loaded))]}, [])
    switches = found["shown"]["switches"]
    for said in ("1023 KiB in 1.00 s · 1010 MiB/s", "700 B in 1235 s · 12 B/s", "1.00 GiB in 124 ms · 4.66 GiB/s"):
        assert said in switches


@needs_node
def test_tiles_stay_while_things_happen(tmp_path: Path, coterie: Coterie) -> None:
    """A tile that is replaced loses the focus, and a click that has begun."""
    answers = {"/v1/events": [stream(("snapshot", snapshot(coterie))), stream(("pinned", {"expert": "ada"}))]}
    found = play(tmp_path, answers, [["model", "change", None]])
    assert "absent, pinned" in found["shown"]["experts"]
    assert found["filled"] == 0
    whole = stream(("snapshot", snapshot(coterie)))
    found = play(tmp_path, {"/v1/events": [whole, whole, stream(("pinned", {"expert": "ada"}))]}, [])
    assert "absent, pinned" in found["shown"]["experts"]
    assert found["made"] == 1  # the page asked anew: the same experts have the same tiles


@needs_node
def test_other_experts_have_other_tiles(tmp_path: Path, coterie: Coterie) -> None:
    fewer = snapshot(coterie)
    del fewer["experts"][1]
    found = play(tmp_path, {"/v1/events": [stream(("snapshot", snapshot(coterie))), stream(("snapshot", fewer))]}, [])
    assert (len(found["states"]), found["made"]) == (3, 2)
    assert "bob" not in found["shown"]["model"]


@needs_node
def test_a_key_is_asked_for_and_sent(tmp_path: Path, coterie: Coterie) -> None:
    answers = {"/v1/events": [{"key": "secret", **stream(("snapshot", snapshot(coterie)))}]}
    found = play(tmp_path, answers, [])
    assert (found["shown"]["link"], found["hidden"], len(found["asked"])) == ("no key", False, 1)
    assert play(tmp_path, answers, [["key-form", "submit", "wrong"]])["hidden"] is False
    found = play(tmp_path, answers, [["key-form", "submit", text] for text in ("wrong", "secret")])
    sent = [ask["headers"].get("Authorization") for ask in found["asked"]]
    assert sent[:3] == [None, "Bearer wrong", "Bearer secret"]
    assert found["hidden"] is True
    assert found["shown"]["title"] == "four"
