"""OpenVINO as a peer: what its session asks of a compiled graph, and which settings say what, without its packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.system.test_bench import bench, refused
from tests.system.test_bench_peers import DRAWN, PROMPT_TOKENS, our_tokens

from coterie.bench.experts import WEIGHTS
from coterie.bench.peers import openvino
from coterie.bench.peers.openvino import OpenVino, OpenVinoFile, OpenVinoSession
from coterie.bench.peers.peer import Settings
from coterie.bench.step import prompt_ids
from coterie.bench.subject import Own, own_of
from coterie.core.errors import DeviceError
from coterie.models.model import Model

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino_genai") is None, reason="pip install 'coterie[openvino]'"
)


class Counted:
    """A compiled graph that draws the sum of all positions' tokens so far, and the request that it makes."""

    def __init__(self, inputs: tuple[str, ...]) -> None:
        self.inputs = [self]
        self._names, self._state = set(inputs), []
        self.asked: list[Mapping[str, Any]] = []

    def get_names(self) -> set[str]:
        return self._names

    def create_infer_request(self) -> Counted:
        return self

    def reset_state(self) -> None:
        self._state.clear()

    def infer(self, given: Mapping[str, Any], share_inputs: bool, share_outputs: bool) -> list[Any]:
        self.asked.append({name: value.copy() for name, value in given.items()})
        self._state += given["input_ids"][0].tolist()
        logits = np.zeros((1, 1, 100), np.float32)
        logits[0, -1, sum(self._state) % 100] = 1
        return [logits]


@pytest.mark.parametrize("names", [("input_ids",), ("input_ids", "attention_mask", "position_ids", "beam_idx")])
def test_positions_go_on_and_a_rewound_context_is_as_it_was(names: tuple[str, ...]) -> None:
    graph = Counted(names)
    session = OpenVinoSession(graph)
    assert session.prefill([5, 6, 7]) == 18
    assert session.decode(3) == [36, 72, 44]  # the sums of 18, 36 and 72 more, less hundreds
    session.rewind(9)  # more than there is: nothing to do
    assert session.prefill([5]) == 5
    session.rewind(0)
    assert session.decode(1) == [5]
    session.prefill([5, 6, 7])
    session.rewind(2)
    assert session.decode(2) == [29, 58]
    assert all(set(asked) == set(names) for asked in graph.asked)
    if "position_ids" in names:
        last = graph.asked[-1]
        assert (last["position_ids"].tolist(), last["attention_mask"].shape) == ([[3]], (1, 4))
    session.close()


class Core:
    """An engine that remembers what it was asked to compile, and may refuse."""

    def __init__(self, refuses: bool) -> None:
        self._refuses, self.options = refuses, {}

    def compile_model(self, path: Path, device: str, options: dict[str, Any]) -> Counted:
        self.options = options
        if self._refuses:
            raise RuntimeError("no")
        return Counted(("input_ids",))


def opened(path: Path, settings: Settings, refuses: bool = False) -> dict[str, Any]:
    peer = object.__new__(OpenVino)  # without its packages
    peer._core = Core(refuses)
    peer.open(path, settings, 9)
    return peer._core.options


def test_settings_become_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coterie.bench.peers.peer.allowed_cpus", lambda: (2, ""))
    peer = object.__new__(OpenVino)
    first, *others = peer.candidates(2)
    assert len({first, *others}) == len(others) + 1 == 8
    path = tmp_path / "float32" / "openvino_model.xml"
    assert opened(path, first) == {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": 2,
        "KV_CACHE_PRECISION": "f32",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    path = tmp_path / "int8" / "openvino_model.xml"
    found = opened(path, Settings(1, openvino.COMPILED, "cache of 8 bits"))
    assert found["KV_CACHE_PRECISION"] == "u8"
    assert found["CACHE_DIR"] == str(tmp_path / "int8" / "compiled")
    assert "INFERENCE_PRECISION_HINT" not in found
    assert peer.files(path) == (path, path.with_suffix(".bin"))
    (tmp_path / "int8" / "compiled").mkdir(parents=True)
    kept = tmp_path / "int8" / "compiled" / "x.blob"
    kept.touch()
    assert peer.files(path)[2:] == (kept,)
    with pytest.raises(DeviceError, match="compiled"):
        opened(path, first, refuses=True)


def test_every_way_to_store_weights_but_one_has_a_form() -> None:
    peer = object.__new__(OpenVino)
    assert {weights for weights in WEIGHTS if not peer.precisions(weights)} == {"int6"}  # NNCF has no such format
    assert peer.precisions("own") == ()


def test_a_file_may_be_opened_by_either_engine(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.touch()
    found = own_of(str(tmp_path), str(path), ("openvino", "llama.cpp", "openvino"), {})
    assert found == Own(tmp_path, path, ("openvino", "llama.cpp"))
    assert own_of(str(tmp_path), str(path), (), {}) == Own(tmp_path, path)
    for more in (("--peer", "openvino"), ("--gguf", path, "--peer", "transformers")):
        assert "--gguf" in refused("decode", "--checkpoint", tmp_path, *more)


@needs_openvino
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4, groups of 32", "int4z, groups of 128"])
def test_every_form_is_opened(precision: str, measured: Model, tmp_path: Path) -> None:
    """A second open reads what the first compiled; a prompt's last row is its only one."""
    peer = OpenVino()
    path = peer.prepare(measured.checkpoint.path, tmp_path, precision)
    drawn = []
    for _ in range(2):
        session = peer.open(path, Settings(1, openvino.COMPILED, "cache of 8 bits"), 32)
        drawn.append([session.prefill(prompt_ids(measured, PROMPT_TOKENS)), *session.decode(2)])
        assert session.decode(0) == []
        session.close()
    assert drawn[0] == drawn[1]
    assert len(peer.files(path)) == 3


@needs_openvino
def test_a_file_of_ones_own_is_beside_us(measured: Model, measured_gguf: Path, tmp_path: Path) -> None:
    """Its reader knows no float32 matrices, and says so; what it reads draws our tokens."""
    with pytest.raises(DeviceError, match=measured_gguf.name):
        OpenVinoFile(measured_gguf).prepare(measured.checkpoint.path, tmp_path, measured_gguf.name)
    half = tmp_path / "tiny-F16.gguf"
    openvino.write_gguf(measured, half, "F16")
    peer = OpenVinoFile(half)
    path = peer.prepare(measured.checkpoint.path, tmp_path / "float32", half.name)
    session = peer.open(path, peer.candidates(1)[0], 32)
    drawn = [session.prefill(prompt_ids(measured, PROMPT_TOKENS)), *session.decode(DRAWN - 1)]
    assert drawn == our_tokens(measured)
    own = ("--checkpoint", measured.checkpoint.path, "--gguf", half, "--peer", "openvino")
    row = bench("decode", *own, "--context", 5, "--rounds", 2, "--seconds", 0)["peers"]["openvino"]
    assert row["precision"] == half.name
    assert row["ratio"] > 0
