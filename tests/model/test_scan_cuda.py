"""Models with selective state spaces on the CUDA device, on a GPU that is none: by the CPU's kernels and by Triton's.

What a sequence keeps is in blocks of the device's, in a layout that only its kernels know.
"""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.begun_early import begun_early
from tests.model import tiny
from tests.model.by_triton import (
    check_captured,
    check_in_one_launch,
    check_logits,
    check_packed,
    check_unfused,
    interpreted,
)
from tests.model.runner import Stepper
from tests.model.theirs import relative_error, typical_error
from tests.model.ways import FP32_TOLERANCE, check_cpus_bits

from coterie.core.dtypes import DType
from coterie.models.model import open_model

__all__ = ["interpreted"]  # a fixture

ROWS = (*tiny.SCAN_ROWS, *tiny.SCAN_MOE)


@pytest.mark.parametrize("orchestration", ["host", "device", "persistent"])
@pytest.mark.parametrize("row", ["granite4-h", pytest.param("mamba2", marks=pytest.mark.long)])
def test_every_orchestration_gives_the_cpus_bits(row, orchestration, folder_of, make_backend):
    """A prompt, steps that are captured or walked, and the same from another place, in blocks that were others'."""
    model = open_model(folder_of(row))
    check_cpus_bits(make_backend("cpu", model), make_backend("cuda", model, orchestration=orchestration))


def check(row, dtype, bound, folder_of, theirs_of, make_backend):
    rounds = dtype != "fp32" and row in tiny.SCAN_MOE  # which may turn a choice of a branch over
    model, theirs = open_model(folder_of(row, "default", dtype)), theirs_of(row, "default", dtype)
    check_logits(model, theirs, 7, typical_error if rounds else relative_error, bound, make_backend)


def test_a_step_by_tritons_kernels(folder_of, make_backend):
    """Two prompts beside each other, and then a token of each; long tests have all rows beside transformers.

    Launches begin while those before them run, and load no state that these store.
    """
    model = open_model(folder_of("granite4-h-groups"))
    found = []
    with begun_early() as launches:
        for kind in ("cpu", "triton"):
            stepper = Stepper(make_backend(kind, model))
            one, two = stepper.sequence(), stepper.sequence()
            found.append([stepper.feed((one, [5, 6]), (two, [7])), stepper.feed((two, [3]), (one, [4]))])
    assert launches.faults == []
    assert {"_norm", "few", "_conv", "_scan", "_norm_group"} <= set(launches.early)
    for wanted, logits in zip(*found, strict=True):
        assert relative_error(logits, wanted) <= FP32_TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_float32_by_tritons_kernels(row, folder_of, theirs_of, make_backend):
    check(row, "fp32", FP32_TOLERANCE, folder_of, theirs_of, make_backend)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("row", ["granite4-h", "granite4-h-moe", "falcon-h1", "nemotron-h"])
def test_rounded_types_by_tritons_kernels(row, dtype, folder_of, theirs_of, make_backend):
    theirs = theirs_of(row, "default", dtype)
    own = theirs.own_typical_error if row in tiny.SCAN_MOE else theirs.own_error
    check(row, dtype, 2 * own, folder_of, theirs_of, make_backend)


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_unfused_by_tritons_kernels(row, folder_of, make_backend):
    check_unfused(open_model(folder_of(row)), make_backend)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [DType.Q8, DType.Q4])
def test_packed_weights_by_tritons_kernels(dtype, folder_of, make_backend, tmp_path):
    check_packed(folder_of("granite4-h", dtype="bf16"), dtype, make_backend, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_captured_steps_give_the_cpus_tokens(row, folder_of, make_backend):
    check_captured(open_model(folder_of(row)), make_backend)


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_a_run_in_one_launch_gives_the_cpus_tokens(row, folder_of, make_backend):
    check_in_one_launch(open_model(folder_of(row)), make_backend)
