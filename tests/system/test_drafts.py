"""Draft experts on a device that computes: answers are those without, and a composition says who guesses for whom."""

from __future__ import annotations

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.system.commands import refused, run
from tests.system.serving import leaves, served, until
from tests.system.tiny import write_expert, write_state_space

from coterie.api import Coterie, Options, Query
from coterie.api.types import Message
from coterie.checkpoint.layout import BLOCK_BYTES
from coterie.cli.options import out
from coterie.cli.ps import show
from coterie.cli.serve import _say
from coterie.core.errors import UsageError
from coterie.core.sampling import PartialSampling
from coterie.engine.policy import Policy
from coterie.engine.request import ChoiceParams
from coterie.engine.speculate.guess import Price
from coterie.graph.ops import BF16, INT8, INT16
from coterie.memory.slab import round_up
from coterie.models.model import AUTO
from coterie.server.metrics import StatusCollector

GUESSING = Policy(max_guesses=7, max_steps=2)


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`large`; `same`, which says what it says; `small`, of another shape and context, which seldom does."""
    root = tmp_path_factory.mktemp("office")
    for name in ("large", "same"):
        write_expert(root / name, 3, num_hidden_layers=3)
    write_expert(root / "small", 5, hidden_size=48, num_hidden_layers=1, max_position_embeddings=100)
    return root


@pytest.fixture(autouse=True)
def _priced(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the large one are as good as free, and so are rows: of experts so small nothing would be worth it."""

    def of(expert: object, balance: object) -> Price:
        first = 2.0**40 if expert.expert_id == "large" else 1.0  # type: ignore[attr-defined]
        return Price(first, first / 64, first / 64, 0.0, 0.0)

    monkeypatch.setattr(Price, "of", of)


def queries() -> list[Query]:
    """Greedy and drawn, some with logprobs, penalties and stop strings."""
    said, found = (Message("user", "a b a b a c"),), []
    for number in range(8):
        sampling = PartialSampling(temperature=number % 2 * 0.7, top_k=3, presence_penalty=number // 4, seed=number)
        choice = ChoiceParams(top_logprobs=2 if number % 3 == 2 else None)
        stop = ("zz", "q") if number % 4 == 3 else ()
        found.append(Query(said, "large", sampling, 20 + number, stop, number > 5, ignore_end=True, choice=choice))
    return found


def answers(
    root: Path, draft: str, together: bool, activations: str = INT16, kv_type: str = AUTO
) -> tuple[list[object], tuple[int, int], int]:
    options = Options(draft=draft, policy=GUESSING, threads=1, activations=activations, kv_type=kv_type)
    with Coterie.open(root, options) as coterie:
        asked, parts = queries(), coterie.parts
        if draft:  # by itself it comes in while it is wanted, and these answers are short
            coterie.load(draft)
        got = coterie.ask_all(asked) if together else [coterie.ask(query) for query in asked]
        parts.engine.check_integrity()
        assert parts.kv.free_blocks == parts.kv.num_blocks
        metrics = parts.engine.metrics
        told = [(answer.token_ids, answer.text, answer.logprobs) for answer in got]
        return told, (metrics.drafted_tokens, metrics.accepted_drafted_tokens), metrics.steps


@pytest.mark.parametrize(
    ("together", "how"), [(False, (INT16, AUTO)), (True, (INT16, AUTO)), (True, (BF16, AUTO)), (True, (INT16, INT8))]
)
@pytest.mark.parametrize("draft", ["small", "same"])
def test_answers_are_the_same_whoever_guesses(office: Path, draft: str, together: bool, how: tuple[str, str]) -> None:
    plain, none, before = answers(office, "", together, *how)
    drafted, (guessed, right), steps = answers(office, draft, together, *how)
    assert drafted == plain
    assert none == (0, 0)
    assert guessed > 0
    if draft == "same":  # with the same random numbers and penalties it draws the same
        assert right > 0.8 * guessed
        assert steps < 0.6 * before


def composition(root: Path, draft: str, *others: str) -> Path:
    text = 'name = "pair"\n'
    for name in ("large", "same", "small", *others):
        text += f'[[expert]]\nname = "{name}"\ncheckpoint = "{name}"\n'
        text += f'draft = "{draft}"\n' if name == "large" else ""
    (root / "pair.toml").write_text(text)
    return root / "pair.toml"


def test_a_composition_says_who_guesses_for_whom(office: Path, tmp_path: Path) -> None:
    root = shutil.copytree(office, tmp_path / "all")
    with Coterie.open(composition(root, "same"), Options(policy=GUESSING, threads=1)) as coterie:
        assert {name: served.draft for name, served in coterie.parts.served.items()} == {
            **{"large": "same", "same": "", "small": ""}
        }
        coterie.load("same")
        coterie.ask(queries()[0])
        assert coterie.parts.engine.metrics.drafted_tokens > 0
        assert coterie.status().to_dict()["metrics"]["drafted_tokens"] > 0


def test_who_cannot_guess_is_refused_in_a_sentence(office: Path, tmp_path: Path) -> None:
    root = shutil.copytree(office, tmp_path / "all")
    write_state_space(root / "nets", 1, "mamba2")
    words = json.loads((root / "small" / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (root / "small" / "tokenizer.json").write_text(json.dumps(words))
    asked = ("--expert", "large", "x")
    said = refused(run("run", composition(root, "small"), *asked), "large: draft", "small cannot be its draft")
    assert "their vocabularies are not the same, as token" in said
    said = refused(run("run", composition(root, "nets", "nets"), *asked), "large: draft", "nets cannot be its draft")
    assert "recurrent state, which cannot be rolled back" in said
    refused(run("run", root, "--draft", "nobody", *asked), "--draft", "'nobody' is not an expert")
    # An option is for those whom it fits.
    with Coterie.open(root, Options(draft="same")) as coterie:
        assert {name: served.draft for name, served in coterie.parts.served.items() if served.draft} == {
            "large": "same"
        }
    shutil.rmtree(root / "large")
    with pytest.raises(UsageError, match="same cannot be the draft of any expert of this composition"):
        Coterie.open(root, Options(draft="same"))


def test_a_renewed_expert_keeps_who_guesses_for_it(office: Path, tmp_path: Path) -> None:
    root = shutil.copytree(office, tmp_path / "all")
    with Coterie.open(root, Options(draft="same", policy=GUESSING, threads=1)) as coterie:
        write_expert(root / "new", 4)
        shutil.rmtree(root / "large")
        write_expert(root / "large", 3, num_hidden_layers=2)
        found = coterie.rescan()
        assert (found.added, found.renewed) == (("new",), ("large",))
        assert [coterie.parts.served[name].draft for name in ("new", "large", "same")] == ["same", "same", ""]
        plain = coterie.ask(queries()[0])
        assert len(plain.token_ids) == 20


def test_a_draft_without_room_is_told_of_before_and_while_it_serves(
    office: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(office, tmp_path / "all")
    shutil.rmtree(root / "small")
    sizes = {name: e["weight_bytes"] for name, e in json.loads(run("check", root, "--json").stdout)["experts"].items()}
    both = sum(map(round_up, sizes.values()))

    def said(near: int) -> str:
        return run("check", root, "--draft", "same", "--near", near).stdout.replace("\n", " ")

    assert "draft same: drafts for large" in said(both)
    assert "note: same" not in said(both)
    assert f"set --near to at least {both} B" in said(both - BLOCK_BYTES)
    options = Options(draft="same", policy=GUESSING, threads=1, near_bytes=both - BLOCK_BYTES)
    with Coterie.open(root, options) as coterie:
        assert not coterie.status().lacks
        coterie.ask(queries()[0])
        (lack,) = coterie.status().lacks
        assert coterie.parts.engine.metrics.drafted_tokens == 0
        assert "[large: draft] same, beside whom dram holds, needs" in lack
        assert f"set --near to at least {both} B" in lack
        assert caplog.messages == [f"nothing is drafted: {lack}"]
        status = {**coterie.status().to_dict(), "object": "status"}
        _say(coterie, ("127.0.0.1", 8000), ["key"], [])
        with out.capture() as shown:
            out.print(show(status, "http://127.0.0.1:8000"))
        assert lack.partition(";")[0] in " ".join(shown.get().split())
        (gauge,) = [f for f in StatusCollector(coterie.status()).collect() if f.name.endswith("drafts_without_memory")]
        assert gauge.samples[0].value == 1


def test_check_says_who_guesses_only_while_there_is_room(office: Path) -> None:
    names = ("large", "same", "small")
    sizes = {n: json.loads(run("check", office, "--json").stdout)["experts"][n]["weight_bytes"] for n in names}
    pair = round_up(sizes["large"]) + round_up(sizes["small"])
    printed = run("check", composition(office, "small"), "--near", pair).stdout.replace("\n", " ")
    assert "draft small: drafts for large" in printed
    assert "no expert is evicted for it; pin it" in printed
    assert f"at least {sum(map(round_up, sizes.values()))} B" in printed


def body_of(number: int) -> dict[str, Any]:
    """A completion of one of the three, drawn or greedy."""
    model, drawn = ("large", "same", "small")[number % 3], number % 2
    body = {"model": model, "prompt": "so" * (number % 5 + 1), "max_tokens": 4 + number, "ignore_eos": True}
    return body | {"temperature": 0.8 * drawn, "seed": number}


def texts_of(url: str, number: int, **more: Any) -> list[str]:
    got = httpx.post(f"{url}/v1/completions", json=body_of(number) | more, timeout=120)
    assert got.status_code == 200, got.text
    return [choice["text"] for choice in got.json()["choices"]]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_whatever_goes_on_at_a_server_answers_are_those_without_drafts(office: Path, tmp_path: Path, seed: int) -> None:
    """Callers of each priority, some of whom leave, and experts that come and go: room for two of three, little KV."""
    root = shutil.copytree(office, tmp_path / "all")
    numbers = range(36)
    with served(Coterie.open(root, Options(threads=1))) as url:
        alone = [texts_of(url, number)[0] for number in numbers]
    policy = replace(GUESSING, max_batch=8, turn_steps=4, max_step_tokens=32)
    options = Options(policy=policy, threads=1, near_bytes=200 * 1024, kv_bytes=24 * 1024)
    coterie = Coterie.open(composition(root, "same"), options)
    metrics = coterie.parts.engine.metrics

    def call(which: int) -> None:
        rng = random.Random(f"{seed} {which}")
        for _ in range(25):
            number, what = rng.choice(numbers), rng.random()
            how = {"priority": rng.randint(-2, 2)}
            if what < 0.1:
                leaves(url, "/v1/completions", body_of(number) | how | {"stream": True}, lambda: True)
            elif what < 0.2:
                name, then = rng.choice(("large", "same", "small")), rng.choice(("load", "unload", "pin", "unpin"))
                httpx.post(f"{url}/v1/models/{name}/{then}")
                httpx.post(f"{url}/v1/models/{name}/unpin")
            else:
                assert texts_of(url, number, **how) == [alone[number]]

    with served(coterie) as url:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(call, range(6)))
        for what in ("unload", "pin", "load?wait=true"):  # else there may be no room for who drafts
            got = httpx.post(f"{url}/v1/models/same/{what}", timeout=60)
            assert got.status_code == 200, got.text
        for number in numbers:
            assert texts_of(url, number) == [alone[number]]
        until(lambda: coterie.idle)
    assert metrics.accepted_drafted_tokens > 0
    coterie.parts.engine.check_integrity()
    assert coterie.parts.kv.free_blocks == coterie.parts.kv.num_blocks
