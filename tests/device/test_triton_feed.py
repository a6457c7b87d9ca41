"""Runs of several steps on the GPU's kernels, interpreted: queued at once, they end where the CPU's do.

Knows nothing about streams.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.device.interpreted import WIDE, Bucket, bound_rows, gpu
from tests.device.random_expert import SPEC, RandomExpert, step_of

from coterie.core.dtypes import DType
from coterie.core.errors import DeviceError
from coterie.devices.cpu.device import CpuDevice
from coterie.kernels.triton.feed import feed_launch, stops_of

STEPS = 4


@pytest.fixture
def expert():
    device = CpuDevice(SPEC, threads=1)
    yield RandomExpert(device, "one-head", (DType.F32,), seed=4, align_bytes=16)
    device.close()


def run_queued(expert, step, stop=0):
    """All launches of STEPS steps; the tokens kept by each step done, and whether a row ended."""
    bound = bound_rows(expert, step)
    kept = bound.keep(STEPS)
    kept[:] = -7
    rows, state = torch.from_numpy(bound.rows.copy()), torch.tensor([0, 0, stop], dtype=torch.int32)
    feed, stops = torch.from_numpy(bound.feed), torch.from_numpy(stops_of(bound.rows))
    sizes = step.sizes
    bucket = Bucket(sizes.T, sizes.B, sizes.R, 24 * expert.Z)
    scratch = torch.zeros(gpu.scratch_bytes(bound.rows, bucket, WIDE), dtype=torch.uint8)
    with np.errstate(all="ignore"):
        for _ in range(STEPS):
            for index in range(len(bound.rows)):
                gpu.launch(bound.rows, rows, index, bucket, scratch, WIDE)
            feed_launch(feed, state, rows, stops)()
    done, ended, _ = state.tolist()
    assert (kept[done:] == -7).all()
    return kept[:done].tolist(), bool(ended), bound


def test_a_run_without_an_end_does_all_its_steps(expert):
    step = step_of(([1], 0), ([11], 0))
    tokens, ended, bound = run_queued(expert, step)
    assert tokens == expert.run(step, steps=STEPS).tolist()
    assert not ended
    assert bound.inputs["positions"].tolist() == [STEPS - 1] * 2


def test_a_run_ends_after_the_step_in_which_a_row_drew_one_of_its_ends(expert):
    free = expert.run(step_of(([1], 0), ([11], 0)), steps=STEPS).tolist()
    end = free[1][1]
    assert all(end not in (a, b) for (a, b) in free[:1])
    step = step_of(([1], 0), ([11], 0), end_ids=((), (66, end)))
    tokens, ended, _ = run_queued(expert, step)
    assert ended
    assert tokens == free[:2] == expert.run(step, steps=STEPS).tolist()


def test_a_step_that_draws_nothing_is_counted_and_keeps_nothing(expert):
    tokens, ended, bound = run_queued(expert.without_head(), step_of(([1], 0), ([11], 0)))
    assert (tokens, ended) == ([[]] * STEPS, False)
    assert bound.inputs["tokens"].tolist() == [1, 11]


def test_a_run_that_the_host_stops_ends_after_the_step_that_it_is_in(expert):
    step = step_of(([1], 0), ([11], 0))
    tokens, ended, _ = run_queued(expert, step, stop=1)
    assert ended
    assert tokens == expert.run(step).tolist()


def test_a_run_ends_when_logits_are_not_numbers(expert):
    first = expert.offsets[0]
    expert.device.memory(expert.extent)[first : first + 4 * 33 * 67] = 0xFF
    step = step_of(([1], 0), ([11], 0))
    assert run_queued(expert, step)[:2] == ([[-1, -1]], True)
    with pytest.raises(DeviceError, match="not numbers"):
        expert.run(step, steps=STEPS)
