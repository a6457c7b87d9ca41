"""What to run on a GPU before layers with branches are trusted there: stored values and tokens beside the CPU's.

    COTERIE_TEST_GPU=1 TRITON_INTERPRET=0 python -m pytest tests/device/test_gpu_branches.py

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
from tests.system.tiny import write_clipped, write_mixture

from coterie.core.dtypes import DType
from coterie.device import Sampling
from coterie.devices.cpu.device import CpuDevice
from coterie.models.model import open_model
from coterie.spec.load import load_machine

WARM = Sampling(temperature=0.9, top_k=20, top_p=0.95, seed=7)
SHAPE = {"hidden_size": 64, "num_key_value_heads": 1, "intermediate_size": 48, "num_local_experts": 7}
FAMILIES = {"plain": write_mixture, "clipped": write_clipped}  # and that with sinks, and with biases of branches
PROMPT = [(7 * i + 3) % 50 for i in range(100)]
# Of the largest value: products in float32, keys and values in bfloat16; and, of the token in the middle, products in
# bfloat16 of more than four tokens, where rounding may turn over which branch a token takes.
BOUND, TYPICAL = {DType.F32: 1e-4, DType.BF16: 3e-3}, 0.03


@pytest.fixture(params=FAMILIES)
def pair(request, tmp_path):
    """A function (dtype, rules) -> an expert on the GPU and the same on the CPU."""
    devices = []

    def make(dtype, rules):
        model = open_model(FAMILIES[request.param](tmp_path / "one", 3, dtype, **SHAPE))
        devices.extend([gpu(), CpuDevice(load_machine("toy"), threads=1)])
        return Expert(devices[-2], model, rules, "pool"), Expert(devices[-1], model, rules)

    yield make
    for device in devices:
        device.close()


def errors(pair, step):
    """Of each stored value, that of each token over the largest value; values of one token in the last."""
    got, expected = (expert.inspect(step) for expert in pair)
    for found in (got, expected):
        found.pop("next_tokens")
    assert set(got) == set(expected)
    for name, values in expected.items():
        apart = np.abs(got[name] - values).reshape(len(values), -1).max(axis=1)
        yield name, apart / np.abs(values).max()


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_values_of_few_tokens_are_the_cpus(pair, dtype):
    """One token, and three whose branches differ: nothing is rounded."""
    both = pair(dtype, "none")
    for step in (rows([([3], 0)]), rows([([14], 0), ([15], 0), ([9], 0)], blocks_per_sequence=2)):
        for name, error in errors(both, step):
            assert error.max() <= BOUND[dtype], name


@pytest.mark.parametrize("count", [7, 100])
def test_values_of_a_prompt_are_the_cpus(pair, count):
    """Pairs listed by branch, tiles that are not full, branches that many tokens take."""
    for name, error in errors(pair(DType.F32, "none"), rows([(PROMPT[:count], 0)], blocks_per_sequence=8)):
        assert error.max() <= BOUND[DType.F32], name


def test_values_of_a_prompt_in_bfloat16_are_near_the_cpus(pair):
    for name, error in errors(pair(DType.BF16, "none"), rows([(PROMPT, 0)], blocks_per_sequence=8)):
        assert np.median(error) <= TYPICAL, name


def test_an_answer_in_captured_steps_is_the_cpus(pair):
    """Launch by launch, as its weights come; then captured, and replayed."""
    ours, theirs = pair(DType.BF16, "cache")
    answer = rows([([5], 0), ([8], 0)], [Sampling(), WARM])
    wanted = theirs.tokens(answer, steps=6)
    assert [ours.tokens(answer, steps=6) for _ in range(3)] == [wanted] * 3
