"""Several servers in turns: ours, such as run, and such as a command line starts."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from tests.system.commands import bench_serve as bench
from tests.system.commands import bench_serve_refused as refused
from tests.system.openai_stub import DONE, event, stream, stub
from tests.system.tiny import write_expert

from coterie.bench.serve_against import common_models
from coterie.bench.serve_processes import ProcessTree, watched
from coterie.bench.serve_started import Server, by_command, name_of
from coterie.bench.words import write_tokenizer
from coterie.core.errors import DeviceError

STAND_IN = f"{sys.executable} -m tests.system.stand_in"
HELD = 64 << 20
SMALL = ("--requests", 12, "--rounds", 2, "--max-tokens", 3, "--in-flight", 4)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))


def running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_ours_and_another_answer_the_same_requests_in_turns(tmp_path: Path) -> None:
    for number, name in enumerate(("x", "y")):
        write_expert(tmp_path / name, number)
        write_tokenizer(tmp_path / name, 259)
    got = bench(tmp_path, "--near", "1MiB", "--threads", 1, "--max-batch", 3, "--raw", "--prompt", 9, *SMALL,
                "--against", f"{STAND_IN} {{port}} y,x,z", "--cold", tmp_path)  # fmt: skip
    (run,) = got["runs"]
    assert got["bench"] == "serve-against"
    assert got["workload"]["models"] == 2
    own, other = run["servers"]["coterie"], run["servers"][Path(sys.executable).name]
    for row in (own, other):
        assert (row["requests"], row["answered"], row["tokens"]) == (24, 24, 72)
        assert row["peak_bytes"] > 1 << 20
    assert own["cpu_s_per_1000_tokens"] > 0
    (beside,) = run["over"].values()
    assert beside["tokens_per_s"]["low"] <= beside["tokens_per_s"]["median"] <= beside["tokens_per_s"]["high"]
    assert "--near 1048576 --threads 1 --max-batch 3" in got["workload"]["commands"][0]


def test_what_a_server_refuses_is_a_failure_and_no_token() -> None:
    got = bench("--against", f"{STAND_IN} {{port}} x", "--against", f"{STAND_IN} {{port}} x --refuse 3", *SMALL)
    (run,) = got["runs"]
    whole, slips = run["servers"].values()
    assert list(run["servers"]) == [f"{Path(sys.executable).name} 1", f"{Path(sys.executable).name} 2"]
    assert (whole["answered"], whole["errors"]) == (24, {})
    assert (slips["answered"], slips["errors"], slips["said"]) == (16, {"503": 8}, {"503": "no room for it"})
    assert slips["tokens"] == 16 * 3
    assert any("503: no room for it" in note for note in got["notes"])


def test_servers_that_run_are_asked_the_same_texts() -> None:
    answers = stream(event("a"), event("b", "length"), event(usage={"prompt_tokens": 9, "completion_tokens": 3}), DONE)
    rows = {"data": [{"id": "x"}, {"id": "y"}]}
    with stub(lambda _: answers, rows) as (one, first), stub(lambda _: answers, rows) as (two, second):
        got = bench("--url", one, "--url", two, *SMALL, "--in-flight", 2, "--mix", "zipf")
    asked = [sorted((body["model"], body["messages"][0]["content"]) for body in bodies if body["max_tokens"] == 3)
             for bodies in (first, second)]  # fmt: skip
    assert asked[0] == asked[1]
    assert len(set(asked[0])) == 2 * 3 * 12  # in each of two loops new ones
    run, _ = got["runs"]
    assert [row["cpu_s_per_1000_tokens"] for row in run["servers"].values()] == [None, None]
    assert [beside["tokens_per_cpu_s"] for beside in run["over"].values()] == [None]


def test_ours_is_compared_with_one_that_runs(tmp_path: Path) -> None:
    write_expert(tmp_path / "x", 0)
    write_tokenizer(tmp_path / "x", 259)
    with by_command(f"{STAND_IN} {{port}} x") as other:
        got = bench(tmp_path, "--near", "1MiB", "--raw", "--prompt", 9, *SMALL, "--url", other.origin.url)
    (run,) = got["runs"]
    assert [row["answered"] for row in run["servers"].values()] == [24, 24]
    assert list(run["servers"]) == ["coterie", other.origin.url.removeprefix("http://")]
    assert run["servers"]["coterie"]["cpu_s_per_1000_tokens"] > 0


def test_a_process_tree_is_all_that_a_server_started_and_ends_with_it() -> None:
    with by_command(f"{STAND_IN} {{port}} x --child {HELD}") as server:
        assert server.processes is not None
        processes = server.processes
        alone = ProcessTree(processes._pids()[1])
        with watched(processes, []) as watch:
            held, only = processes.held_bytes(), alone.held_bytes()
        assert held is not None
        assert only is not None
        assert only > HELD
        assert held > only
        assert watch.peak_bytes is not None
        assert watch.peak_bytes > HELD
        took = processes.cpu_s()
        assert took is not None
        assert took >= 0.3  # what ended in between has worked so long
        pids = processes._pids()
        assert len(pids) == 2
    until = time.monotonic() + 10
    while any(running(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(running(pid) for pid in pids)
    assert processes.cpu_s() is None


def test_a_server_has_the_name_of_its_program() -> None:
    assert name_of(["/opt/bin/llama-server", "-t=1"]) == "llama-server"
    assert name_of(["/usr/bin/env", "OMP_WAIT_POLICY=passive", "bin/llama-server", "--port"]) == "llama-server"
    assert name_of(["env"]) == "env"


def test_models_are_those_that_all_have_in_the_first_ones_order() -> None:
    with (
        by_command(f"{STAND_IN} {{port}} a,b,c,d") as one,
        by_command(f"{STAND_IN} {{port}} d,x,b") as two,
    ):
        assert common_models([Server("one", one.origin), two]) == ["b", "d"]
        assert common_models([two, Server("one", one.origin)]) == ["d", "b"]


def test_a_server_that_does_not_start_says_why() -> None:
    words = "the server did not start, it ended with 1: I have no models"
    with pytest.raises(DeviceError, match=words), by_command(f"{STAND_IN} {{port}} x --die"):
        pass


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--against", "llama-server --models-dir x"), "does not say where its port goes; write --port {port} in it"),
        (("--against", "no-such-server --port {port}"), "there is no program 'no-such-server'"),
        (("--against", "python 'x --port {port}"), "is no command line"),
        (("--against", ""), "does not say where its port goes"),
        (("--against", "STAND_IN {port} x", "--against", "STAND_IN {port} y"), "no model has the same name at all"),
        (("--against", "STAND_IN {port} x", "--near", "1GiB"), "is of our own server"),
        (("--against", "STAND_IN {port} x", "--experts", 3), "is of random experts, which other servers do not have"),
        (("--against", "STAND_IN {port} x", "--cold", "nowhere"), "there are no files in 'nowhere'"),
        (("demo", "--cold", "."), "is for servers that are compared"),
    ],
)
def test_mistakes_are_sentences(args: tuple, words: str) -> None:
    assert words in " ".join(refused(*(str(arg).replace("STAND_IN", STAND_IN) for arg in args)).split())
