"""Benches of a user's own checkpoint, and of llama.cpp on the GGUF file beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.system.test_bench import bench, refused
from tests.system.test_bench_peers import DRAWN, PROMPT_TOKENS, our_tokens

from coterie.bench.step import prompt_ids
from coterie.bench.subject import OWN, Own, Target, subject
from coterie.core.dtypes import DType
from coterie.core.errors import CheckpointError, UsageError
from coterie.core.resident import resident_bytes
from coterie.models.model import Model, open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

QUICK = ("--rounds", 2, "--seconds", 0, "--threads", 1)


@pytest.fixture(scope="module")
def packed(measured: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "packed"
    return quantize_folder(measured.checkpoint.path, out, Packing(DType.Q4Z, DType.Q4Z)).folder


def test_what_is_measured_is_the_folder_as_it_is(packed: Path, measured: Model) -> None:
    got = bench("decode", "--checkpoint", packed, "--context", 5, "--batch", 2, *QUICK)
    assert got["workload"]["checkpoint"] == "packed"
    assert got["workload"]["weights"] == "own, most int4z"
    assert got["workload"]["activations"] == "int16"
    assert "shape" not in got["workload"]
    assert got["peers"] == {}
    with subject(Target("demo", activations="int8", own=Own(packed)), 9) as it:
        assert (it.weights, it.stored, it.activation_type) == (OWN, DType.Q4Z, "int8")
        assert {value.dtype for value in it.model.graph.weights} == {DType.Q4Z, DType.BF16}
    own = Target("demo", own=Own(measured.checkpoint.path))
    with subject(replace(own, activations="int16"), 9) as it:
        assert (it.stored, it.activation_type) == (DType.BF16, "float32")
        assert it.model.layout == open_model(measured.checkpoint.path).layout
    with subject(replace(own, activations="bf16"), 9) as it:
        assert it.activation_type == "bf16"
        assert it.model.key != open_model(measured.checkpoint.path).key
    assert "are int4z, and bf16 activations are only for bfloat16 weights" in refused(
        "decode", "--checkpoint", packed, "--activations", "bf16"
    )


def test_llama_cpp_opens_the_file_itself_and_draws_our_tokens(
    measured: Model, measured_gguf: Path, tmp_path: Path
) -> None:
    (peer,) = Target("demo", own=Own(measured.checkpoint.path, measured_gguf)).engines()
    assert peer.precisions(OWN) == (measured_gguf.name,)
    assert peer.prepare(measured.checkpoint.path, tmp_path, measured_gguf.name) == measured_gguf
    prompt, ours = prompt_ids(measured, PROMPT_TOKENS), our_tokens(measured)
    for settings in peer.candidates(1):
        session = peer.open(measured_gguf, settings, 64)
        try:
            assert [session.prefill(prompt), *session.decode(DRAWN - 1)] == ours, str(settings)
        finally:
            session.close()


def test_each_bench_prints_the_file_beside_it(measured: Model, measured_gguf: Path) -> None:
    folder = measured.checkpoint.path
    for name, more in (("decode", ("--context", 5)), ("prefill", ("--prompt", 5))):
        got = bench(name, "--checkpoint", folder, "--gguf", measured_gguf, *more, *QUICK)
        row = got["peers"]["llama.cpp"]
        assert row["ratio"] > 0
        assert row["precision"] == got["workload"]["gguf"] == measured_gguf.name
        assert "memory_bytes" in row
    got = bench("switch", "--checkpoint", folder, "--gguf", measured_gguf, "--prompt", 5, "--experts", 2, *QUICK)
    assert got["workload"]["expert_bytes"] == measured.layout.size_bytes
    assert {"ratio", "warm_ratio", "both_open_ratio", "settings"} <= set(got["peers"]["llama.cpp"])


def test_a_switch_is_between_names_of_one_checkpoint(packed: Path) -> None:
    got = bench("switch", "--checkpoint", packed, "--prompt", 5, "--experts", 3, *QUICK)
    assert got["workload"]["checkpoint"] == "packed"
    assert got["cold_ttft_s"] > 0
    assert [model.name for model in Own(packed).experts(2)] == ["own-0", "own-1"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("decode", "--gguf", "x.gguf"), "--checkpoint"),
        (("decode", "--shape", "1b"), "--shape"),
        (("prefill", "--weights", "int4"), "--weights"),
        (("decode", "--peer", "transformers"), "--gguf"),
        (("switch", "--shape", "1b"), "--shape"),
        (("decode", "--gguf", "nowhere.gguf"), "nowhere.gguf"),
        (("decode", "--context", "4000"), "128"),
        (("decode", "--activations", "int8"), "are bf16, and int8 activations are only for packed weights"),
    ],
)
def test_what_contradicts_itself_is_a_sentence(words: tuple[str, ...], said: str, measured: Model) -> None:
    more = () if said == "--checkpoint" else ("--checkpoint", measured.checkpoint.path)
    assert said in refused(*words, *more)


def test_a_folder_that_is_no_checkpoint_and_one_of_several_files_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused("decode", "--checkpoint", tmp_path / "none")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        Own(tmp_path).experts(2)
    with pytest.raises(CheckpointError):
        open_model(tmp_path / "none")


def test_memory_that_is_touched_is_counted() -> None:
    before, size = resident_bytes(), 64 << 20
    kept = bytearray(b"x") * size
    grown = resident_bytes() - before
    assert 0.9 * size < grown < 2 * size
    assert len(kept) == size
