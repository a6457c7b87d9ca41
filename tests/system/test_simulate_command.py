"""The command that simulates: several machines side by side, tables, traces, files of requests, mistakes."""

from __future__ import annotations

import io
import json
import os
import signal
import time

import pytest
from rich.console import Console
from tests.system.commands import refused
from tests.system.tiny import write_expert
from typer.testing import CliRunner

from coterie.cli.in_parallel import in_parallel
from coterie.cli.main import app
from coterie.core.trace import read_trace

runner = CliRunner()


def test_machines_side_by_side_give_what_they_give_one_by_one(many, tmp_path):
    machines = [part for name in ("toy-tiers", "dgx-h100", "sn40l-node") for part in ("--machine", name)]
    args = ("simulate", str(many), *machines, "--rate", "40", "--requests", "20", "--json")
    found = [runner.invoke(app, [*args, "--jobs", str(n), "--trace", str(tmp_path / f"{n}.json")]) for n in (1, 2)]
    assert [result.exit_code for result in found] == [0, 0]
    ours, theirs = ([{**row, "wall_s": 0} for row in json.loads(result.stdout)["rows"]] for result in found)
    assert ours == theirs
    assert [row["machine"] for row in ours] == ["toy-tiers", "dgx-h100", "sn40l-node"]
    traces = [read_trace(tmp_path / f"{n}-toy-tiers-coterie.json") for n in (1, 2)]
    assert traces[0] == traces[1]


def test_the_first_mistake_among_machines_side_by_side_is_a_sentence(many):
    args = (
        "simulate",
        str(many),
        "--machine",
        "sn40l-node",
        "--machine",
        "toy-tiers",
        "--rate",
        "40",
        "--requests",
        "9",
    )
    result = runner.invoke(app, [*args, "--jobs", "2", "--kv", "10GiB"])
    assert result.exit_code == 2
    assert (result.stderr.count("\n"), "Traceback" in result.output) == (1, False)
    assert "[toy-tiers: " in result.stderr


@pytest.mark.parametrize("command", ["simulate", "plan"])
def test_who_gives_vectors_alone_is_named(command, tmp_path):
    for seed, name in enumerate(("ada", "vec")):
        write_expert(tmp_path / name, seed)
    modules = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
    (tmp_path / "vec" / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "vec" / "1_Pooling").mkdir()
    (tmp_path / "vec" / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    promise = ("--slo", "ttft=1s") if command == "plan" else ()
    words = (
        command,
        str(tmp_path),
        "--machine",
        "toy-tiers",
        "--rate",
        "4",
        "--prompt",
        "8",
        "--tokens",
        "4",
        *promise,
    )
    refused(runner.invoke(app, words), "vectors", "vec;")
    (tmp_path / "vec" / "modules.json").unlink()
    assert runner.invoke(app, words).exit_code == 0


def test_work_that_ends_without_a_word_is_done_here(tmp_path):
    here = os.getpid()

    def work(number):
        if number == 1 and os.getpid() != here:
            os._exit(1)
        return number, os.getpid() == here

    assert list(in_parallel(work, 3, 2)) == [(0, False), (1, True), (2, False)]
    assert list(in_parallel(work, 3, 1)) == [(number, True) for number in range(3)]


def test_the_next_work_begins_as_soon_as_any_ends(tmp_path):
    """The first waits for the last: with two places that ends only if the others take turns in the second one."""

    def work(number):
        deadline = time.monotonic() + 30
        while number == 0 and not (tmp_path / "3").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        (tmp_path / str(number)).touch()
        return number, os.getpid()

    found = list(in_parallel(work, 4, 2))
    assert [number for number, _ in found] == [0, 1, 2, 3]
    assert len({os.getpid(), *(process for _, process in found)}) == 5


def test_an_interrupt_is_the_parents_affair():
    here = os.getpid()

    def work(number):
        if os.getpid() != here:  # as from a terminal, which interrupts every process of a command
            os.kill(os.getpid(), signal.SIGINT)
        return os.getpid()

    assert here not in in_parallel(work, 2, jobs=2)


def test_progress_is_shown_on_a_terminal_alone(many, monkeypatch):
    args = ("simulate", str(many), "--machine", "toy-tiers", "--rate", "40", "--requests", "30")
    quiet = runner.invoke(app, args)
    assert (quiet.exit_code, quiet.stderr) == (0, "")
    screen = io.StringIO()
    monkeypatch.setattr("coterie.cli.progress.err", Console(file=screen, force_terminal=True, width=100))
    monkeypatch.setattr("coterie.cli.progress.REFRESH_S", 0.0)
    assert runner.invoke(app, args).exit_code == 0
    assert "toy-tiers, coterie" in screen.getvalue()
    assert "/30" in screen.getvalue()


def test_who_asks_for_many_requests_hears_of_the_compiled_copy_once(many, monkeypatch, tmp_path):
    args = ("--machine", "toy-tiers", "--machine", "toy", "--rate", "40", "--requests", "10", "--json")
    monkeypatch.setattr("sys.argv", ["coterie", "simulate", "a b.toml", *args])
    monkeypatch.setattr("coterie.cli.simulate.LONG", 21)
    assert run(many, *args).stderr == ""  # twenty
    monkeypatch.setattr("coterie.cli.simulate.LONG", 20)
    told = run(many, *args)
    assert len(json.loads(told.stdout)["rows"]) == 2
    assert told.stderr.count("\n") == 1
    assert f"""make simulate WORDS="'a b.toml' {" ".join(args)}""" in told.stderr
    monkeypatch.setattr("coterie.cli.simulate.COMPILER", tmp_path / "compiled.py")  # as in the copy, or without sources
    assert run(many, *args).stderr == ""


@pytest.mark.parametrize("machine", ["sn40l-node", "dgx-h100", "dgx-a100"])
def test_the_preset_runs_on_the_papers_machines(machine):
    args = ("--machine", machine, "--rate", "20", "--requests", "3", "--json")
    result = runner.invoke(app, ["simulate", "samba-coe-150", *args])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert row["router_requests"] == 3
    assert 0.3 < row["footprint"]["near_bytes"] / row["footprint"]["run_tier_bytes"] < 1


def run(many, *args):
    return runner.invoke(app, ["simulate", str(many), *map(str, args)])


def test_the_command_compares_machines_and_policies(many, tmp_path):
    machines = ("--machine", "toy-tiers", "--machine", "toy")
    args = ("--requests", 12, "--rate", 20, "--slo", "ttft=10s,share=0.5", "--near", "200KiB")
    result = run(many, *machines, "--policy", "coterie", "--policy", "fcfs", *args, "--json", "--html", tmp_path / "p")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["machine"], row["policy"]) for row in rows] == [
        ("toy-tiers", "coterie"), ("toy-tiers", "fcfs"), ("toy", "coterie"), ("toy", "fcfs")
    ]  # fmt: skip
    for row in rows:
        assert row["note"] == "routes given, tokens synthetic"
        assert row["ttft_p50_s"] <= row["ttft_p95_s"] <= row["ttft_p99_s"] <= row["e2e_p99_s"]
        assert row["requests_per_s"] == pytest.approx(12 / row["elapsed_s"])
        assert row["router_requests"] == 12
        assert row["slo_met"] == (row["slo_kept"] >= 0.5)
        assert row["bound"]
    text = (tmp_path / "p").read_text()
    assert text.count("<svg") == 3
    assert "routes given, tokens synthetic" in text


def test_pictures_show_what_was_used_with_whole_lines(many, tmp_path):
    words = ("--machine", "toy-tiers", "--rate", 20, "--requests", 9, "--html", tmp_path / "p.html", "--tokens", 1)
    assert run(many, *words).exit_code == 0
    text = (tmp_path / "p.html").read_text()
    assert "<!-- tier hbm -->" in text
    assert "link hbm" not in text  # nothing goes down
    assert "stroke-dasharray" not in text  # strokes tell policies apart, and there is one
    assert '<td>tpot_p50_s</td><td class="n">-</td>' in text
    assert run(many, *words, "--policy", "coterie", "--policy", "fcfs").exit_code == 0
    assert "stroke-dasharray" in (tmp_path / "p.html").read_text()


@pytest.mark.parametrize(("option", "name"), [("--machine", "toy"), ("--policy", "fcfs")])
def test_what_is_named_twice_would_write_one_trace_over_the_other(many, tmp_path, option, name):
    twice = (option, name, option, name)
    result = run(many, "--machine", "toy-tiers", *twice, "--rate", 20, "--trace", tmp_path / "t.json")
    assert result.exit_code == 2
    assert f"[{option}] {name} is named 2 times; name it once" in result.stderr
    assert not list(tmp_path.glob("t*.json"))


def test_the_command_prints_a_table_and_writes_a_trace(many, tmp_path):
    result = run(many, "--machine", "toy-tiers", "--in-flight", 3, "--requests", 10, "--trace", tmp_path / "t.json")
    assert result.exit_code == 0, result.output
    assert "routes given, tokens synthetic" in result.stdout
    assert "bound by" in result.stdout
    trace = read_trace(tmp_path / "t.json")
    assert {item.kind for item in trace.asyncs} >= {"request"}
    assert trace.notes["synthetic_tokens"] == 1


def test_what_never_was_has_no_time(many):
    args = ("--machine", "toy-tiers", "--rate", 20, "--requests", 5, "--tokens", 1)
    (row,) = json.loads(run(many, *args, "--json").stdout)["rows"]
    assert (row["switches"], row["switch_mean_s"], row["tpot_p50_s"]) == (0, None, None)
    text = run(many, *args).stdout
    assert "-, -, -" in text
    assert "0 ns" not in text.partition("of it, routed")[2].partition("\n")[2]


def test_a_file_of_requests(many, tmp_path):
    (tmp_path / "t.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens,Expert\n0,9,2,e-3\n0.5,300,4,e-1\n")
    args = ("--machine", "toy-tiers", "--workload", tmp_path / "t.csv", "--json")
    result = run(many, *args)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "request 2 has 300 + 4 tokens but the context holds 256; use --clip" in result.stderr
    result = run(many, *args, "--clip")
    assert json.loads(result.stdout)["rows"][0]["requests"] == 2
    (tmp_path / "t.csv").write_text("Timestamp,Request tokens,Response tokens\n0,9,0\n1,9,2\n")
    assert "failed requests left out 1" in run(many, *args[:-1]).stdout.replace("\n", " ")
    assert json.loads(run(many, *args).stdout)["workload"]["failed_requests_left_out"] == 1


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--rate", "-1"), "[--rate] is -1 requests/s"),
        (("--machine", "abacus", "--rate", "1"), "there is no such machine"),
        (("--rate", "1", "--policy", "magic"), "[--policy] 'magic' is not a policy"),
        (("--rate", "1", "--in-flight", "2"), "both are given"),
        (("--rate", "1", "--workload", "x.csv"), "a file has its own arrivals, lengths and priorities"),
        (("--prompt", "9", "--workload", "x.csv"), "--in-flight, --arrivals, --prompt, --tokens and --behind out"),
        (("--behind", "0.5", "--workload", "x.csv"), "a file has its own arrivals, lengths and priorities"),
        (("--in-flight", "2", "--arrivals", "bursty"), "[--arrivals] bursty arrivals are of an open loop"),
        (("--rate", "1e-300"), "modelled time is exact to 1e+08; give fewer requests, or more of them per second"),
        (("--rate", "1", "--slo", "fast"), "[--slo] 'fast'"),
        (("--rate", "1", "--kv", "1KiB"), "[--kv] one KV block needs"),
        (
            ("--rate", "1", "--kv", "10TiB"),
            "the largest expert beside the KV cache, the router and the values of a step",
        ),
        (("--rate", "1", "--seed", "-1"), "greater than or equal to 0"),
        (("--rate", "1", "--prompt", "lognormal:0:0.8"), "uniform:64:256, geometric:20 or lognormal:128:0.8"),
        (("--machine", "a:100:b", "--rate", "1"), "[a:100:b] "),
    ],
)
def test_mistakes_are_sentences(many, args, sentence):
    result = run(many, *(("--machine", "toy") if "--machine" not in args else ()), *args)
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
    assert "Traceback" not in result.output
