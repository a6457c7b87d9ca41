"""A prompt that is too long for the expert that the router chose goes to the next for which it is not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from tests.system.commands import refused, run
from tests.system.serving import served
from tests.system.tiny import write_expert

from coterie import Coterie, Options, Query
from coterie.api import routes
from coterie.api.routes import served_routes
from coterie.api.texts import Text, open_texts
from coterie.composition.composition import load_composition
from coterie.core.errors import ContextError, RequestError, UsageError
from coterie.models.model import Model

CONTEXTS = {"short": 64, "shorter": 40, "long": 400, "longest": 800}
RULES = """name = "four"
[router]
kind = "rules"
match = "weight"
fallback = "{fallback}"
"""


def composition_of(folder: Path, fallback: str, weights: dict[str, float]) -> Path:
    """Experts whose rules all hold, each with a weight."""
    rules = "".join(
        f'[[router.rule]]\nexpert = "{name}"\nmin_chars = 1\nweight = {weight}\n' for name, weight in weights.items()
    )
    experts = "".join(f'[[expert]]\nname = "{name}"\ncheckpoint = "{folder / name}"\n' for name in CONTEXTS)
    path = folder / f"{fallback}-{'-'.join(weights)}.toml"
    path.write_text(RULES.format(fallback=fallback) + rules + experts)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("contexts")
    for seed, (name, context) in enumerate(CONTEXTS.items()):
        write_expert(root / name, seed, max_position_embeddings=context)
    return root


@pytest.fixture(scope="module")
def coterie(folder: Path) -> Iterator[Coterie]:
    with Coterie.open(composition_of(folder, "longest", {"short": 5, "shorter": 4, "long": 3})) as found:
        yield found


def few(text: str, model: str = "") -> Query:
    return replace(Query.text(text, model), max_tokens=3)


@pytest.mark.parametrize(
    ("letters", "expert"),
    [(10, "short"), (61, "short"), (62, "long"), (397, "long"), (398, "longest"), (797, "longest")],
)
def test_the_best_runner_up_with_room_takes_it_or_else_the_fallback(
    coterie: Coterie, letters: int, expert: str
) -> None:
    """A template adds two tokens here, and a prompt must leave room for one."""
    answer = coterie.ask(few("x" * letters))
    assert (answer.expert, answer.prompt_tokens) == (expert, letters + 2)
    told = f"short has a context of 64 tokens, and the prompt {letters + 2}; " in answer.route.reason
    assert told == (expert != "short")
    assert answer.route.confidence == answer.route.confidence_in(expert)
    assert ("short" in dict(answer.route.runners_up)) == (expert != "short")


def test_what_is_too_long_for_all_is_refused_by_the_first(coterie: Coterie) -> None:
    with pytest.raises(RequestError, match=r"\[short\] the prompt has 802 tokens but the context .* 64"):
        coterie.ask(few("x" * 800))


def test_what_is_far_too_long_is_not_cut_into_tokens(
    folder: Path, coterie: Coterie, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters = 100_000
    monkeypatch.setattr("coterie.checkpoint.tokenizer.Tokenizer._encoded", None)
    with pytest.raises(
        ContextError, match=r"\[short\] the prompt has 1000\d\d characters, more than 63 tokens, but .* 64; "
    ):
        coterie.ready(few("x" * letters))
    with pytest.raises(ContextError, match=r"\[longest\] .* shorten it to 799 tokens or fewer"):
        coterie.ready(few("x" * letters, "longest"))
    monkeypatch.undo()
    with Coterie.open(composition_of(folder, "longest", {"shorter": 5})) as other:
        answer = other.ask(few("x" * 700))
        assert (answer.expert, answer.prompt_tokens) == ("longest", 702)
        assert "shorter has a context of 40 tokens, and the prompt more; " in answer.route.reason


def test_a_prompt_that_is_too_long_is_refused_before_other_choices_have_its_tokens(coterie: Coterie) -> None:
    with pytest.raises(ContextError, match=r"\[short\] the prompt has 902 tokens but the context .* holds 64"):
        coterie.ready(few("x" * 900))


def test_who_names_an_expert_is_given_no_other(coterie: Coterie) -> None:
    for query in (few("x" * 100, "short"), few("@short " + "x" * 100)):
        with pytest.raises(RequestError, match=r"\[short\] the prompt has 102 tokens"):
            coterie.ask(query)


def test_a_prompt_that_the_kv_cache_has_no_room_for_goes_on_too(folder: Path) -> None:
    """Of four key and value heads a token takes twice as much as of two."""
    write_expert(folder / "wide", 9, max_position_embeddings=800, num_key_value_heads=4)
    path = folder / "kv.toml"
    path.write_text(
        RULES.format(fallback="wide")
        + "".join(
            f'[[router.rule]]\nexpert = "{e}"\nmin_chars = 1\nweight = {w}\n' for e, w in (("wide", 2), ("long", 1))
        )
        + "".join(f'[[expert]]\nname = "{e}"\ncheckpoint = "{folder / e}"\n' for e in ("wide", "long"))
    )
    with Coterie.open(path, Options(kv_bytes=64 * 1024)) as coterie:
        kv, models = coterie.parts.kv, coterie.models
        wide, long = (kv.tokens_held(models[name].kv) for name in ("wide", "long"))
        assert wide < 300 < long
        answer = coterie.ask(few("x" * 300))
        assert answer.expert == "long"
        assert f"wide has room for {wide} tokens in the KV cache, and the prompt 302" in answer.route.reason
        with pytest.raises(RequestError, match="long"):
            coterie.ask(few("x" * 400, "long"))
        for letters in (10, wide - 2, wide - 1, long - 2, long - 1):
            text = "x" * letters
            told = json.loads(run("route", path, text, "--kv", "64KiB", "--json").stdout)
            assert told == {"prompt": text, **coterie.route(few(text)).to_dict()}
        assert json.loads(run("route", path, "x" * 300, "--json").stdout)["expert"] == "wide"
    with Coterie.open(path, Options(kv_bytes=64 * 1024, kv_type="int8")) as coterie:
        kept = [coterie.parts.kv.tokens_held(coterie.models[name].kv) for name in ("wide", "long")]
        assert kept[1] < wide  # heads of 8 channels, each in a block of 32
        for text, expert in (("x" * (kept[0] - 2), "wide"), ("x" * kept[0], "long")):
            told = json.loads(run("route", path, text, "--kv", "64KiB", "--kv-type", "int8", "--json").stdout)
            assert told == {"prompt": text, **coterie.route(few(text)).to_dict()}
            assert told["expert"] == expert
    refused(run("route", path, "x", "--kv", "1KiB"), "[--kv]", "set --kv to at least")


def test_over_http_the_answer_says_so(folder: Path) -> None:
    path = composition_of(folder, "longest", {"shorter": 2, "long": 1})
    with served(Coterie.open(path)) as url, httpx.Client(base_url=url) as http:
        body = {"model": "four", "max_tokens": 3, "messages": [{"role": "user", "content": "x" * 50}]}
        got = http.post("/v1/chat/completions", json=body).json()
        assert got["coterie"]["expert"] == got["model"] == "long"
        assert got["coterie"]["reason"].startswith("shorter has a context of 40 tokens, and the prompt 52; ")
        body["messages"][0]["content"] = "x" * 900
        refused = http.post("/v1/chat/completions", json=body)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_nobody_is_asked_whether_a_query_fits_without_need(coterie: Coterie, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether an expert takes tools is found by writing calls with its template, which takes milliseconds each."""
    asked: list[str] = []
    unfit = Text.unfit

    def counted(self: Text, query: Query) -> str:
        asked.append(self.expert)
        return unfit(self, query)

    monkeypatch.setattr(Text, "unfit", counted)
    coterie.ask(few("x"))
    assert asked == ["short"]
    asked.clear()
    coterie.ask(few("x", "long"))
    assert asked == []
    coterie.ask(few("x" * 100))
    assert asked == ["short", "shorter", "long"]
    asked.clear()
    tools = ({"type": "function", "function": {"name": "now"}},)
    with pytest.raises(UsageError, match="tools"):
        coterie.ask(replace(few("x"), tools=tools))
    assert asked[:4] == ["short", "shorter", "long", "longest"]


@pytest.mark.parametrize("letters", [10, 61, 62, 398, 900])
def test_route_tells_what_serving_would_do(coterie: Coterie, folder: Path, letters: int) -> None:
    """Where it is too long for all, the first would refuse it."""
    path, text = composition_of(folder, "longest", {"short": 5, "shorter": 4, "long": 3}), "x" * letters
    told = json.loads(run("route", path, text, "--json").stdout)
    assert told == {"prompt": text, **coterie.route(few(text)).to_dict()}
    if letters < 900:
        assert told["expert"] == coterie.ask(few(text)).expert
    named = json.loads(run("route", path, "@short " + text, "--json").stdout)
    assert named["expert"] == "short"


def test_route_opens_nobody_without_need(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def noted(models: dict[str, Model]) -> dict[str, Text]:
        opened.extend(models)
        return open_texts(models)

    monkeypatch.setattr(routes, "open_texts", noted)
    found = load_composition(composition_of(folder, "longest", {"short": 5, "shorter": 4, "long": 3}))
    assert [route.expert for route in served_routes(found, ["x", "y", "@longest z"])] == ["short", "short", "longest"]
    assert opened == ["short"]
    assert served_routes(found, ["x" * 100])[0].expert == "long"
    assert opened == ["short", "short", "shorter", "long"]
