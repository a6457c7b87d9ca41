"""Peers of the benches: that they compute what we compute, at every precision, and what is said without them."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import pytest
from tests.system.test_bench import bench, refused
from tests.system.tiny import MEASURED

from coterie.bench.experts import random_experts
from coterie.bench.peers import best
from coterie.bench.peers.best import PEERS, Work, choose, peers_named, prepared_peer
from coterie.bench.peers.gguf_file import gguf_name, write_gguf
from coterie.bench.peers.llama_cpp import LlamaCpp
from coterie.bench.peers.peer import Peer, Settings
from coterie.bench.step import on_cpu, prompt_ids
from coterie.core.errors import UnsupportedError, UsageError
from coterie.device import wait_for
from coterie.models.model import Model
from coterie.models.registry import weight_shapes

PROMPT_TOKENS, DRAWN = 9, 4
PACKAGES = {"llama.cpp": "llama_cpp", "transformers": "transformers", "openvino": "openvino_genai"}


@pytest.fixture(params=list(PEERS))
def peer(request: pytest.FixtureRequest) -> Peer:
    if importlib.util.find_spec(PACKAGES[request.param]) is None:
        pytest.skip(f"{request.param} is not installed: pip install 'coterie[peers]'")
    return PEERS[request.param]()


def our_tokens(model: Model) -> list[int]:
    """Greedy tokens after the prompt, by whole prefills of a growing prompt."""
    ids = prompt_ids(model, PROMPT_TOKENS)
    loaded = on_cpu(model, "device", 1, PROMPT_TOKENS + DRAWN)
    try:
        for _ in range(DRAWN):
            step = loaded.step("cache", 0, len(ids))
            step.binding.rows.tokens_T[:] = ids
            event = loaded.device.run(step.exe, step.binding)
            wait_for(loaded.device, event)
            ids.append(int(loaded.device.tokens(event)[0, 0]))
    finally:
        loaded.close()
    return ids[PROMPT_TOKENS:]


def test_a_peer_draws_our_tokens_and_again_after_a_second_prefill(peer: Peer, measured: Model) -> None:
    ours, prompt = our_tokens(measured), prompt_ids(measured, PROMPT_TOKENS)
    with prepared_peer(peer, measured.checkpoint.path, "bf16") as prepared:
        exact = next(name for name in prepared if name in ("F32", "float32"))
        session = peer.open(prepared[exact], peer.candidates(1)[0], 64)
        try:
            for _ in range(2):
                assert [session.prefill(prompt), *session.decode(DRAWN - 1)] == ours
            session.prefill(prompt)
            session.rewind(PROMPT_TOKENS - 2)
            drawn = session.decode(2)  # the cache holds the prompt less two: positions go on from there
            session.rewind(PROMPT_TOKENS - 2)
            session.prefill(prompt)
            session.rewind(PROMPT_TOKENS - 2)
            assert session.decode(2) == drawn
        finally:
            session.close()
        assert all(file.is_file() for name in prepared for file in peer.files(prepared[name]))


@pytest.mark.parametrize(
    ("cores", "cpus", "ours", "tried"),
    [
        (8, 16, 8, [16, 8, 1]),
        (8, 16, 4, [4, 1]),
        (8, 16, 32, [32, 16, 1]),
        (2, 2, 2, [2, 1]),
        (1, 2, 1, [2, 1]),
        (1, 1, 1, [1]),
    ],
)
def test_peers_may_have_hyperthreads_and_slow_cores_too(
    monkeypatch: pytest.MonkeyPatch, peer: Peer, cores: int, cpus: int, ours: int, tried: list[int]
) -> None:
    monkeypatch.setattr("coterie.bench.peers.peer.allowed_cores", lambda: (cores, ""))
    monkeypatch.setattr("coterie.bench.peers.peer.allowed_cpus", lambda: (cpus, ""))
    assert list(dict.fromkeys(settings.threads for settings in peer.candidates(ours))) == tried


def test_a_trial_finds_a_setting_that_was_tried(peer: Peer, measured: Model) -> None:
    with prepared_peer(peer, measured.checkpoint.path, "bf16") as prepared:
        chosen = choose(peer, prepared, 2, 64, Work(lambda session: session.prefill([1, 2, 3])))
    assert chosen is not None
    assert chosen.precision in peer.precisions("bf16")
    assert chosen.settings in peer.candidates(2)
    assert choose(peer, {}, 2, 64, Work(lambda session: None)) is None


def test_a_peers_threads_rest_before_anything_else_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """They look for more work for a while after a call, on cores that others are measured on. That time is nobody's."""
    clock = [0.0]

    def passes(seconds: float) -> None:
        clock[0] += seconds

    monkeypatch.setattr(best, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(best, "sleep", passes)
    assert best.seconds_of(lambda: passes(1.0)) == 1.0
    assert clock[0] == 1.0 + best.RESTING_S


def test_every_tensor_of_a_llama_has_a_gguf_name(measured: Model) -> None:
    names = [gguf_name(name) for name in weight_shapes(measured.config)]
    assert len(set(names)) == len(names)
    assert gguf_name("model.layers.12.mlp.down_proj.weight") == "blk.12.ffn_down.weight"


def test_a_model_that_gguf_has_no_form_for_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="gguf is not installed: pip install 'coterie[peers]'")
    qwen = {**MEASURED, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    with random_experts(qwen, 1) as (other,), pytest.raises(UnsupportedError, match="qwen2"):
        write_gguf(other, tmp_path / "x.gguf", "F32")


def test_decode_and_prefill_print_a_peer(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(MEASURED))
    for name, more in (("decode", ("--context", 5)), ("prefill", ("--prompt", 5))):
        got = bench(name, "--shape", config, *more, "--peer", "transformers", "--rounds", 2, "--seconds", 0)
        row = got["peers"]["transformers"]
        assert row["tokens_per_s"] > 0
        assert row["ratio"] > 0
        assert row["precision"] in ("bfloat16", "float32")


def test_switch_prints_a_peer(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(MEASURED))
    sizes = ("--prompt", 5, "--experts", 2, "--rounds", 2, "--seconds", 0)
    row = bench("switch", "--shape", config, *sizes, "--peer", "transformers")["peers"]["transformers"]
    for field in ("ours_cold_ttft_s", "ours_warm_ttft_s", "cold_ttft_s", "reload_s", "both_open_s"):
        assert row[field] > 0, field
    assert {"ratio", "warm_ratio", "both_open_ratio", "settings"} <= set(row)


def test_an_unknown_peer_lists_the_peers() -> None:
    sentence = refused("decode", "--peer", "vllm")
    for word in ("vllm", *PEERS):
        assert word in sentence


def test_a_missing_extra_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    packages = {"llama.cpp": "llama-cpp-python", "transformers": "transformers", "openvino": "openvino-genai"}
    for name, package in packages.items():
        with pytest.raises(UsageError, match=package) as caught:
            peers_named([name])
        assert f"'.[{'openvino' if name == 'openvino' else 'peers'}]'" in str(caught.value)


def test_settings_read_as_a_phrase() -> None:
    assert str(Settings(1, "mmap", "flash")) == "1 thread, mmap, flash"
    assert str(Settings(2, "read", "plain")) == "2 threads, read, plain"


@pytest.mark.parametrize("shared", [False, True])
def test_sequences_of_a_batch_draw_what_each_draws_alone(measured: Model, shared: bool) -> None:
    """Of odd lengths, one of a single token; one joins when others run, and in a slot that was left."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama.cpp is not installed: pip install 'coterie[peers]'")
    peer = LlamaCpp()
    ids = prompt_ids(measured, 20)
    prompts = {0: ids[:7], 2: ids[3:4], 1: ids[5:18]}
    settings = peer.candidates(1)[0]
    with prepared_peer(peer, measured.checkpoint.path, "bf16") as prepared:
        session = peer.open(prepared["F32"], settings, 32)
        alone = {slot: [session.prefill(prompt), *session.decode(5)] for slot, prompt in prompts.items()}
        other = [session.prefill(ids[2:6]), *session.decode(2)]
        session.close()
        batch = peer.open_batch(prepared["F32"], settings, 32, 3, shared)
        try:
            drawn = {slot: [] for slot in prompts}
            parts = [({0: prompts[0], 2: prompts[2]}, []), ({1: prompts[1]}, [0, 2]), *([({}, [0, 1, 2])] * 4)]
            for begin, going in parts:
                for slot, token in batch.step(begin, going).items():
                    drawn[slot].append(token)
            assert drawn == {0: alone[0], 1: alone[1][:5], 2: alone[2]}
            batch.leave(0)
            again = [batch.step({0: ids[2:6]}, [1, 2]), batch.step({}, [0]), batch.step({}, [0, 1])]
            assert [found[0] for found in again] == other
        finally:
            batch.close()
