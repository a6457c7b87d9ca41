"""Peers beside a GPU's benches, on a GPU that is none: the peer's torch device is the CPU, and so are its numbers.

What only CUDA has is left: pinned pages, CUDA graphs, and how long anything takes.
"""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'coterie[peers]'")

import torch
from tests.device.lazy_gpu import LazyDriver
from tests.system.gpu_peers import PEER, dynamo, model, small, uncompiled
from tests.system.test_bench_peers import DRAWN, PROMPT_TOKENS, our_tokens
from tests.system.test_cuda import Gpu as LazyGpu
from tests.system.test_cuda import lazy, run
from tests.system.test_cuda_bench import bench, shape

from coterie.bench import gpu_peers, gpu_switch, gpu_switch_peers
from coterie.bench.peers.best import Work, prepared_peer
from coterie.bench.peers.host_module import ALIGN, HostModule, HostRoom, room_bytes
from coterie.bench.peers.peer import Session, Settings
from coterie.bench.peers.transformers import FILE, HOST, Transformers
from coterie.bench.report import Effort
from coterie.bench.step import prompt_ids
from coterie.models.model import Model

__all__ = ["dynamo", "lazy", "model", "shape", "small", "uncompiled"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch says it to its own compiler


def opened(peer: Transformers, model: Model, stack: Path, load: str = FILE) -> Session:
    path = peer.prepare(model.checkpoint.path, stack / f"{peer.name} {load}", "float32")
    return peer.open(path, Settings(1, load, "sdpa"), 64)


WAYS = {
    "eager": lambda: (Transformers("cpu"), FILE),
    "from host memory": lambda: (Transformers("cpu"), HOST),
    "decode compiled": lambda: (Transformers("cpu", "decode"), FILE),
    "prefill compiled": lambda: (Transformers("cpu", "prefill"), FILE),
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_draws_our_tokens_again_and_again(way: str, model: Model, dynamo: None, tmp_path: Path) -> None:
    ours, prompt = our_tokens(model), prompt_ids(model, PROMPT_TOKENS)
    peer, load = WAYS[way]()
    session = opened(peer, model, tmp_path, load)
    for _ in range(2):
        assert [session.prefill(prompt), *session.decode(DRAWN - 1)] == ours
    for _ in range(2):
        session.prefill(prompt)
        session.rewind(PROMPT_TOKENS - 2)
        drawn = session.decode(2)
    session.rewind(PROMPT_TOKENS - 2)
    assert len(drawn) == 2
    session.prefill(prompt[:3])  # what the cache held behind these is not seen
    assert session.prefill(prompt) == ours[0]
    session.synchronize()
    session.close()


@pytest.mark.long
@pytest.mark.parametrize("way", ["decode compiled", "prefill compiled"])
def test_inductor_draws_our_tokens(way: str, model: Model, tmp_path: Path) -> None:
    """The CPU's backend of the compiler that a GPU is compiled for: a minute or two."""
    session = opened(WAYS[way]()[0], model, tmp_path)
    prompt = prompt_ids(model, PROMPT_TOKENS)
    assert [session.prefill(prompt), *session.decode(DRAWN - 1)] == our_tokens(model)
    session.close()


@pytest.mark.parametrize("way", list(WAYS)[:3])
def test_a_closed_session_leaves_no_model_behind(way: str, model: Model, dynamo: None, tmp_path: Path) -> None:
    peer, load = WAYS[way]()
    loaded: list[weakref.ref] = []
    load_one = peer._load

    def noted(path: Path, settings: Settings) -> object:
        module = load_one(path, settings)
        loaded.append(weakref.ref(next(module.parameters())))
        return module

    peer._load = noted
    session = opened(peer, model, tmp_path, load)
    session.prefill([1, 2, 3])
    session.decode(2)
    assert loaded[0]() is not None
    session.close()
    if load == HOST:
        assert loaded[0]() is not None  # it waits
        peer.forget()
    del session
    gc.collect()
    assert loaded[0]() is None


def test_a_module_that_waits_in_host_memory_is_moved_there_and_back(model: Model, tmp_path: Path) -> None:
    peer = Transformers("cpu")
    session = opened(peer, model, tmp_path, HOST)
    (kept,) = peer._kept.values()
    homes = {host.data_ptr() for _, host in kept._held}
    assert not homes & {tensor.data_ptr() for tensor, _ in kept._held}
    assert all(torch.equal(tensor, host) for tensor, host in kept._held)
    first = session.prefill([1, 2, 3])
    session.close()
    assert {tensor.data_ptr() for tensor, _ in kept._held} == homes
    assert max(homes) - min(homes) < 2 * sum(host.numel() * host.element_size() for _, host in kept._held)
    again = opened(peer, model, tmp_path / "again", HOST)
    assert again.prefill([1, 2, 3]) == first
    again.close()


@pytest.mark.parametrize("limit_bytes", [None, 0])
def test_host_memory_is_pinned_once_and_given_back(limit_bytes: int | None) -> None:
    """By a driver that counts; what does not pin works unpinned."""
    driver, linear = LazyDriver(), torch.nn.Linear(3, 5)
    driver.pin_limit_bytes = limit_bytes
    kept = HostModule(torch, linear, "cpu", HostRoom(room_bytes(linear), driver))
    assert kept.room.is_pinned == (limit_bytes is None)
    assert driver.pinned_bytes == (2 * ALIGN if limit_bytes is None else 0)
    kept.move()
    assert linear(torch.ones(3)).shape == (5,)
    del kept
    gc.collect()
    assert driver.pinned_bytes == 0


def test_host_memory_is_pinned_before_the_first_open(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, peer = LazyDriver(), Transformers("cpu")
    monkeypatch.setattr(peer, "_driver", lambda: driver)
    path = peer.prepare(model.checkpoint.path, tmp_path, "float32")
    settings = Settings(1, HOST, "sdpa")
    peer.reserve([path], replace(settings, load=FILE))
    assert driver.pinned_bytes == 0
    peer.reserve([path], settings)
    reserved = driver.pinned_bytes
    assert reserved > model.layout.size_bytes
    peer.open(path, settings, 8).close()
    assert driver.pinned_bytes == reserved
    assert peer.pins
    peer.forget()
    assert driver.pinned_bytes == 0


def test_the_fastest_attention_that_works_stays_open(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Transformers("cpu")
    tried: list[str] = []
    open_one = peer.open

    def some(path: Path, settings: Settings, max_tokens: int) -> Session:
        tried.append(settings.attention)
        if settings.attention == "sdpa":
            raise RuntimeError("\nno kernel image is available\nCompile with ...")
        return open_one(path, settings, max_tokens)

    monkeypatch.setattr(peer, "open", some)
    with prepared_peer(peer, model.checkpoint.path, "bf16") as prepared:
        settings, session = gpu_peers.fastest(peer, prepared["bfloat16"], 8, Work(lambda one: one.prefill([1, 2])))
    assert tried == ["sdpa", "eager"]
    assert settings.attention == "eager"
    assert session.prefill([1, 2]) == session.prefill([1, 2])
    session.close()


def broken_in(peer: Transformers, attention: str) -> list[weakref.ref]:
    """Its weights on the device, of every model that it opens; prompts fail with one attention."""
    weights: list[weakref.ref] = []
    load_one = peer._load

    def load(path: Path, settings: Settings) -> object:
        module = load_one(path, settings)
        weights.append(weakref.ref(next(module.parameters())))
        if settings.attention == attention:
            module.forward = broken()
        return module

    peer._load = load
    return weights


def test_an_attention_that_fails_or_loses_leaves_no_model_in_memory(model: Model) -> None:
    work = Work(lambda one: one.prefill([1, 2]))
    for attention in ("sdpa", "eager", "none of them"):
        peer = Transformers("cpu")
        weights = broken_in(peer, attention)
        with prepared_peer(peer, model.checkpoint.path, "bf16") as prepared:
            _, session = gpu_peers.fastest(peer, prepared["bfloat16"], 8, work)
        assert sum(weight() is not None for weight in weights) == 1
        session.close()


def test_what_compiles_tries_another_attention_only_where_the_first_fails(model: Model, uncompiled: None) -> None:
    for attention, tried in (("none of them", 1), ("sdpa", 2)):
        peer = Transformers("cpu", "decode")
        weights = broken_in(peer, attention)
        work = Work(lambda one: one.decode(2), lambda one: one.prefill([1, 2]))
        with prepared_peer(peer, model.checkpoint.path, "bf16") as prepared:
            _, session = gpu_peers.fastest(peer, prepared["bfloat16"], 8, work)
        assert len(weights) == tried
        session.close()
        assert peer._compiled_open == 0


def test_nothing_of_ours_is_left_in_hbm_when_the_peers_models_come(
    shape: Path, lazy: LazyGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    monkeypatch.setattr(gpu_switch, "switch_peers", lambda *_: taken.append(lazy.driver.taken_bytes) or {})
    got = bench("switch", "--shape", shape, "--prompt", 3, "--experts", 2, *PEER)
    assert taken[0] < got["workload"]["expert_bytes"]  # neither a resident nor the limit, which is as large


def test_two_models_of_which_one_does_not_open_are_both_gone(
    shape: Path, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held open, and held open compiled; the other ways open one at a time."""
    held: list[Transformers] = []
    open_one = Transformers.open

    def no_second(self: Transformers, path: Path, settings: Settings, max_tokens: int) -> Session:
        if self.compiles and self._compiled_open:
            held.append(self)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return open_one(self, path, settings, max_tokens)

    monkeypatch.setattr(Transformers, "open", no_second)
    row = bench("switch", "--shape", shape, "--prompt", 3, "--experts", 2, *PEER)["peers"]["transformers"]
    assert [name for name, way in row["ways"].items() if "failed" in way] == ["held open, compiled"]
    assert [peer._compiled_open for peer in held] == [0]


def test_a_compiled_model_is_recorded_and_replayed_before_it_is_measured() -> None:
    turns: list[int] = []
    gpu_switch_peers._Rounds(Effort(1, 0.0)).take(
        lambda turn: turns.append(-1) or 1.0,
        {"held open": lambda turn: turns.append(turn) or 1.0},
        gpu_switch_peers.HELD_TURNS,
    )
    warm = turns[: turns.index(-1)]
    assert warm[:6] == list(range(6))  # run, recorded, replayed: of each of two models


def test_decode_and_prefill_show_the_best_way_and_hold_each(
    shape: Path, uncompiled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    skips = count(0, 3)  # CUDA graphs that the compiler gave up on, each time that somebody asks
    monkeypatch.setattr(Transformers, "graph_skips", property(lambda self: next(skips)))
    for words, tokens in ((("decode", "--context", 7, "--batch", 2), 1), (("prefill", "--prompt", 9), 9)):
        got = bench(*words, "--shape", shape, *PEER)
        row = got["peers"]["transformers"]
        assert set(row["ways"]) == {"transformers", "transformers compiled"}
        best = min(row["ways"], key=lambda name: row["ways"][name]["ratio"])
        assert (row["way"], row["ratio"]) == (best, row["ways"][best]["ratio"])
        for way in row["ways"].values():
            assert way["precision"] == "bfloat16"
            assert way["settings"].split(", ")[1] == FILE
            ours_s = got["seconds_per_token"] if tokens == 1 else got["seconds"]
            assert tokens / way["tokens_per_s"] == pytest.approx(way["ratio"] * ours_s, rel=0.9)
        assert row["ways"]["transformers compiled"]["cuda_graph_skips"] == 3
        assert "cuda_graph_skips" not in row["ways"]["transformers"]
        assert sum("transformers" in note for note in got["notes"]) == 2
        assert sum("gave up on 3 CUDA graphs" in note for note in got["notes"]) == 1


def test_a_switch_is_held_against_every_way_to_another_model(shape: Path, uncompiled: None) -> None:
    got = bench("switch", "--shape", shape, "--prompt", 5, "--experts", 2, *PEER)
    row = got["peers"]["transformers"]
    assert row["ways"]["host"]["pinned"] is False  # its driver is asked only for a GPU of CUDA's
    assert [note.startswith("transformers, host") for note in got["notes"] if "not pinned" in note] == [True]
    assert set(row["ways"]) == {"disk", "page cache", "host", "held open", "held open, compiled"}
    for name, way in row["ways"].items():
        low, high = way["ratio_quartiles"]
        assert 0 < low <= way["ratio"] <= high, name
        assert way["seconds"] > 0
        assert way["ours_s"] > 0


def broken(*_: object, **__: object) -> object:
    def forward(*_: object, **__: object) -> object:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nin /usr/bin")

    return forward


def test_where_torch_cannot_compile_the_row_says_so_and_the_run_goes_on(
    shape: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", broken)
    for words in (("decode", "--context", 7), ("prefill", "--prompt", 9)):
        got = bench(*words, "--shape", shape, *PEER)
        row = got["peers"]["transformers"]
        assert row["way"] == "transformers"
        said = "RuntimeError: InvalidCxxCompiler: No working C++ compiler found"
        assert row["ways"]["transformers compiled"] == {"failed": said}
        assert f"transformers compiled did not run: {said}" in got["notes"]
    ways = bench("switch", "--shape", shape, "--prompt", 5, "--experts", 2, *PEER)["peers"]["transformers"]["ways"]
    assert [name for name, way in ways.items() if "failed" in way] == ["held open, compiled"]


def test_a_peer_that_cannot_run_at_all_is_a_sentence(shape: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> object:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.05 GiB")

    monkeypatch.setattr(Transformers, "_load", full)
    got = bench("decode", "--shape", shape, "--context", 7, *PEER)
    assert set(got["peers"]["transformers"]) == {"ways"}
    assert "CUDA out of memory" in json.dumps(got["notes"])
    got = bench("switch", "--shape", shape, "--prompt", 5, "--experts", 2, *PEER)
    assert all("CUDA out of memory" in way["failed"] for way in got["peers"]["transformers"]["ways"].values())
    assert got["cold_ttft_s"] > 0


def test_weights_that_the_peer_has_no_form_of_are_said(shape: Path) -> None:
    got = bench("decode", "--shape", shape, "--context", 7, "--weights", "int8", *PEER)
    assert "it has no int8 weights of its own" in json.dumps(got["peers"])


def test_another_engine_is_no_peer_on_a_gpu(shape: Path) -> None:
    for name, words in (("llama.cpp", "'llama.cpp' is not compared on a GPU"), ("vllm", "'vllm' is not a peer")):
        for what in ("decode", "prefill", "switch"):
            code, text = run("bench", what, "--shape", str(shape), "--device", "cuda", "--peer", name)
            assert code == 2
            assert f"{words}; use transformers" in text
