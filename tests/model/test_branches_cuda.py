"""Models with branches on the CUDA device, on a GPU that is none: by the CPU's kernels to the bit, and by Triton's.

Tables of the branches' matrices are the device's; what they hold is the same for all kernels.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.model import tiny
from tests.model.by_triton import check_in_one_launch, check_packed, interpreted
from tests.model.runner import Stepper
from tests.model.test_gpt_oss import folder_like, released
from tests.model.theirs import relative_error, typical_error
from tests.model.ways import FP32_TOLERANCE, SHORT, check_cpus_bits, check_float32

from coterie.core.dtypes import DType
from coterie.models.model import open_model
from coterie.models.repack import repack_folder

__all__ = ["folder_like", "interpreted", "released"]  # fixtures

ROWS = ("qwen3-moe", "mixtral-all", "olmoe", "granitemoe", "qwen2-moe", "glm4-moe", "gpt-oss")


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS)
def test_float32_by_the_cpus_kernels(row, folder_of, theirs_of, make_backend):
    check_float32("cuda", row, "default", folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("orchestration", ["host", "device", "persistent"])
@pytest.mark.parametrize("row", ["qwen3-moe", "gpt-oss"])
def test_every_orchestration_gives_the_cpus_bits(row, orchestration, folder_of, make_backend):
    """A prompt, steps that are captured or walked, and the same from another place: tables follow the weights."""
    model = open_model(tiny.expert(folder_of(row)))
    check_cpus_bits(make_backend("cpu", model), make_backend("cuda", model, orchestration=orchestration))


@pytest.mark.parametrize("row", ["mixtral", "gpt-oss"])
def test_stages_run_as_their_weights_arrive(row, folder_of, make_backend):
    backend = make_backend("cuda", open_model(tiny.expert(folder_of(row))))
    stepper = Stepper(backend)
    rows = stepper.rows((stepper.sequence(), SHORT))
    wanted = backend.tokens(rows)
    np.testing.assert_array_equal(backend.tokens_behind_gates(rows), wanted)


def test_stacked_matrices_are_placed_where_a_gpu_reads_them(folder_of, make_backend, tmp_path):
    """Matrices within a tensor begin at odd bytes of it."""
    folder = tiny.save(tiny.make("qwen3-moe"), tmp_path, "bf16", save_original_format=False)
    stacked, apart = open_model(folder), open_model(folder_of("qwen3-moe", "default", "bf16"))
    one, other = (make_backend(kind, model) for kind, model in (("cuda", stacked), ("cpu", apart)))
    assert Stepper(one).greedy(SHORT, 5) == Stepper(other).greedy(SHORT, 5)


def check(row, dtype, bound, folder_of, theirs_of, make_backend):
    """Logits of a short prompt, in one step and then token by token, beside those of transformers in float32."""
    theirs = theirs_of(row, "default", dtype)
    stepper = Stepper(make_backend("triton", open_model(tiny.expert(folder_of(row, "default", dtype)))))
    prompt, one = theirs.prompt[:7], stepper.sequence()
    found = [stepper.feed((stepper.sequence(), prompt)), np.concatenate([stepper.feed((one, [t])) for t in prompt[:3]])]
    for logits in found:
        assert error_of(dtype)(logits, theirs.truth[: len(logits)]) <= bound


def error_of(dtype):
    """Rounding may turn a choice of a branch over, so of rounded types the token in the middle counts."""
    return relative_error if dtype == "fp32" else typical_error


@pytest.mark.long
@pytest.mark.parametrize("row", tiny.BRANCH_ROWS)
def test_float32_by_tritons_kernels(row, folder_of, theirs_of, make_backend):
    check(row, "fp32", FP32_TOLERANCE, folder_of, theirs_of, make_backend)


@pytest.mark.long
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("row", ROWS)
def test_rounded_types_by_tritons_kernels(row, dtype, folder_of, theirs_of, make_backend):
    own = theirs_of(row, "default", dtype).own_typical_error
    check(row, dtype, 2 * own, folder_of, theirs_of, make_backend)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [DType.Q8, DType.Q4, DType.Q4Z, DType.Q2, DType.MX4])
@pytest.mark.parametrize("row", ROWS)
def test_packed_weights_by_tritons_kernels(row, dtype, folder_of, make_backend, tmp_path):
    check_packed(tiny.expert(folder_of(row, "default", "bf16")), dtype, make_backend, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("orchestration", ["host", "device"])
def test_the_released_form_of_gpt_oss_gives_the_cpus_tokens(orchestration, released, make_backend, tmp_path):
    """Branches in MXFP4, all else in bfloat16: a prompt of few tokens, and an answer."""
    model = open_model(repack_folder(released[0], tmp_path / "expert").folder)
    on_gpu = Stepper(make_backend("triton", model, orchestration=orchestration))
    assert on_gpu.greedy(SHORT[:3], 6) == Stepper(make_backend("cpu", model)).greedy(SHORT[:3], 6)


@pytest.mark.long
@pytest.mark.parametrize("row", ["qwen3-moe", "granitemoe", "qwen2-moe", "glm4-moe", "gpt-oss"])
def test_a_run_in_one_launch_gives_the_cpus_tokens(row, folder_of, make_backend):
    check_in_one_launch(open_model(tiny.expert(folder_of(row))), make_backend)
