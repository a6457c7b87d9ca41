"""Models with a state or latent numbers on the CUDA device, a GPU that is none: by the CPU's and by Triton's kernels.

What a sequence keeps is in blocks of the device's, in a layout that only its kernels know. Knows nothing about kernels.
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

STATE_ROWS = (*tiny.SCAN_ROWS, *tiny.SCAN_MOE, *tiny.DELTA_ROWS, *tiny.DELTA_MOE)
ROWS = (*STATE_ROWS, *tiny.LATENT_ROWS)
BRANCHING = (*tiny.SCAN_MOE, *tiny.DELTA_MOE, *tiny.LATENT_ROWS)  # rounding may turn a choice of a branch over
ROUNDED = ("granite4-h", "granite4-h-moe", "falcon-h1", "nemotron-h", *tiny.DELTA_ROWS, *tiny.DELTA_MOE)


def long_but(quick, of=ROWS):
    """Rows, of which those that are not `quick` are in long tests alone."""
    return [row if row in quick else pytest.param(row, marks=pytest.mark.long) for row in of]


@pytest.mark.parametrize("orchestration", ["host", "device", "persistent"])
@pytest.mark.parametrize(
    "row",
    long_but(
        ("granite4-h", "qwen3.5", "deepseek-v2"),
        ("granite4-h", "mamba2", "qwen3.5", "qwen3.5-moe", "deepseek-v2", "deepseek-v3"),
    ),
)
def test_every_orchestration_gives_the_cpus_bits(row, orchestration, folder_of, make_backend):
    """A prompt, steps that are captured or walked, and the same from another place, in blocks that were others'."""
    model = open_model(folder_of(row))
    check_cpus_bits(make_backend("cpu", model), make_backend("cuda", model, orchestration=orchestration))


STATE = {"_norm", "few", "_conv"}


@pytest.mark.parametrize(
    ("row", "prompts", "kernels"),
    [
        ("granite4-h-groups", ([5, 6], [7]), STATE | {"_scan", "_norm_group"}),
        ("qwen3.5-first", ([5, 6], [7]), STATE | {"_delta_whole", "_delta_columns", "_gate", "_sigmoid"}),
        (
            "deepseek-v2",
            ([5, 6, 3], [7, 8]),
            {"_append_row", "_absorb", "_absorb_many", "_unfold", "_unfold_many", "_lone_tokens", "_chunk"},
        ),
    ],
)
def test_a_step_by_tritons_kernels(row, prompts, kernels, folder_of, make_backend):
    """Two prompts beside each other, and then a token of each; long tests have all rows beside transformers.

    Launches begin while those before them run, and load nothing that these store.
    """
    model = open_model(folder_of(row))
    found = []
    with begun_early() as launches:
        for kind in ("cpu", "triton"):
            stepper = Stepper(make_backend(kind, model))
            one, two = stepper.sequence(), stepper.sequence()
            both = stepper.feed((one, prompts[0]), (two, prompts[1]))
            found.append([both, stepper.feed((two, [3]), (one, [4]))])
    assert launches.faults == []
    assert kernels <= set(launches.early)
    for wanted, logits in zip(*found, strict=True):
        assert relative_error(logits, wanted) <= FP32_TOLERANCE


def check(row, dtype, error, bound, folder_of, theirs_of, make_backend):
    model, theirs = open_model(folder_of(row, "default", dtype)), theirs_of(row, "default", dtype)
    check_logits(model, theirs, 9 if row in tiny.LATENT_ROWS else 7, error, bound, make_backend)


@pytest.mark.parametrize("row", long_but(("deepseek-v3",)))
def test_float32_by_tritons_kernels(row, folder_of, theirs_of, make_backend):
    check(row, "fp32", relative_error, FP32_TOLERANCE, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.long)])
@pytest.mark.parametrize("row", long_but(("youtu",), (*ROUNDED, *tiny.LATENT_ROWS)))
def test_rounded_types_by_tritons_kernels(row, dtype, folder_of, theirs_of, make_backend):
    theirs = theirs_of(row, "default", dtype)
    error, own = (typical_error, theirs.own_typical_error) if row in BRANCHING else (relative_error, theirs.own_error)
    check(row, dtype, error, 2 * own, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("row", long_but(("minicpm3",)))
def test_unfused_by_tritons_kernels(row, folder_of, make_backend):
    check_unfused(open_model(folder_of(row)), make_backend)


@pytest.mark.parametrize(
    ("row", "dtype"),
    [
        ("deepseek-v3", DType.Q4),
        *(
            pytest.param(row, dtype, marks=pytest.mark.long)
            for row, dtypes in {
                "granite4-h": (DType.Q8, DType.Q4),
                "qwen3.5": (DType.Q8, DType.Q4, DType.Q4Z),
                "deepseek-v3": (DType.Q8, DType.Q4Z),
            }.items()
            for dtype in dtypes
        ),
    ],
)
def test_packed_weights_by_tritons_kernels(row, dtype, folder_of, make_backend, tmp_path):
    """All but what is read head by head."""
    check_packed(folder_of(row, dtype="bf16"), dtype, make_backend, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_captured_steps_give_the_cpus_tokens(row, folder_of, make_backend):
    check_captured(open_model(folder_of(row)), make_backend)


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_a_run_in_one_launch_gives_the_cpus_tokens(row, folder_of, make_backend):
    check_in_one_launch(open_model(folder_of(row)), make_backend)
