"""What each region really stores: a pattern lies everywhere, and just the bytes that were planned change.

Knows nothing about values. Two patterns, because a stored byte may equal one of them but not both.
"""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.random_expert import SPEC, RandomExpert, step_of

from coterie.core.dtypes import DType
from coterie.devices.cpu.bound import Bound, Workspace
from coterie.devices.cpu.device import CpuDevice
from coterie.devices.real.step import StepRows
from coterie.kernels import cpu as kernels

PATTERNS = (0xA5, 0x5A)
SHAPES = ("odd", "mqa", "biases", "qk-norm", "window", "wide")


@pytest.fixture
def device():
    made = CpuDevice(SPEC, threads=2)
    yield made
    made.close()


def changes(expert, step, team, pattern):
    """By region: which bytes of workspace and KV changed, and how many the kernels say that they stored."""
    binding = expert.binding(step)
    weights, kv = expert.device.memory(binding.weights), expert.device.memory(binding.kv)
    rows, bases = StepRows.copy(expert.program, binding, 1), (kernels.address(weights), 0, kernels.address(kv), ())
    bound, space = Bound(expert.exe, rows.sizes), Workspace()
    bound.put(binding, rows, bases, space)
    workspace = space.at_least(0).bytes
    workspace[:] = kv[:] = pattern
    fixed = [weights, *bound.inputs.values(), bound.settings]
    untouched = [array.copy() for array in fixed]
    for i, region in enumerate(expert.program.regions):
        before = workspace.copy(), kv.copy()
        team.reset_counters()
        assert team.run(bound.rows[i : i + 1]) == 1
        yield region, workspace != before[0], kv != before[1], team.counters().stored_bytes
    for array, copy in zip(fixed, untouched, strict=True):
        np.testing.assert_array_equal(array, copy)


def planned(expert, region, step, workspace_bytes):
    """The bytes of the workspace that hold the region's outputs."""
    mask, offsets = np.zeros(workspace_bytes, dtype=bool), expert.exe.plan(step.sizes)[0]
    for name in region.outputs:
        if name in offsets:
            value = expert.program.graph.values[name]
            mask[offsets[name] : offsets[name] + step.sizes.count(value.shape) * value.dtype.size_bytes] = True
    return mask


def entries(expert, region, step):
    """The bytes of the KV slab that hold this step's keys and values in the layers that the region appends to."""
    kv, mask = expert.program.kv, np.zeros((expert.num_blocks, expert.block_bytes), dtype=bool)
    shape = (expert.num_blocks, *expert.graph.values["kv"].shape[:3], expert.Z, expert.graph.values["kv"].shape[3])
    pages = np.zeros((*shape, kv.dtype.size_bytes), dtype=bool)
    for op in region.ops:
        for position, sequence in zip(step.positions_T, step.sequence_T, strict=True):
            if op.kind == "kv_append":
                block = step.block_tables_BM[sequence, position // expert.Z]
                pages[block, op.integer("layer"), :, :, position % expert.Z] = True
    mask[:, : expert.Z * kv.bytes_per_token] = pages.reshape(expert.num_blocks, -1)
    return mask.reshape(-1)


@pytest.mark.parametrize("rule_set", ["none", "cache"])
@pytest.mark.parametrize("isa", kernels.ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_region_stores_its_outputs_and_nothing_else(device, shape, isa, rule_set):
    expert = RandomExpert(device, shape, (DType.BF16, DType.F32, DType.F16), rule_set)
    step = step_of((expert.prompt(19), 0), (expert.prompt(1, 2), 0), (expert.prompt(23, 3), 0))
    team = kernels.Team(2, isa)
    runs = [list(changes(expert, step, team, pattern)) for pattern in PATTERNS]
    for (region, stored, appended, counted), (_, stored_too, appended_too, _) in zip(*runs, strict=True):
        np.testing.assert_array_equal(stored | stored_too, planned(expert, region, step, len(stored)), region.name)
        np.testing.assert_array_equal(appended | appended_too, entries(expert, region, step), region.name)
        assert counted == np.count_nonzero(stored | stored_too) + np.count_nonzero(appended | appended_too), region.name
