"""What to run on a GPU before latent attention is trusted there: stored values and tokens beside the CPU's.

    COTERIE_TEST_GPU=1 TRITON_INTERPRET=0 python -m pytest tests/device/test_gpu_latent.py

In a file of its own: a kernel that faults takes the GPU from all tests that follow in its process. Without that
variable the same tests run here on a GPU that is none, so that they are known to work.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.devices import gpu
from tests.device.expert import Expert
from tests.device.programs import rows
from tests.system.tiny import write_latent

from coterie.core.dtypes import DType
from coterie.device import Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.models.model import open_model
from coterie.spec.load import load_machine

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)
PROMPT = [(7 * i + 3) % 50 for i in range(90)]
BOUND = {DType.F32: 1e-4, DType.BF16: 3e-3}  # of the largest value: products in float32, keys and values in bfloat16


@pytest.fixture
def pair(tmp_path):
    """A function (dtype, rules) -> an expert on the GPU and the same on the CPU."""
    devices = []

    def make(dtype, rules):
        model = open_model(write_latent(tmp_path / "one", 3, dtype))
        devices.extend([gpu(), CpuDevice(load_machine("toy"), threads=1)])
        found = Expert(devices[-2], model, rules, "pool"), Expert(devices[-1], model, rules)
        for expert in found:
            expert.kv = expert.device.reserve(expert.device.spec.weight_tiers[0], 128 * 4096)
        return found

    yield make
    for device in devices:
        device.close()


def check(pair, step, bound):
    got, expected = (expert.inspect(step) for expert in pair)
    for found in (got, expected):
        found.pop("next_tokens")
    assert set(got) == set(expected)
    for name, values in expected.items():
        assert np.abs(got[name] - values).max() <= bound * np.abs(values).max(), name


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_values_of_few_tokens_are_the_cpus(pair, dtype):
    """One token, the one behind it, which meets its row, and three sequences."""
    both = pair(dtype, "none")
    for parts in ([([3], 0)], [([4], 1)], [([14], 0), ([15], 0), ([9], 0)]):
        check(both, rows(parts, blocks_per_sequence=24), BOUND[dtype])


def test_values_of_a_prompt_in_pieces_are_the_cpus(pair):
    """Alone, and beside another sequence."""
    both = pair(DType.F32, "none")
    check(both, rows([(PROMPT[:37], 0)], blocks_per_sequence=24), BOUND[DType.F32])
    check(both, rows([(PROMPT[37:], 37)], blocks_per_sequence=24), BOUND[DType.F32])
    check(both, rows([(PROMPT[:2], 0), (PROMPT[:7], 0)], blocks_per_sequence=24), BOUND[DType.F32])


def test_an_answer_in_captured_steps_is_the_cpus(pair):
    """Launch by launch, as its weights come; then captured, and replayed."""
    ours, theirs = pair(DType.BF16, "cache")
    answer = rows([([5], 0), ([8], 0)], [Sampling(), WARM], blocks_per_sequence=24)
    wanted = theirs.tokens(answer, steps=6)
    assert [ours.tokens(answer, steps=6) for _ in range(3)] == [wanted] * 3
