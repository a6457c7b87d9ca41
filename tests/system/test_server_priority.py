"""Priorities over HTTP: every endpoint takes them, and a key may be needed to go before others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.system.serving import served
from tests.system.test_server_guard import MESSAGES
from tests.system.tiny import write_reranker
from typer.testing import CliRunner

from coterie.api import Coterie
from coterie.cli.main import app

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 1, "n": 2},
    "/v1/completions": {"prompt": ["x", "y"], "max_tokens": 1},
    "/v1/responses": {"input": "x", "max_output_tokens": 1},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 1},
    "/v1/embeddings": {"input": ["x", "y"]},
    "/v1/rerank": {"model": "judge", "query": "x", "documents": ["y", "z"]},
}
KEYS = ("for-all", "for-chats")


@pytest.fixture(scope="module")
def judged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that chats, and a reranker."""
    root = tmp_path_factory.mktemp("judged")
    shutil.copytree(folder / "ada", root / "ada")
    write_reranker(root / "judge", 3)
    return root


@pytest.fixture(scope="module")
def server(judged: Path) -> Iterator[tuple[str, list[int]]]:
    """Where it is, and the priorities of what the engine was asked."""
    coterie = Coterie.open(judged)
    asked = noting(coterie)
    with served(coterie, KEYS[:1], urgent=KEYS[1:]) as url:
        yield url, asked


def noting(coterie: Coterie) -> list[int]:
    """The priorities of what its engine is asked from now on."""
    asked, submit = list[int](), coterie.parts.engine.submit

    def noted(request: Any) -> None:
        asked.append(request.priority)
        submit(request)

    coterie.parts.engine.submit = noted  # type: ignore[method-assign]
    return asked


def post(server: tuple[str, list[int]], path: str, key: str = KEYS[1], **more: Any) -> httpx.Response:
    server[1].clear()
    body = {"model": "ada", **BODIES[path], **more}
    return httpx.post(server[0] + path, json=body, headers={"Authorization": f"Bearer {key}"}, timeout=30)


@pytest.mark.parametrize("path", BODIES)
def test_every_endpoint_takes_a_priority(server: tuple[str, list[int]], path: str) -> None:
    for given, found in (
        ({"priority": -3}, -3),
        ({"priority": 2.0}, 2),
        ({"priority": None}, 0),
        ({"service_tier": "flex"}, 1),
        ({"service_tier": "priority"}, -1),
        ({"service_tier": "auto"}, 0),
        ({"priority": 5, "service_tier": "priority"}, 5),
        ({}, 0),
    ):
        got = post(server, path, **given)
        assert got.status_code == 200, got.text
        assert set(server[1]) == {found}


def test_vectors_and_scores_take_one_in_python_too(judged: Path) -> None:
    with Coterie.open(judged) as coterie:
        asked = noting(coterie)
        coterie.embed(["x", "y"], "ada", priority=3)
        coterie.rerank("x", ["y", "z"], priority=-2)
        coterie.embed("x", "ada")
        assert asked == [3, 3, -2, -2, 0]


@pytest.mark.parametrize("given", ["soon", 1.5, True, [1], 2**64])
def test_what_is_no_priority_is_refused_in_a_sentence(server: tuple[str, list[int]], given: object) -> None:
    for path in BODIES:
        got = post(server, path, priority=given)
        assert got.status_code == 400
        assert got.json()["error"]["message"].startswith("[priority] is ")
        assert got.json()["error"]["message"].endswith("; give a whole number of 64 bits")
    assert not server[1]


def test_where_some_keys_may_go_first_others_may_not(server: tuple[str, list[int]]) -> None:
    for path in BODIES:
        assert post(server, path, KEYS[0], priority=1).status_code == 200
        assert post(server, path, KEYS[0], service_tier="priority").status_code == 200
        assert set(server[1]) == {0}  # a tier that is not theirs is the usual one
        got = post(server, path, KEYS[0], priority=-1)
        assert (got.status_code, server[1]) == (400, [])
        fact = "is -1, but only requests with a key of --urgent-key may be below 0; give 0 or more"
        assert got.json()["error"]["message"] == f"[priority] {fact}"


def test_without_such_keys_all_may(composition: Path) -> None:
    for keys in ((), KEYS[:1]):
        with served(Coterie.open(composition), keys) as url:
            assert post((url, []), "/v1/completions", KEYS[0], priority=-1).status_code == 200


def test_urgent_keys_alone_would_leave_nobody_else() -> None:
    got = CliRunner().invoke(app, ["serve", "demo", "--urgent-key", "x"])
    assert got.exit_code == 2
    assert (
        "--urgent-key] is given without --api-key, so other clients would have no key to use; give --api-key too"
        in " ".join(got.stderr.split())
    )
