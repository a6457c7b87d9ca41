"""The team of threads: gates, failures, many lists, wrong rows.

Knows nothing about devices.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from tests.device.native import call, empty, random

from coterie.kernels import cpu as kernels

BIG = {"T": 64, "N": 40_000}  # elements enough for other threads to be woken


def add_row(a, b, y, gate=0, T=None, N=None):
    sizes = {"T": T or a.shape[0], "N": N or a.shape[1]}
    operands = {"a": kernels.address(a), "b": kernels.address(b), "y": kernels.address(y), **sizes}
    return kernels.encode("add", operands, gate)


@pytest.fixture(params=[1, 2, 3, 8])
def team(request):
    return kernels.Team(request.param)


def test_a_chain_of_rows_runs_in_order(team):
    rng = np.random.default_rng(0)
    x = random(rng, 64, 10_000)
    buffers = [x, *(empty(*x.shape) for _ in range(40))]
    rows = np.stack([add_row(buffers[i], x, buffers[i + 1]) for i in range(40)])
    expected = x.copy()
    for _ in range(40):
        expected = expected + x
    for _ in range(5):
        assert team.run(rows) == 40
        np.testing.assert_array_equal(buffers[-1], expected)


def test_many_short_lists_after_idle_times(team):
    rng = np.random.default_rng(0)
    x, y = random(rng, 64, 8192), empty(64, 8192)
    rows = add_row(x, x, y).reshape(1, -1)
    for i in range(60):
        y[:] = 0
        assert team.run(rows) == 1
        assert np.array_equal(y, x + x)
        if i % 20 == 0:
            time.sleep(0.01)  # long enough for the threads to fall asleep


@pytest.mark.parametrize("delay_s", [0.0, 0.02])
@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("shape", [(1, 5), (64, 10_000)])
def test_a_gate_is_awaited_and_a_failed_one_stops(team, shape, passed, delay_s):
    x = np.ones(shape, dtype=np.float32)
    first, second = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    gate = np.zeros(1, dtype=np.int32)
    rows = np.stack([add_row(x, x, first), add_row(first, x, second, kernels.address(gate)), add_row(x, x, first)])
    seen = []

    def opener():
        time.sleep(delay_s)
        seen.append(second.any())
        kernels.signal(kernels.address(gate), passed)

    thread = threading.Thread(target=opener)
    thread.start()
    assert team.run(rows) == (3 if passed else 1)
    thread.join()
    assert seen == [False]
    assert second.any() == passed
    assert first.all()


def test_rows_of_nothing(team):
    assert team.run(np.zeros((0, kernels.ROW_WORDS), dtype=np.int64)) == 0


def test_an_unknown_opcode_is_refused(team):
    rows = np.zeros((1, kernels.ROW_WORDS), dtype=np.int64)
    for number in (-1, len(kernels.OPCODES)):
        rows[0, 0] = number
        with pytest.raises(ValueError, match="opcode"):
            team.run(rows)


def test_rows_of_the_wrong_width_are_refused(team):
    with pytest.raises(TypeError):
        team.run(np.zeros((1, kernels.ROW_WORDS + 1), dtype=np.int64))


def test_missing_and_unknown_operands_are_named():
    with pytest.raises(KeyError, match="T"):
        kernels.encode("add", {"a": 0, "b": 0, "y": 0, "N": 0})
    with pytest.raises(KeyError, match="surplus"):
        kernels.encode("add", {"a": 0, "b": 0, "y": 0, "N": 0, "T": 0, "surplus": 1})


def test_no_threads_and_unknown_instruction_sets_are_refused():
    with pytest.raises(ValueError, match="thread"):
        kernels.Team(0)
    with pytest.raises(ValueError, match="mmx"):
        kernels.Team(1, "mmx")


FEW_THREADS = """
import resource
from pathlib import Path
from coterie.kernels import cpu as kernels
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 256 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    kernels.Team(1000)
except RuntimeError as error:
    print(error)
kernels.Team(2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on address space is Linux's")
def test_a_team_that_cannot_start_is_an_error_and_not_the_end():
    command = [sys.executable, "-c", FEW_THREADS]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "of 1000 threads could be started" in done.stdout


def test_counters_count_and_reset():
    team = kernels.Team(2)
    x, y = np.ones((3, 5), dtype=np.float32), empty(3, 5)
    call(team, "add", a=x, b=x, y=y, T=3, N=5)
    assert team.counters() == kernels.Counters(stored_bytes=60, scratch_bytes=0, calls=1, instructions=1)
    team.reset_counters()
    assert team.counters() == kernels.Counters(0, 0, 0, 0)


def test_threads_sleep_when_there_is_no_work():
    team = kernels.Team(4)
    x, y = np.ones((64, 40_000), dtype=np.float32), empty(64, 40_000)
    call(team, "add", a=x, b=x, y=y, **BIG)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.05
