"""Many experts beside a peer on a GPU that is none: how many fit, and that each run starts without the last one's.

What only CUDA has is left, as in test_bench_gpu_peers.py.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'coterie[peers]'")

from tests.system.gpu_peers import PEER, model, small
from tests.system.test_cuda import Gpu as LazyGpu
from tests.system.test_cuda import lazy, run
from tests.system.test_cuda_bench import shape
from tests.system.tiny import MEASURED

from coterie.bench.coe_peer import converted, serve_peer
from coterie.bench.coe_run import Workload
from coterie.bench.gpu_coe import choose_sizes
from coterie.bench.peers.peer import Settings
from coterie.bench.peers.transformers import HOST, Transformers
from coterie.core.errors import CapacityError
from coterie.devices.cuda.gpu import Gpu
from coterie.devices.cuda.machine import HBM_SHARE
from coterie.models.model import Model, synthetic_model
from coterie.spec.load import load_machine

__all__ = ["lazy", "model", "shape", "small"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch says it to its own compiler


def coe(*words: object) -> dict:
    common = ("--requests", 8, "--in-flight", 3, "--mix", "uniform", "--prompt", 4, "--tokens", 3, "--threads", 1)
    code, text = run("bench", "coe", *map(str, (*words, *common)), "--device", "cuda", "--json")
    assert code == 0, text
    return json.loads(text[text.index('{"machine"') :])


def test_how_many_experts_and_how_much_hbm_follow_from_what_there_is(
    shape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tempfile.gettempdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**6))
    got = coe("--shape", shape)
    size = got["workload"]["expert_bytes"][0]
    assert got["workload"]["experts"] == pytest.approx(10**6 * 0.95 / size, abs=1)
    assert any("as many as the temporary folder" in note for note in got["notes"])
    assert any("20% of their bytes" in note for note in got["notes"])
    assert {row["policy"] for row in got["runs"]} == {"fcfs", "coterie", "belady"}
    assert min(row["switches"] for row in got["runs"]) > 1


@pytest.mark.parametrize(
    ("pool", "hbm", "said"),
    [(50, 1000, "20% of their bytes"), (500, 60, "what KV and a step leave of it")],
)
def test_hbm_is_filled_or_kept_so_small_that_experts_are_switched(pool: int, hbm: int, said: str) -> None:
    size = synthetic_model(MEASURED).layout.size_bytes
    spec = load_machine("toy-tiers")
    room = {"hbm": hbm * size, "ddr": pool * size}
    tiers = tuple(replace(t, capacity_bytes=room.get(t.name, t.capacity_bytes)) for t in spec.tiers)
    spec = replace(spec, tiers=tiers)
    found = choose_sizes(spec, MEASURED, 4, 8, None, None)
    assert 0.9 * pool < found.experts <= pool
    assert "the pinned pool of" in found.why
    assert said in found.why
    assert size <= found.near_bytes <= 0.2 * found.experts * size * 1.1
    assert found.near_bytes < hbm * size
    for experts, resident in ((2, 1), (3, 2), (8, 3)):  # some stay and some are switched
        near = choose_sizes(spec, MEASURED, 4, 8, experts, None).near_bytes
        assert resident * size <= near < (resident + 1) * size
    given = choose_sizes(spec, MEASURED, 4, 8, 7, 3 * size)
    assert (given.experts, given.near_bytes, given.why) == (7, 3 * size, "")
    large = {**MEASURED, "vocab_size": 10**7}
    with pytest.raises(CapacityError, match="2 experts in the pinned pool"):
        choose_sizes(spec, large, 4, 8, None, None)


def test_sizes_that_fill_a_gpu_hold_in_every_run_though_it_has_less_free_each_time(
    shape: Path, lazy: LazyGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code, graphs and limits of the runs before take HBM, and a spec is made of what is free."""
    config, spec = json.loads(shape.read_text()), Gpu().spec()
    size = synthetic_model(config).layout.size_bytes
    taken = spec.tier("hbm").capacity_bytes - choose_sizes(spec, config, 3, 7, 10**5, None).near_bytes
    driver, asked = lazy.driver, count()
    driver.facts = replace(driver.facts, total_bytes=int((taken + 3.5 * size) / HBM_SHARE))
    free_bytes = driver.free_bytes
    monkeypatch.setattr(driver, "free_bytes", lambda: free_bytes() - 64 * next(asked))
    got = coe("--shape", shape, "--experts", 24, "--policy", "fcfs", "--policy", "coterie")
    assert any("what KV and a step leave of it" in note for note in got["notes"])
    assert len(got["runs"]) == 2
    assert 3 * size < got["workload"]["near_bytes"] < 4 * size


def test_many_experts_are_served_beside_transformers_on_the_same_gpu(shape: Path) -> None:
    got = coe("--shape", shape, "--experts", 3, "--near", "250KiB", *PEER)
    rows = {row["policy"]: row for row in got["runs"]}
    assert set(rows) == {"fcfs", "coterie", "belady", "transformers"}
    size = got["workload"]["expert_bytes"][0]
    assert rows["transformers"]["requests"] == 8
    assert rows["transformers"]["moved_bytes"] == pytest.approx(rows["transformers"]["switches"] * size, rel=0.1)
    assert rows["transformers"]["switches"] >= 3
    assert got["tokens_per_s_over_peer"]["transformers"]["uniform/3"] > 0
    assert got["peer_settings"]["transformers"].startswith("bfloat16, ")
    code, text = run("bench", "coe", "--device", "synthetic:toy", *PEER)
    assert code == 2
    assert "a peer cannot run on synthetic:toy; compare on --device cpu or cuda" in text


def test_the_cpus_many_experts_have_transformers_beside_them_too(shape: Path) -> None:
    """Its only form in as many bytes is bfloat16."""
    words = (
        "coe",
        "--shape",
        shape,
        "--experts",
        2,
        "--near",
        "250KiB",
        "--requests",
        4,
        "--in-flight",
        2,
        "--mix",
        "uniform",
    )
    code, text = run("bench", *map(str, words), "--prompt", "4", "--tokens", "2", "--threads", "1", "--json", *PEER)
    assert code == 0, text
    got = json.loads(text[text.index('{"machine"') :])
    assert {row["policy"] for row in got["runs"]} == {"fcfs", "coterie", "belady", "transformers"}


def test_a_peer_that_keeps_closed_models_starts_each_run_without_them(model: Model, tmp_path: Path) -> None:
    """As our pool does, which each run fills from the disk again."""
    peer = Transformers("cpu")
    models = dict.fromkeys(("a", "b"), model)
    load = Workload("uniform", 1, ["a", "b", "a"], 4, 2)
    with converted(peer, models, load, 1, drops_pages=False) as made:
        kept = replace(made, settings=Settings(1, HOST, "sdpa"))
        seen: list[int] = []
        forget = peer.forget
        peer.forget = lambda: (seen.append(len(peer._kept)), forget())[1]
        for _ in range(2):
            row = serve_peer(kept, models, load, 10**9)
            assert row["switches"] == 2
        assert seen == [2, 2]
        assert not peer._kept
