"""Machines from the command line: shown, calibrated, validated, and one that a person wrote, used end to end."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from tests.system.commands import run
from tests.system.tiny import CONFIG

from coterie.cli import validate as cli_validate
from coterie.plan.validate.rows import FIRST_TOKEN, VALIDATION, Dropped, Outcome, Row
from coterie.spec.load import load_machine

MINE = """
name = "mine"
rule_set = "section"
units = 2
flops = { value = 1, unit = "TFLOP/s", source = "a test", per_unit = true, achieved = 0.5, achieved_source = "a test" }
launch_host = { value = 5, unit = "us", source = "a test" }
launch_device = { low = 1, value = 2, high = 4, unit = "us", source = "a test" }
[peers]
bandwidth = { value = 10, unit = "GB/s", source = "a test" }
latency = { value = 1, unit = "us", source = "a test" }
[[tier]]
name = "hbm"
capacity = { value = 1, unit = "GiB", source = "a test", per_unit = true }
bandwidth = { value = 100, unit = "GB/s", source = "a test", per_unit = true }
[[tier]]
name = "disk"
capacity = { value = 1, unit = "TB", source = "a test" }
bandwidth = { unknown = true, source = "a test" }
[[link]]
src = "disk"
dst = "hbm"
bandwidth = { value = 1, unit = "GB/s", source = "a test" }
latency = { value = 10, unit = "us", source = "a test" }
"""


def ran(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*args: object) -> str:
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


def test_adding_a_machine_is_one_file(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(MINE)
    (tmp_path / "slow.toml").write_text(MINE.replace("value = 100,", "value = 1,"))
    answers = {}
    for ref in (f"{file}", f"{file}:launch_device=high", f"{tmp_path}/slow.toml"):
        args = ("run", "demo", "What is 3 + 4?", "--device", f"synthetic:{ref}", "--json", "--max-tokens", 8)
        answers[ref] = json.loads(ran(*args))
    first, worse, slow = answers.values()
    assert first["synthetic"]
    assert first["ttft_s"] < worse["ttft_s"] < slow["ttft_s"]
    assert first["switch_s"] == pytest.approx(slow["switch_s"], rel=0.2), "the disk is what it was"


def test_a_machine_is_shown_with_what_nobody_published():
    text = ran("info", "sn40l-node")
    assert "peers.bandwidth" in text
    assert "not published" in text
    got = json.loads(ran("info", "sn40l-node:peers.bandwidth=high", "--json"))["machine"]
    assert {"key", "low", "value", "high", "source"} == set(got["unpublished"][0])
    assert got["tiers"][1]["achieved_bytes_per_s"] < got["tiers"][1]["bytes_per_s"]


def test_what_nobody_published_is_weighed():
    got = json.loads(ran("info", "sn40l-node", "--sensitivity", "llama-2-7b", "--json"))["sensitivity"]
    assert set(got) == {"decode, context 4096", "prefill, 1024 tokens"}
    for items in got.values():
        keys = {item["key"] for item in items}
        assert {"peers.bandwidth", "peers.latency", "program_device", "launch_device"} <= keys
        spreads = [abs(item["high_s"] - item["low_s"]) for item in items]
        assert spreads == sorted(spreads, reverse=True)
        assert spreads[0] > 0
    assert "as taken" in ran("info", "sn40l-node", "--sensitivity", "llama-2-7b")
    assert "name one" in refused("info", "--sensitivity", "llama-2-7b")
    assert "no such model" in refused("info", "sn40l-node", "--sensitivity", "gpt-9")


def test_host_links_are_an_option():
    shown = [json.loads(ran("info", "dgx-h100", *links, "--json")) for links in ((), ("--host-links", 8))]
    one, eight = (got["machine"] for got in shown)
    assert eight["links"][0]["bytes_per_s"] == 8 * one["links"][0]["bytes_per_s"]
    assert "host_links" in refused("info", "dgx-h100", "--host-links", 9)
    assert "no such number" in refused("info", "sn40l-node", "--host-links", 2)
    assert "name a machine" in refused("info", "--host-links", 2)


@pytest.mark.parametrize("ref", ["dgx-x900", "dgx-h100:stack=none", "dgx-h100:flops=low", "none.toml"])
def test_a_machine_that_does_not_exist_is_one_sentence(ref):
    refused("info", ref)


def test_calibrating_writes_a_machine_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    file = tmp_path / "mine.toml"
    got = json.loads(ran("info", "--calibrate", "--out", file, "--shape", tmp_path / "config.json", "--json"))
    spec = load_machine(str(file))
    assert (spec.name, got["machine"]["name"]) == ("mine", "mine")
    assert 1e8 < spec.tier("dram").bytes_per_s < 1e13
    assert 1e8 < spec.flops_per_s < 1e15
    assert 0 < spec.achieved_flops_per_s <= spec.flops_per_s
    assert 0 < spec.launch_device_s < 1e-2
    assert spec.link("disk", "dram").bytes_per_s > 0
    assert "measured" in spec.tier("dram").source
    ran("run", "demo", "What is 3 + 4?", "--device", f"synthetic:{file}", "--max-tokens", 4)


def test_calibrating_says_what_it_cannot_do(tmp_path: Path):
    assert "leave the machine's name out" in refused("info", "toy", "--calibrate")
    assert "cannot name a machine" in refused("info", "--calibrate", "--out", tmp_path / "a b.toml")


def test_validate_prints_a_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = tuple(Row("some data", FIRST_TOKEN, f"row {i}", VALIDATION, 1.0, 1.0 + i, "measured") for i in range(3))
    monkeypatch.setattr(
        cli_validate, "run", lambda *_: Outcome(rows, (Dropped("some data", "row 9", "too fast"),), ("a caveat",))
    )
    got = json.loads(ran("validate", "--json"))
    assert {"summaries", "rows", "dropped", "caveats"} == set(got)
    assert [item["dataset"] for item in got["summaries"]] == ["some data", "all"]
    assert got["summaries"][0]["mean_error"] == pytest.approx(1.0)
    assert got["summaries"][0]["worst"] == {"row": "row 2", "error": 2.0}
    monkeypatch.setenv("COLUMNS", "200")
    text = ran("validate", "--rows")
    for part in ("15% missed", "+200% row 2", "too fast", "a caveat", "dropped: 1 rows"):
        assert part in text
    assert "not a folder" in refused("validate", "--results", tmp_path / "none")
