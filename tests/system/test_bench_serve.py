"""The bench of the HTTP endpoint: our own server beside its engine, and others as a client sees them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tests.system.commands import bench_serve as bench
from tests.system.commands import bench_serve_refused as refused
from tests.system.openai_stub import DONE, HEAD, chunk, event, response, stream, stub
from tests.system.tiny import CONFIG, write_adapter, write_expert

from coterie.api import Coterie, Options
from coterie.bench.http_stream import Origin, origin_of
from coterie.bench.serve_drive import Answered, Sent, drive, read
from coterie.bench.serve_own import in_process
from coterie.bench.serve_requests import CHAT, TEXT, Way, draw_round
from coterie.bench.serve_rows import Round, row_of
from coterie.bench.words import prompt, write_tokenizer
from coterie.checkpoint.tokenizer import Tokenizer
from coterie.core.errors import UsageError
from coterie.plan.mix import mix_named
from coterie.plan.workload import Load, lengths_named

USAGE = event(usage={"prompt_tokens": 9, "completion_tokens": 6})


def test_our_server_and_its_engine_answer_the_same_requests(temporary: Path, tmp_path: Path) -> None:
    shape = tmp_path / "config.json"
    shape.write_text(json.dumps(CONFIG))
    got = bench("--shape", shape, "--experts", 3, "--requests", 12, "--rounds", 2, "--prompt", "uniform:5:9",
                "--max-tokens", 7, "--in-flight", 4, "--threads", 1, "--mix", "zipf", "--seed", 3,
                "--behind", 0.7)  # fmt: skip
    (run,) = got["runs"]
    for name in ("http", "in_process"):
        row = run[name]
        assert (row["requests"], row["answered"], row["errors"]) == (24, 24, {})
        assert row["tokens"] == 24 * 7
        assert 0 < row["ttft_p50_s"] <= row["ttft_p90_s"] <= row["ttft_p99_s"]
        assert 0 <= row["tpot_p50_s"] <= row["tpot_p99_s"]
        assert row["tokens_per_s"] == pytest.approx(row["requests_per_s"] * 7)
        assert set(row["priorities"]) == {"0", "1"}
        assert sum(its["requests"] for its in row["priorities"].values()) == 24
        assert all(0 < its["ttft_p50_s"] <= its["ttft_p99_s"] for its in row["priorities"].values())
    assert run["http"]["priorities"]["1"]["requests"] == run["in_process"]["priorities"]["1"]["requests"] > 12
    assert run["http"]["prompt_tokens"] == run["in_process"]["prompt_tokens"] > 4  # the server counted what we did
    assert run["http"]["tokens_counted_by_server"]
    assert run["http"]["main_thread_cpu_s_per_1000_tokens"] <= run["http"]["cpu_s_per_1000_tokens"]
    assert run["tokens_per_s_ratio"]["low"] <= run["tokens_per_s_ratio"]["median"] <= run["tokens_per_s_ratio"]["high"]
    asked = {"mix": "zipf", "seed": 3, "behind": 0.7, "experts": 3, "composition": "random"}
    assert got["workload"] | asked == got["workload"]
    assert not list(temporary.iterdir())


def test_a_server_of_adapters_is_given_memory_for_their_base_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just what it needs for all of them, as it reckons itself: no less, or it would not start."""
    given: list[str] = []

    @contextmanager
    def noted(ref: str, args: Sequence[str]) -> Iterator[None]:
        given.extend(args)
        raise UsageError("server", "not started", "nothing")
        yield

    monkeypatch.setattr("coterie.bench.serve.own_server", noted)
    sizes = [write_adapter(tmp_path / name, ("q_proj",)) for name in ("sql", "tax")]
    write_expert(tmp_path / "base", 1)
    assert "not started" in refused(tmp_path)
    near_bytes = int(given[given.index("--near") + 1].removesuffix(" B"))
    with Coterie.open(tmp_path, Options(near_bytes=near_bytes)) as coterie:
        made = coterie.plan
        assert near_bytes == made.near_bytes + made.bases_bytes == made.total_bytes + made.bases_bytes
        assert len(made.expert_bytes) == len(sizes)


@pytest.mark.long
def test_an_open_loop_on_the_demo_without_chat_templates() -> None:
    open_loop = ("--rate", 100, "--arrivals", "steady", "--requests", 10)
    got = bench("demo", *open_loop, "--rounds", 1, "--max-tokens", 4, "--raw")
    (run,) = got["runs"]
    assert (run["in_flight"], run["rate_per_s"], run["loop"]) == (None, 100.0, "100 a second, steady")
    for name in ("http", "in_process"):
        assert run[name]["answered"] == 10
        assert run[name]["tokens"] == 40
        assert run[name]["elapsed_s"] > 0.1  # the last one comes after 0.1 s
    assert run["http"]["prompt_tokens"] == run["in_process"]["prompt_tokens"]


def answers(url: str, count: int, in_flight: int, timeout_s: float = 10.0, path: str = CHAT) -> list[Answered]:
    bodies = [Way().body("m", str(number), 6) for number in range(count)]
    return list(drive(origin_of(url, {}), path, bodies, in_flight, timeout_s=timeout_s).answers)


def number_of(body: dict) -> int:
    return int(body["messages"][0]["content"])


def test_what_went_wrong_is_counted_by_its_kind() -> None:
    """Every way in which a stream can fail, among those that do not, on connections that are used again."""
    good = stream(event(""), event("a"), event("b", "length"), USAGE, DONE)
    kinds = {
        0: good,
        1: [response(429, {"error": {"message": "too many"}})],
        2: [HEAD, chunk(event("a")), None],
        3: stream(event("a"), event("b")),
        4: stream(event("a"), event(error={"message": "broke"}), DONE),
        5: [None],
        6: [response(200, {"object": "chat.completion"})],
        7: [b"SSH-2.0-OpenSSH_9.6\r\n\r\n", None],
        8: [HEAD, 5.0],
        9: [response(503, b"<html>")],
        10: [HEAD, b"not a size\r\n", None],
        11: good,
    }
    with stub(lambda body: kinds[number_of(body)]) as (url, _):
        found = answers(url, len(kinds), 1, timeout_s=3.0)
    said = ["", "429", "stream cut", "stream cut", "error event", "connection cut", "no stream", "no HTTP", "timeout"]
    assert [one.error for one in found] == [*said, "503", "no HTTP", ""]
    assert [one.message for one in found if one.message] == ["too many", "broke", "<html>"]
    row = row_of([Round(found, 2.0)])
    assert (row["requests"], row["answered"], row["tokens"]) == (12, 2, 12)
    assert row["errors"]["stream cut"] == 2
    assert row["tokens_per_s"] == 6.0


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew() -> None:
    good = b"".join(stream(event("a", "stop"), DONE))
    with stub(lambda body: [good, None]) as (url, asked):
        found = answers(url, 3, 1)
    assert [one.error for one in found] == [""] * 3
    assert len(asked) == 3


def test_times_are_those_of_texts_and_tokens_those_of_the_usage() -> None:
    """What comes before the first text and behind the last one does not count."""
    pieces = [
        event(""),
        b": waiting\n\n",
        event("a")[:9],
        event("a")[9:],
        event("b"),
        event(None, "length"),
        USAGE,
        DONE,
    ]
    sent = Sent(0, due_s=1.0, status=200, end_s=9.0, pieces=[(2.0 + at, data) for at, data in enumerate(pieces)])
    found = read(sent)
    assert (found.first_s, found.last_s, found.error) == (4.0, 5.0, "")
    assert (found.tokens, found.prompt_tokens, found.counted) == (6, 9, True)
    assert row_of([Round([found], 1.0)])["tpot_p50_s"] == pytest.approx(1 / 5)


def test_pieces_have_the_times_at_which_they_came() -> None:
    with stub(lambda _: stream(event(""), 0.1, event("a"), 0.2, event("b", "length"), DONE)) as (url, _):
        (found,) = answers(url, 1, 1)
    assert found.first_s >= 0.1
    assert found.last_s >= 0.3


def test_without_usage_pieces_are_counted_and_crlf_and_cut_events_are_read() -> None:
    body = (event("a") + event("b") + event("c", "stop")).replace(b"\n", b"\r\n")
    pieces = [HEAD, *(chunk(body[at : at + 7]) for at in range(0, len(body), 7)), b"0\r\n", b"some: trailer\r\n\r\n"]
    with stub(lambda _: pieces) as (url, _):
        (found,) = answers(url, 1, 1)
    assert (found.error, found.tokens, found.counted) == ("", 3, False)


def test_an_open_loop_counts_waiting_from_when_a_request_was_due() -> None:
    """One that could not be asked in time has waited nevertheless: here it was due a second before."""
    bodies = [Way().body("m", str(number), 6) for number in range(3)]
    with stub(lambda _: stream(event("a", "stop"), DONE)) as (url, asked):
        found = drive(origin_of(url, {}), CHAT, bodies, at_s=[0.4, -9.0, 0.2])
    assert [number_of(body) for body in asked] == [1, 2, 0]  # each at its time
    assert found.elapsed_s >= 0.4
    assert found.answers[1].first_s >= 9.0
    assert all(one.first_s < 9.0 for one in (found.answers[0], found.answers[2]))


def test_the_engine_in_process_takes_an_open_loop_too(folder: Path) -> None:
    load = Load(6, mix_named("uniform"), lengths_named("9", ""), lengths_named("3", ""), rate=50, arrivals="steady")
    with Coterie.open(folder, Options(threads=1)) as coterie:
        asked = draw_round(load, coterie.composition.names, 0, {})
        requests = asked.requests(Way(raw=True), coterie.texts)
        found, elapsed_s, cpu_s = in_process(coterie, requests, asked.in_flight, asked.at_s)
        again, _, _ = in_process(coterie, requests, 2, asked.at_s)
        assert coterie.parts.engine.metrics.drawn_tokens == 2 * 18
    assert [(one.number, one.tokens) for one in found] == [(number, 3) for number in range(6)]
    assert [one.number for one in again] == list(range(6))
    assert all(0 < one.first_s <= one.last_s for one in [*found, *again])
    assert elapsed_s >= 6 / 50
    assert cpu_s > 0


def test_another_server_is_measured_from_outside() -> None:
    good = stream(event("a"), event("b", "length"), USAGE, DONE)
    rows = {"data": [{"id": "x"}, {"id": "y"}]}
    with stub(lambda _: good, rows) as (url, asked):
        loops = ("--in-flight", 3, "--in-flight", 1)
        got = bench("--url", f"{url}/v1/", "--requests", 20, *loops, "--rounds", 1, "--max-tokens", 6)
    run, _ = got["runs"]
    assert "in_process" not in run
    assert run["http"]["cpu_s_per_1000_tokens"] is None
    assert run["http"]["answered"] == 20
    assert got["workload"]["models"] == ["x", "y"]
    assert {body["model"] for body in asked} == {"x", "y"}
    assert all(body | {"ignore_eos": True, "stream": True, "path": CHAT} == body for body in asked)
    assert [body["max_tokens"] for body in asked] == [1, 1, *([6] * 80)]  # two to see how tokens are counted
    # No round of any loop asks what another has asked: a server would know it already.
    assert len({body["messages"][0]["content"] for body in asked}) == 2 + 4 * 20


def test_prompts_are_as_long_as_the_server_counts_them() -> None:
    """This one makes three tokens of a word, and has five more."""

    def answer(body: dict) -> list:
        words = len(body["messages"][0]["content"].split())
        usage = event(usage={"prompt_tokens": 5 + 3 * words, "completion_tokens": 1})
        return stream(event("a", "stop"), usage, DONE)

    with stub(answer) as (url, asked):
        got = bench("--url", url, "--model", "x", "--requests", 4, "--in-flight", 2, "--rounds", 1, "--prompt", 50)
    assert {len(body["messages"][0]["content"].split()) for body in asked[2:]} == {15}
    assert got["runs"][0]["http"]["prompt_tokens"] == 50


def test_words_that_are_counted_are_drawn_as_those_of_prompts() -> None:
    """This server makes a token of each syllable, and most words have two."""

    def answer(body: dict) -> list:
        syllables = len(body["messages"][0]["content"].replace(" ", "")) // 2
        return stream(event("a", "stop"), event(usage={"prompt_tokens": syllables, "completion_tokens": 1}), DONE)

    with stub(answer) as (url, _):
        got = bench("--url", url, "--model", "x", "--requests", 16, "--in-flight", 2, "--rounds", 1, "--prompt", 90)
    assert got["runs"][0]["http"]["prompt_tokens"] == pytest.approx(90, rel=0.05)


def test_our_experts_are_asked_past_their_router_and_a_server_may_lack_ignore_eos() -> None:
    good = stream(event("a", "stop"), DONE)
    rows = {"data": [{"id": "all", "coterie": {"kind": "composition"}}, {"id": "e", "coterie": {"kind": "expert"}}]}
    with stub(lambda _: good, rows) as (url, asked):
        bench("--url", url, "--requests", 2, "--in-flight", 1, "--rounds", 1, "--ends", "--raw", "--api-key", "k")
    assert {(body["model"], body["path"], "ignore_eos" in body) for body in asked} == {("e", TEXT, False)}


def test_a_prompt_has_the_tokens_that_were_asked_for(tmp_path: Path) -> None:
    write_tokenizer(tmp_path, 16384)
    tokenizer = Tokenizer.from_folder(tmp_path)
    for tokens in (1, 2, 33):
        text = prompt(np.random.default_rng(tokens), tokens)
        assert len(tokenizer.encode(text)) == tokens
        assert tokenizer.decode(tokenizer.encode(text)) == text
    bytes_alone = prompt(np.random.default_rng(1), 40, len)
    assert 30 < len(bytes_alone) <= 40
    load = Load(5, mix_named("uniform"), lengths_named("8", ""), lengths_named("2", ""), in_flight=1)
    first, again, second = (draw_round(load, ["a", "b"], number, {}) for number in (0, 0, 1))
    assert first == again
    assert not set(first.texts) & set(second.texts)


@pytest.fixture(scope="module")
def silent() -> Iterator[str]:
    with stub(lambda _: [response(404, {"error": {"message": "no such thing"}})], {"data": []}) as (url, _):
        yield url


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--url", "localhost:8000"), "is no address of a server"),
        (("--url", "http://127.0.0.1:1"), "no server answers"),
        (("--url", "SILENT"), "names no models"),
        (
            ("--url", "SILENT", "--model", "x", "--in-flight", 2),
            "none of 128 requests was answered, 404: no such thing",
        ),
        (("--url", "http://x", "--near", "1GiB"), "[--near] is of a server that is started here"),
        (("--model", "x"), "[--model] is of a server that runs"),
        (("demo", "--experts", 3), "[--experts] is of random experts"),
        (("demo", "--rate", 1, "--in-flight", 1), "give one: an open loop or a closed one"),
        (("demo", "--requests", 0), "give 1 or more"),
        (("demo", "--mix", "lumpy"), "uniform, zipf, bursty"),
        (("demo", "--prompt", "many"), "is no number of tokens"),
        (
            ("demo", "--prompt", 500, "--max-tokens", 100),
            "has 600 tokens of prompt and answer, but the context",
        ),
        (("nowhere",), "there is no such file or folder"),
    ],
)
def test_mistakes_are_sentences(args: tuple, words: str, silent: str) -> None:
    assert words in refused(*(silent if arg == "SILENT" else arg for arg in args))


def test_addresses() -> None:
    assert origin_of("http://[::1]:80/v1", {}) == Origin("::1", 80)
    assert origin_of("https://host/some/v1/", {}) == Origin("host", 443, True, "/some")
    assert origin_of("https://host/some", {"A": "b"}).head("/x", 2).split(b"\r\n")[:2] == [
        b"POST /some/x HTTP/1.1",
        b"Host: host:443",
    ]
