"""Whose sampling holds: a request's, the composition file's, the checkpoint's, or none, by every door."""

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

from coterie import Coterie, Options, Query, SamplingParams
from coterie.core.sampling import PartialSampling
from coterie.engine.request import ChoiceParams

SAID = {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "repetition_penalty": 1.5}
FILE = """name = "duo"
[router]
kind = "rules"
fallback = "plain"
[[router.rule]]
expert = "warm"
keywords = ["warm"]
[[expert]]
name = "warm"
checkpoint = "warm"
[expert.sampling]
top_p = 0.5
[[expert]]
name = "plain"
checkpoint = "plain"
[expert.sampling]
temperature = 3
[[expert]]
name = "alike"
checkpoint = "plain"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert whose checkpoint samples, and one that says nothing."""
    root = tmp_path_factory.mktemp("sampling")
    for seed, name in enumerate(("warm", "plain")):
        write_expert(root / name, seed)
    (root / "warm" / "generation_config.json").write_text(json.dumps(SAID))
    return root


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    path = folder / "duo.toml"
    path.write_text(FILE)
    return path


def text_of(coterie: Coterie, expert: str, **fields) -> str:
    return coterie.ask(replace(Query.text("a warm one", expert), max_tokens=12, **fields)).text


def test_an_expert_is_asked_as_its_checkpoint_says(folder: Path) -> None:
    """By default; a request's own settings go before, each by itself, and whole ones leave nothing open."""
    with Coterie.open(folder) as coterie, Coterie.open(folder, Options(sampling="greedy")) as greedy:
        whole = {"sampling": SamplingParams(5.0, top_p=0.9), "choice": ChoiceParams(repetition_penalty=1.5)}
        drawn = text_of(greedy, "warm", **whole)
        assert text_of(coterie, "warm") == text_of(coterie, "warm", **whole) == drawn != text_of(greedy, "warm")
        assert text_of(coterie, "warm", sampling=SamplingParams()) == text_of(greedy, "warm")
        penalised = text_of(greedy, "warm", choice=ChoiceParams(repetition_penalty=1.5))
        assert text_of(coterie, "warm", sampling=PartialSampling(temperature=0)) == penalised
        cool = PartialSampling(temperature=0, repetition_penalty=1.0)
        assert text_of(coterie, "warm", sampling=cool) == text_of(greedy, "warm")
        seeded = [text_of(coterie, "warm", sampling=PartialSampling(seed=seed)) for seed in (1, 2, 1)]
        assert seeded[0] == seeded[2] != seeded[1]
        assert text_of(coterie, "plain") == text_of(greedy, "plain")


def test_a_composition_file_goes_before_and_who_answers_counts(file: Path) -> None:
    """Asked by the composition's name, the settings are those of the expert that answers."""
    with Coterie.open(file) as coterie:
        for name, routed in (("warm", "a warm one"), ("plain", "another one")):
            query = replace(Query.text(routed), max_tokens=12)
            assert coterie.ask(query).text == coterie.ask(replace(query, model=name)).text
        both = {"sampling": SamplingParams(5.0, top_p=0.5), "choice": ChoiceParams(repetition_penalty=1.5)}
        assert text_of(coterie, "warm") == text_of(coterie, "warm", **both)
        assert text_of(coterie, "plain") == text_of(coterie, "plain", sampling=SamplingParams(3.0))
        assert text_of(coterie, "alike") == text_of(coterie, "alike", sampling=SamplingParams())
        assert text_of(coterie, "alike") != text_of(coterie, "plain")


@pytest.fixture(scope="module")
def http(file: Path) -> Iterator[httpx.Client]:
    with served(Coterie.open(file)) as url, httpx.Client(base_url=url) as client:
        yield client


ASKED = {"messages": [{"role": "user", "content": "a warm one"}], "seed": 3}
# Each endpoint's body, and where its answer has the text.
DOORS = {
    "/v1/chat/completions": (ASKED | {"max_tokens": 12}, lambda body: body["choices"][0]["message"]["content"]),
    "/v1/responses": (
        {"input": "a warm one", "seed": 3, "max_output_tokens": 12},
        lambda body: body["output"][0]["content"][0]["text"],
    ),
    "/v1/messages": (ASKED | {"max_tokens": 12}, lambda body: body["content"][0]["text"]),
    "/v1/completions": (
        {"prompt": "a warm one", "seed": 3, "max_tokens": 12},
        lambda body: body["choices"][0]["text"],
    ),
}


@pytest.mark.parametrize("path", DOORS)
def test_every_endpoint_has_them(http: httpx.Client, file: Path, path: str) -> None:
    body, text = DOORS[path]
    said, cool = text(http.post(path, json={"model": "duo", **body}).json()), {"temperature": 0}
    assert said == text(http.post(path, json={"model": "warm", "temperature": 5, "top_p": 0.5, **body}).json())
    whole = SamplingParams(5.0, top_p=0.5, seed=3), ChoiceParams(repetition_penalty=1.5)
    query = replace(Query.text("a warm one", "warm"), max_tokens=12, raw=path == "/v1/completions")
    with Coterie.open(file, Options(sampling="greedy")) as greedy:
        assert said == greedy.ask(replace(query, sampling=whole[0], choice=whole[1])).text
        answer = greedy.ask(replace(query, sampling=SamplingParams(), choice=whole[1]))
    assert text(http.post(path, json={"model": "warm", **body, **cool}).json()) == answer.text


def test_models_and_check_show_them(http: httpx.Client, folder: Path, file: Path, tmp_path: Path) -> None:
    rows = {row["id"]: row["coterie"] for row in http.get("/v1/models").json()["data"]}
    warm = {"temperature": 5.0, "top_p": 0.5, "repetition_penalty": 1.5}
    assert [rows[name]["sampling"] for name in ("warm", "plain", "alike")] == [
        warm,
        {"temperature": 3},
        {"temperature": 0},
    ]
    told = run("check", file).stdout
    assert "sampling of warm: temperature 5, top_p 0.5, repetition_penalty 1.5\n" in told
    assert "sampling of plain: temperature 3\nsampling of alike: greedy\n" in told
    assert json.loads(run("check", file, "--json").stdout)["experts"]["warm"]["sampling"] == warm
    assert "sampling of" not in run("check", folder / "plain").stdout
    write_expert(tmp_path / "odd", 3)
    (tmp_path / "odd" / "generation_config.json").write_text('{"do_sample": true, "top_p": 7}')
    told = run("check", tmp_path).stdout
    assert "sampling of odd: temperature 1\n" in told
    assert "note: odd: top_p is 7 in generation_config.json, which is ignored: allowed is above 0" in told


def test_run_has_them_and_options_go_before(folder: Path) -> None:
    def said(*words: str) -> str:
        args = ("run", folder, "--expert", "warm", "--seed", "3", "--max-tokens", "12", "--json", *words, "a warm one")
        return json.loads(run(*args).stdout)["text"]

    drawn, greedy = said(), said("--sampling", "greedy")
    assert drawn == said("--temperature", "5") == said("--top-p", "0.9") == said("--top-k", "0") != greedy
    assert said("--sampling", "greedy", "--temperature", "5") not in (drawn, greedy)
    assert said("--temperature", "0") not in (drawn, greedy)  # the penalty is still the checkpoint's
    refused(run("run", folder, "--sampling", "cold", "x"), "--sampling", "'cold'", "use checkpoint or greedy")


def test_a_rescan_finds_them(folder: Path, tmp_path: Path) -> None:
    write_expert(tmp_path / "one", 0)
    for how, wanted in (("checkpoint", {"top_k": 2, "temperature": 1.0}), ("greedy", {"temperature": 0.0})):
        with Coterie.open(tmp_path, Options(sampling=how)) as coterie:
            name = f"late-{how}"
            write_expert(tmp_path / name, 1)
            (tmp_path / name / "generation_config.json").write_text('{"do_sample": true, "top_k": 2}')
            assert coterie.rescan().added == (name,)
            assert coterie.models[name].advised.sampling.explicit == wanted


def test_made_up_tokens_are_drawn_by_none(file: Path) -> None:
    """A device that computes nothing refuses penalties: those of a checkpoint are none there, it is greedy."""
    with Coterie.open(file, Options(device="synthetic:a100")) as coterie:
        assert coterie.ask(replace(Query.text("x", "warm"), max_tokens=3)).synthetic
        assert coterie.models["warm"].advised.sampling.explicit == {"temperature": 0.0}
