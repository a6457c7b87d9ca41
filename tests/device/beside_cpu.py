"""Stored values and tokens of a tiny model on a GPU beside the CPU's: what files of tests that want a process share."""

from __future__ import annotations

import numpy as np
import pytest
from tests.device.devices import gpu
from tests.device.expert import Expert
from tests.device.programs import rows

from coterie.core.dtypes import DType
from coterie.device import Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.models.model import open_model
from coterie.spec.load import load_machine

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)
PROMPT = [(7 * i + 3) % 50 for i in range(90)]
BOUND = {DType.F32: 1e-4, DType.BF16: 3e-3}  # of the largest value: products in float32, keys and values in bfloat16


def pair_of(write):
    """A fixture: a function (dtype, rules) -> an expert that `write` writes on the GPU, and the same on the CPU."""

    @pytest.fixture
    def pair(tmp_path):
        devices = []

        def make(dtype, rules):
            model = open_model(write(tmp_path / "one", 3, dtype))
            devices.extend([gpu(), CpuDevice(load_machine("toy"), threads=1)])
            found = Expert(devices[-2], model, rules, "pool"), Expert(devices[-1], model, rules)
            for expert in found:
                expert.kv = expert.device.reserve(expert.device.spec.weight_tiers[0], 128 * 4096)
            return found

        yield make
        for device in devices:
            device.close()

    return pair


def check(pair, step, bound):
    got, expected = (expert.inspect(step) for expert in pair)
    for found in (got, expected):
        found.pop("next_tokens")
    assert set(got) == set(expected)
    for name, values in expected.items():
        assert np.abs(got[name] - values).max() <= bound * np.abs(values).max(), name


def check_few_tokens(pair, dtype):
    """One token, the one behind it, which meets what that left, and three sequences."""
    both = pair(dtype, "none")
    for parts in ([([3], 0)], [([4], 1)], [([14], 0), ([15], 0), ([9], 0)]):
        check(both, rows(parts, blocks_per_sequence=24), BOUND[dtype])


def check_a_prompt_in_pieces(pair):
    """Alone, and beside another sequence."""
    both = pair(DType.F32, "none")
    check(both, rows([(PROMPT[:37], 0)], blocks_per_sequence=24), BOUND[DType.F32])
    check(both, rows([(PROMPT[37:], 37)], blocks_per_sequence=24), BOUND[DType.F32])
    check(both, rows([(PROMPT[:2], 0), (PROMPT[:7], 0)], blocks_per_sequence=24), BOUND[DType.F32])


def check_captured_steps(pair):
    """Launch by launch, as its weights come; then captured, and replayed."""
    ours, theirs = pair(DType.BF16, "cache")
    answer = rows([([5], 0), ([8], 0)], [Sampling(), WARM], blocks_per_sequence=24)
    wanted = theirs.tokens(answer, steps=6)
    assert [ours.tokens(answer, steps=6) for _ in range(3)] == [wanted] * 3
