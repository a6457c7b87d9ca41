"""Kernels compiled before they are launched are those that launches ask for, and the second time none is compiled.

Knows nothing about what kernels compute.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# Only looked for: to import triton here would keep the other tests of this process from interpreting it.
if find_spec("torch") is None or find_spec("triton") is None:
    pytest.skip("the extra cuda is not installed: torch or triton is missing", allow_module_level=True)

from benchmarks.first_gpu import parts
from benchmarks.gpu_ways import ways_of
from tests.system.adapting import ALL, trained_on
from tests.system.tiny import (
    CONFIG,
    write_adapter,
    write_clipped,
    write_delta_net,
    write_expert,
    write_latent,
    write_mixture,
)

CONTEXT = 600  # of three buckets


def environment(cache: Path) -> dict[str, str]:
    """Of a process that does not interpret."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return {**kept, "TRITON_CACHE_DIR": str(cache), "COLUMNS": "200"}


def asked(composition: Path, cache: Path) -> dict[str, list[str]]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.system.asked", str(composition)]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(cache), check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, list[str]] = json.loads(ran.stdout)
    return found


def check(found: dict[str, list[str]]) -> None:
    """Triton asks for what was said that it would, all of which is compiled before."""
    assert found["asked"] == found["here"]
    assert set(found["asked"]) <= set(found["ahead"])
    assert not set(found["asked"]) <= set(found["other"])  # for blocks of another size others are compiled


def test_what_steps_launch_was_compiled_before(tmp_path: Path) -> None:
    """Of an expert and of adapters that share steps with others of their kind, in decode, in prompts and in both, with
    guesses, forms, scores of prompts, and vectors in place of tokens.
    """
    folder = tmp_path / "office"
    write_expert(folder / "base", 1, max_position_embeddings=CONTEXT)
    for seed, name in enumerate(("sql", "tax", "german")):
        trained_on(write_adapter(folder / name, ALL[: 4 + 3 * (seed > 1)], seed=seed), "/home/somebody/base")
    found = asked(folder, tmp_path / "cache")
    check(found)
    assert {"few", "_few_each", "_many_each", "_lone_tokens", "_chunk", "_sample", "end_step"} <= set(found["names"])
    assert {"_norm", "_take"} <= set(found["names"])  # of steps that give vectors


@pytest.mark.long
@pytest.mark.parametrize("write", [write_mixture, write_clipped, write_delta_net, write_latent])
def test_what_steps_of_other_layers_launch_was_compiled_before(tmp_path: Path, write: object) -> None:
    """With branches, with sinks, windows and clipped gates, with gated delta nets, with latent attention."""
    write(tmp_path / "office" / "one", 1, max_position_embeddings=CONTEXT)  # type: ignore[operator]
    check(asked(tmp_path / "office", tmp_path / "cache"))


def compile_(*words: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from coterie.cli.main import main; main()", "compile", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(cache), check=False)


@pytest.mark.long
def test_kernels_are_compiled_once_without_a_gpu(tmp_path: Path) -> None:
    """Those of steps of up to two tokens, by two processes; then they are there, and for another GPU they are not."""
    write_expert(tmp_path / "office" / "one", 1)
    words = (tmp_path / "office", "--sequences", "1", "--tokens", "2", "--processes", "2")
    first, second = (compile_(*words, "--capability", "9.0", cache=tmp_path / "cache") for _ in range(2))
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    told = rf"(\d+) kernels for a GPU of capability 9.0: (.*), [\d.]+ s; in {tmp_path / 'cache'}\n"
    one, two = (re.fullmatch(told, ran.stdout) for ran in (first, second))
    assert one is not None, first.stdout
    assert two is not None, second.stdout
    assert one[2] == f"{one[1]} compiled in 2 processes, 0 were there already"
    assert two[2] == f"{one[1]} were there already"
    other = compile_(*words, "--capability", "8.0", "--json", cache=tmp_path / "other")
    assert other.returncode == 0, other.stderr
    assert json.loads(other.stdout)["there"] == 0


STARTED = """
import json
from triton.backends.nvidia import driver
from coterie.kernels.triton import compile_ahead, words
told = []
class Launcher:
    def __init__(self, source, metadata):
        told.append([source.fn.fn.__name__, metadata.name])
        raise AssertionError("there is no CUDA driver to link")
driver.make_launcher, driver.CudaLauncher = None, Launcher
compile_ahead.compile_for((9, 0))
one = compile_ahead.Wanted.of(words.launches()[0])
print(json.dumps([one.compile(), one.compile(), told]))
"""


def test_what_starts_a_kernel_is_compiled_with_it_where_triton_does_so(tmp_path: Path) -> None:
    """As Triton 3.6 does; where it cannot be, the kernel is compiled all the same."""
    ran = subprocess.run(
        [sys.executable, "-c", STARTED], capture_output=True, text=True, env=environment(tmp_path), check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert json.loads(ran.stdout) == [True, False, [["_move", "_move"]] * 2]


def test_what_cannot_be_compiled_for_is_one_sentence(tmp_path: Path) -> None:
    write_expert(tmp_path / "office" / "one", 1)
    for words, sentence in (
        (("--capability", "nine"), "[--capability] 'nine' is no capability of a GPU; give one as 9.0, an H100's"),
        (("--device", "cpu"), "[--device] 'cpu' is no GPU; use cuda or cuda:NUMBER"),
    ):
        ran = compile_(tmp_path / "office", *words, cache=tmp_path / "cache")
        assert ran.returncode == 2
        assert sentence in ran.stderr.replace("\n", " ")


BENCHES = "decode", "prefill", "switch", "fusion", "coe", "calibrate", "decode-int8", "decode-int6", "prefill-int8"


@pytest.mark.parametrize(
    "names", [("decode", "decode-int4", "decode-int6"), pytest.param(BENCHES, marks=pytest.mark.long)]
)
def test_what_a_session_measures_was_compiled_before(tmp_path: Path, names: tuple[str, ...]) -> None:
    """The kernels that its benches launch are those of `benchmarks.gpu_kernels`."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(CONFIG))
    every = {part.name: part for part in parts(tmp_path, "cuda", str(config), ("coterie",))}
    (tmp_path / "trace").mkdir()
    commands = [shlex.join(every[name].command[1:]) for name in names]
    ways = ("bf16", 1), ("int4", 4), ("bf16", 8)
    commands += [f"ways --shape {config} --weights {weights} --batch {batch} --seconds 0.1" for weights, batch in ways]
    command = [sys.executable, "-W", "ignore", "-m", "tests.system.asked_by_benches", str(config), *commands]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path / "cache"), check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout)
    assert found["missed"] == []
    assert len(found["asked"]) > 20 * len(set(names) & {"decode", "prefill"})


def test_kernels_of_the_benches_are_few_and_some_are_of_several(tmp_path: Path) -> None:
    """Of a model of 1.1B, found and not compiled."""
    command = [sys.executable, "-c", COUNTED]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path), check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    counts = json.loads(ran.stdout)
    sets = ways_of("bf16", 1), ways_of("int4", 4), ways_of("bf16", 8)
    ways = [{repr(way.changes) for way in each.values()} for each in sets]
    assert len(counts) == 9 + sum(map(len, ways))  # of some ways only the calls are longer
    assert 14 < counts[0] < sum(counts) < 250


COUNTED = """
import json
from benchmarks.gpu_kernels import steps_of, wanted_by
from coterie.devices.cuda.dry_run import DryRun
ahead, seen, counts = DryRun((9, 0), 132), {}, []
for each in steps_of("1b"):
    before = len(seen)
    seen |= wanted_by(ahead, each)
    counts.append(len(seen) - before)
print(json.dumps(counts))
"""
