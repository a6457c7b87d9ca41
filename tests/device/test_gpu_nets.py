"""What to run on a GPU before gated delta nets are trusted there: stored values and tokens beside the CPU's.

    COTERIE_TEST_GPU=1 TRITON_INTERPRET=0 python -m pytest tests/device/test_gpu_nets.py

In a file of its own: a kernel that faults takes the GPU from all tests that follow in its process. Without that
variable the same tests run here on a GPU that is none, so that they are known to work.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.beside_cpu import check_a_prompt_in_pieces, check_captured_steps, check_few_tokens, pair_of
from tests.system.tiny import write_delta_net

from coterie.core.dtypes import DType

pair = pair_of(write_delta_net)


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16])
def test_values_of_few_tokens_are_the_cpus(pair, dtype):
    check_few_tokens(pair, dtype)


def test_values_of_a_prompt_in_pieces_are_the_cpus(pair):
    check_a_prompt_in_pieces(pair)


def test_an_answer_in_captured_steps_is_the_cpus(pair):
    check_captured_steps(pair)
