"""Models with latent attention on the CUDA device, on a GPU that is none: by the CPU's kernels and by Triton's.

Knows nothing about kernels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.begun_early import begun_early
from tests.device.in_turns import in_turns
from tests.device.interpreted import WIDE
from tests.device.lazy_gpu import LazyDriver
from tests.model import tiny
from tests.model.runner import BACKENDS, Stepper, on_cuda
from tests.model.theirs import relative_error, typical_error
from tests.model.ways import FP32_TOLERANCE, SHORT, check_cpus_bits

from coterie.core.dtypes import DType
from coterie.devices.cuda.kernels import TritonKernels
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

LONG_ROWS = [pytest.param(row, marks=pytest.mark.long) for row in tiny.LATENT_ROWS]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """A backend by Triton's kernels."""
    monkeypatch.setitem(BACKENDS, "triton", lambda model, *a, **o: on_cuda(model, *a, kernels=TritonKernels(WIDE), **o))


@pytest.mark.parametrize("orchestration", ["host", "device", "persistent"])
@pytest.mark.parametrize("row", ["deepseek-v2", pytest.param("deepseek-v3", marks=pytest.mark.long)])
def test_every_orchestration_gives_the_cpus_bits(row, orchestration, folder_of, make_backend):
    """A prompt, steps that are captured or walked, and the same from another place."""
    model = open_model(folder_of(row))
    check_cpus_bits(make_backend("cpu", model), make_backend("cuda", model, orchestration=orchestration))


def check(row, dtype, bound, folder_of, theirs_of, make_backend):
    """Logits of a prompt at once, in pieces beside another, and token by token, beside those of transformers."""
    theirs = theirs_of(row, "default", dtype)
    stepper = Stepper(make_backend("triton", open_model(folder_of(row, "default", dtype))))
    prompt, one, two = theirs.prompt[:9], stepper.sequence(), stepper.sequence()
    both = stepper.feed((two, prompt[:3]), (stepper.sequence(), prompt))
    found = [both[3:], np.concatenate([both[:3], stepper.feed((two, prompt[3:]))])]
    found.append(np.concatenate([stepper.feed((one, [t])) for t in prompt[:3]]))
    error = relative_error if dtype == "fp32" else typical_error  # rounding may turn a choice of a branch over
    for logits in found:
        assert error(logits, theirs.truth[: len(logits)]) <= bound


def test_a_step_by_tritons_kernels(folder_of, make_backend):
    """Two prompts beside each other, and then a token of each.

    Launches begin while those before them run, and load nothing that these store.
    """
    model = open_model(folder_of("deepseek-v2"))
    found = []
    with begun_early() as launches:
        for kind in ("cpu", "triton"):
            stepper = Stepper(make_backend(kind, model))
            one, two = stepper.sequence(), stepper.sequence()
            found.append([stepper.feed((one, [5, 6, 3]), (two, [7, 8])), stepper.feed((two, [3]), (one, [4]))])
    assert launches.faults == []
    own = {"_append_row", "_absorb", "_absorb_many", "_unfold", "_unfold_many", "_alone", "_together"}
    assert own <= set(launches.early)
    for wanted, logits in zip(*found, strict=True):
        assert relative_error(logits, wanted) <= FP32_TOLERANCE


@pytest.mark.parametrize("row", ["deepseek-v3", *LONG_ROWS])
def test_float32_by_tritons_kernels(row, folder_of, theirs_of, make_backend):
    check(row, "fp32", FP32_TOLERANCE, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("row", ["youtu", *LONG_ROWS])
def test_rounded_types_by_tritons_kernels(row, dtype, folder_of, theirs_of, make_backend):
    own = theirs_of(row, "default", dtype).own_typical_error
    check(row, dtype, 2 * own, folder_of, theirs_of, make_backend)


@pytest.mark.parametrize("row", ["minicpm3", *LONG_ROWS])
def test_unfused_by_tritons_kernels(row, folder_of, make_backend):
    """As many ops of a layer as there are, each by itself; tokens as the CPU's."""
    model = open_model(folder_of(row))
    wanted = Stepper(make_backend("cpu", model)).greedy(SHORT, 4)
    assert Stepper(make_backend("triton", model, "none")).greedy(SHORT, 4) == wanted


@pytest.mark.parametrize("dtype", [DType.Q4, *(pytest.param(t, marks=pytest.mark.long) for t in (DType.Q8, DType.Q4Z))])
def test_packed_weights_by_tritons_kernels(dtype, folder_of, make_backend, tmp_path):
    """All but what is read head by head. Of few tokens, which are not rounded here; on the CPU to 16 bits."""
    quantize_folder(folder_of("deepseek-v3", dtype="bf16"), tmp_path / "packed", Packing(dtype, dtype))
    model = open_model(tmp_path / "packed")
    (mine, its), prompt = (Stepper(make_backend(kind, model)) for kind in ("triton", "cpu")), SHORT[:3]
    found, wanted = (s.feed((s.sequence(), prompt)) for s in (mine, its))
    assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize("row", ["deepseek-v2", *LONG_ROWS])
def test_captured_steps_give_the_cpus_tokens(row, folder_of, make_backend):
    """And those of another expert in turn, which captures nothing."""
    driver, model = LazyDriver(settle_s=1e-3), open_model(folder_of(row))
    wanted = Stepper(make_backend("cpu", model)).greedy(SHORT, 6, 3)
    backend = make_backend("triton", model, driver=driver)
    assert Stepper(backend).greedy(SHORT, 6, 3) == wanted
    captured = driver.captured
    backend.move_weights()
    assert Stepper(backend).greedy(SHORT, 6, 3) == wanted
    assert driver.captured <= captured + 1  # the prompt's bucket, met for the second time
    assert backend.device.remarks == ()


@pytest.mark.long
@pytest.mark.parametrize("row", tiny.LATENT_ROWS)
def test_a_run_in_one_launch_gives_the_cpus_tokens(row, folder_of, make_backend):
    driver, model = LazyDriver(settle_s=1e-3), open_model(folder_of(row))
    driver.facts = replace(driver.facts, multiprocessors=3)
    wanted = Stepper(make_backend("cpu", model)).greedy(SHORT, 5, 4)
    with in_turns() as turns:
        backend = make_backend("triton", model, orchestration="persistent", driver=driver)
        assert Stepper(backend).greedy(SHORT, 5, 4) == wanted
        assert turns.atomics > 0
        assert backend.device.remarks == ()
