"""A knn router that compares vectors: its model on the engine of its experts, in memory of its own."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from tests.system.test_server import served
from tests.system.tiny import write_expert

from coterie.api import Coterie, Options, Query
from coterie.cli.route import routes_of
from coterie.composition.composition import load_composition
from coterie.composition.routers.llm import ROUTER
from coterie.core.errors import CoterieError, UnsupportedError

EXAMPLES = {
    "ada": ("12 + 30", "47 + 85", "9 + 1", "100 + 7"),
    "bob": ("write a poem", "a song of rain", "sing to me", "verses about the sea"),
    "cyd": ("SELECT NAME", "DROP TABLE", "INSERT INTO T", "GROUP BY AGE"),
}
ASKED = {"ada": "47 + 86", "bob": "sing to me!", "cyd": "SELECT NAMES"}  # a random model knows letters alone


@pytest.fixture(scope="module")
def path(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vectors")
    write_expert(root / "router", 9)
    experts = "".join(
        f'[[expert]]\nname = "{name}"\ncheckpoint = "{folder / name}"\nexamples = {list(EXAMPLES.get(name, ()))}\n'
        for name in ("ada", "bob", "cyd", "dan")
    ).replace("examples = []\n", "")
    router = '[router]\nkind = "knn"\ncheckpoint = "router"\nfallback = "dan"\nsimilarity = 0.1\nthreshold = 0.4\n'
    (root / "c.toml").write_text(f'name = "by-vectors"\n{router}{experts}')
    return root / "c.toml"


def test_prompts_go_where_their_likes_are(path: Path) -> None:
    with Coterie.open(path) as coterie:
        for expert, text in ASKED.items():
            route = coterie.route(Query.text(text))
            assert route.expert == expert, route
            assert route.reason.startswith("nearest: ")
        example = coterie.route(Query.text("47 + 85"))
        assert (example.expert, example.confidence) == ("ada", pytest.approx(1.0, abs=0.5))
        answer = coterie.ask(Query.text(ASKED["bob"]))
        assert answer.expert == "bob"
        assert answer.routed_s > 0
        again = [answer.route for answer in coterie.ask_all(list(ASKED.values()))]
        assert [route.expert for route in again] == list(ASKED)
    routes = routes_of(load_composition(path), list(ASKED.values()))
    assert [route.expert for route in routes] == list(ASKED)


def test_its_model_has_memory_of_its_own_and_no_expert_goes_for_it(path: Path) -> None:
    with Coterie.open(path, Options(near_bytes=100 * 1024)) as coterie:
        assert coterie.parts.engine.metrics.switches == 1  # its own
        answer = coterie.ask(ASKED["ada"])
        assert (answer.expert, coterie.resident()) == ("ada", ("ada",))
        assert coterie.plan.router_bytes > 0
        assert ROUTER not in coterie.resident()
        assert coterie.route(Query.text(ASKED["cyd"])).expert == "cyd"
        assert coterie.resident() == ("ada",)


def test_a_long_prompt_is_routed_by_its_beginning(path: Path) -> None:
    with Coterie.open(path) as coterie:
        long = "47 + 86" + " and so on" * 100
        assert coterie.route(Query.text(long)) == coterie.route(Query.text(long[:127]))  # the context holds 128


def test_over_http_beside_embeddings(path: Path, http: httpx.Client) -> None:
    with served(Coterie.open(path)) as url:
        body = {"model": "by-vectors", "messages": [{"role": "user", "content": ASKED["cyd"]}], "max_tokens": 2}
        assert http.post(f"{url}/v1/chat/completions", json=body).json()["coterie"]["expert"] == "cyd"
        found = http.post(f"{url}/v1/embeddings", json={"model": "ada", "input": "a"})
        assert len(found.json()["data"][0]["embedding"]) == 32


def test_who_makes_tokens_up_opens_and_routes_nothing(path: Path) -> None:
    with (
        Coterie.open(path, Options(device="synthetic:toy")) as coterie,
        pytest.raises(UnsupportedError, match="asks a model"),
    ):
        coterie.route(Query.text("a"))


def test_a_router_model_that_is_not_there_is_told(path: Path) -> None:
    broken = path.with_name("broken.toml")
    broken.write_text(path.read_text().replace('"router"\nfallback', '"nowhere"\nfallback'))
    with pytest.raises(CoterieError, match="nowhere"):
        Coterie.open(broken)
