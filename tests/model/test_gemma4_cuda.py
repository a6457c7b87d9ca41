"""Gemma 4 on the CUDA device, on a GPU that is none: by the CPU's kernels to the bit, and by Triton's.

Knows nothing about kernels.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.model import tiny
from tests.model.by_triton import interpreted
from tests.model.runner import Stepper
from tests.model.theirs import GREEDY_FROM, relative_error
from tests.model.ways import FP32_TOLERANCE, check_cpus_bits

from coterie.models.model import open_model

__all__ = ["interpreted"]  # a fixture


@pytest.mark.parametrize("orchestration", ["host", "device", "persistent"])
@pytest.mark.parametrize("row", ["gemma4", "gemma4-moe"])
def test_every_orchestration_gives_the_cpus_bits(row, orchestration, folder_of, make_backend):
    model = open_model(folder_of(row))
    check_cpus_bits(make_backend("cpu", model), make_backend("cuda", model, orchestration=orchestration))


@pytest.mark.parametrize(
    ("row", "orchestration"),
    [
        ("gemma4-moe", "persistent"),
        *(pytest.param("gemma4", how, marks=pytest.mark.long) for how in ("host", "persistent")),
        *(pytest.param(row, "host", marks=pytest.mark.long) for row in (*tiny.GEMMA4_ROWS, *tiny.GEMMA4_MOE)[1:]),
    ],
)
def test_float32_by_tritons_kernels(row, orchestration, folder_of, theirs_of, make_backend):
    theirs = theirs_of(row)
    stepper = Stepper(make_backend("triton", open_model(folder_of(row)), orchestration=orchestration))
    sequence = stepper.sequence()
    found = [stepper.feed((sequence, theirs.prompt[:GREEDY_FROM])), stepper.feed((sequence, theirs.prompt[12:13]))]
    assert relative_error(np.concatenate(found), theirs.truth[: GREEDY_FROM + 1]) <= FP32_TOLERANCE
    assert stepper.greedy(theirs.prompt[:GREEDY_FROM], 4) == theirs.greedy[:4]
