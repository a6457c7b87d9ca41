"""Tables of a GPU's results, from results made for the test: aims, peers that did not run, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu_table, table

from coterie.bench.shapes import shape_config
from coterie.plan.validate.cpu import of_gpu
from coterie.plan.validate.gpu_own import MACHINE, gpu_rows

GPU = "a GPU made up for a test (software 1.0)"
HOST = {"cpu_model": "a CPU", "cpus": 4, "isa": "plain"}


def result(bench: str, workload: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {
        "machine": HOST,
        "commit": "abc",
        "bench": bench,
        "workload": {"gpu": GPU, **workload},
        "peers": {},
    } | values


def decode(shape: str, mbu: float, **values: Any) -> dict[str, Any]:
    rates = {"tokens_per_s": 500.0, "seconds_per_token": 0.002, "mbu": mbu, "read_limit": {"bytes_per_s": 2.5e12}}
    work = {"shape": shape, "weights": "random bf16", "context": 512}
    return result("decode", work, batch={"size": 8, "tokens_per_s": 3000.0}, **rates, **values)


def prefill(tokens: int, share: float) -> dict[str, Any]:
    rates = {"tokens_per_s": 1e5, "seconds": 0.02, "share_of_peak": share, "product_flops_per_s": 7e14}
    return result("prefill", {"shape": "1b", "weights": "random bf16", "prompt_tokens": tokens}, **rates)


def switch(share: float, over: float) -> dict[str, Any]:
    times = {"cold_arrival_s": 0.04, "cold_ttft_s": 0.05, "cold_ideal_s": 0.045, "warm_ttft_s": 0.007}
    rates = {"share_of_copy": share, "copy_bytes_per_s": 5.5e10, "cold_ttft_over_ideal": over}
    return result("switch", {"shape": "1b", "expert_bytes": 2**31, "prompt_tokens": 512}, **times, **rates)


@pytest.mark.parametrize(
    ("shown", "cell"),
    [
        (gpu_table.decode([decode("1b", 0.79)]), "0.79 (0.80, **missed**) of 2.50 TB/s"),
        (gpu_table.decode([decode("1b", 0.80)]), "0.80 (0.80) of"),
        (gpu_table.decode([decode("shapes/llama-2-7b/config.json", 0.84)]), "0.84 (0.85, **missed**) of"),
        (gpu_table.decode([decode("135m", 0.30)]), "| 0.30 of"),
        (gpu_table.prefill([prefill(2048, 0.59)]), "0.59 (0.60, **missed**) of 700 TFLOP/s"),
        (gpu_table.prefill([prefill(512, 0.59)]), "| 0.59 of"),
        (gpu_table.switch([switch(0.94, 1.10)]), "0.94 (0.95, **missed**) of 55.0 GB/s | 50 ms | 1.10 (1.10) of 45 ms"),
        (gpu_table.switch([switch(0.95, 1.11)]), "0.95 (0.95) of 55.0 GB/s | 50 ms | 1.11 (1.10, **missed**) of 45 ms"),
    ],
)
def test_an_aim_stands_beside_what_it_is_for_and_says_when_it_was_missed(shown: str, cell: str) -> None:
    assert cell in shown
    head, line, row = shown.splitlines()
    assert head.count("|") == line.count("|") == row.count("|")


def test_a_peer_that_ended_with_a_sentence_is_in_the_row_and_its_sentence_below() -> None:
    ways = {"one way": {"ratio": 1.234}, "another": {"failed": "RuntimeError: no | room"}}
    found = decode("1b", 0.9, peers={"peer": {"ways": ways}}, notes=["another did not run: no\n room", "a", "a"])
    text = table.tables({"one": found}, gpu=True, notes=True)
    assert "| one way 1.23 x; another did not run |" in text
    assert "- another did not run: no room\n- a\n" in text
    assert "did not run: no" not in table.tables({"one": found}, gpu=True), "the README has tables only"


def test_notes_of_several_runs_say_whose_they_are() -> None:
    both = [decode("1b", 0.9, notes=["slow"]), decode("135m", 0.5, notes=["slow"])]
    assert gpu_table.notes(both) == "- 1b, bf16, 512 of context: slow\n- 135m, bf16, 512 of context: slow"


def test_what_is_not_stored_has_no_table(tmp_path: Path) -> None:
    assert table.tables({}, gpu=True, notes=True) == ""
    only = table.tables({"one": switch(0.9, 1.2)}, gpu=True)
    assert "| switch |" in only
    assert not [name for name in ("| decode", "| prefill", "| fusion", "| many experts") if name in only]
    assert table.gpus(tmp_path) == []


def test_results_of_a_gpu_are_found_in_any_folder_and_are_no_cpus(tmp_path: Path) -> None:
    (tmp_path / "gpu").mkdir()
    cpu = {"bench": "decode", "workload": {"shape": "1b"}}
    for path, stored in (("gpu/a.json", decode("1b", 0.9)), ("b.json", switch(0.9, 1.2)), ("c.json", cpu)):
        (tmp_path / path).write_text(json.dumps(stored))
    assert [list(found) for found in table.gpus(tmp_path)] == [["a", "b"]]
    assert table.machines(tmp_path) == {tmp_path.name: {"c": cpu}}


def test_many_experts_on_a_gpu_and_the_grid_of_fusion_have_their_tables() -> None:
    times = {"ttft_p50_s": 0.05, "ttft_p99_s": 0.5, "tokens_per_s": 800.0, "switches": 9}
    runs = [
        {"mix": "zipf", "in_flight": 8, "policy": policy, "requests": 60, **times}
        for policy in ("coterie", "fcfs", "transformers")
    ]
    many = result("coe", {"experts": 8, "near_bytes": 6 * 2**30}, runs=runs)
    cell = {"way": "fused/device", "regions": 5, "seconds_per_step": 0.001}
    spread = {"speedup": 1.5, "speedup_quartiles": [1.4, 1.6]}
    grid = [{"phase": phase, **cell, **spread} for phase in ("prefill", "decode")]
    fused = result("fusion", {"shape": "1b", "prefill_tokens": 128, "decode_steps": 8}, grid=grid)
    text = table.tables({"coe": many, "fusion": fused}, gpu=True)
    asked = "8 in 6.00 GiB, zipf, 8 in flight, 60 requests"
    assert f"{asked} : transformers, LRU, one at a time | 9 : 9 | 800 : 800 | 1.00 x" in text
    assert "| 50 ms : 50 ms | 500 ms : 500 ms |" in text, "a GPU's are told apart below a tenth of a second"
    assert "| 1b, decode, 8 steps a call | fused/device | 5 | 1 ms | 1.50 x (1.40 to 1.60) |" in text
    assert f"Machine: {GPU}; host: a CPU, 4 CPUs, plain. Commits: abc." in text


@pytest.mark.parametrize("file", sorted(table.RESULTS.glob(f"*/{MACHINE}")), ids=lambda file: file.parent.name)
def test_a_stored_machine_is_of_the_gpu_whose_results_lie_beside_it(file: Path) -> None:
    found = {name: result for name, result in table.stored(file.parent).items() if of_gpu(result)}
    rows, _ = gpu_rows(found, file.parent, shape_config)
    assert rows
    assert all(row.modelled_s > 0 for row in rows)
