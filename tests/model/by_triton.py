"""What holds for every family by Triton's kernels, interpreted, on a GPU that is none.

Needs torch: who imports it skips without. Knows nothing about families or kernels.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.device.in_turns import in_turns
from tests.device.interpreted import WIDE
from tests.device.lazy_gpu import LazyDriver
from tests.model.runner import BACKENDS, Stepper, on_cuda
from tests.model.ways import SHORT

from coterie.devices.cuda.kernels import TritonKernels
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """A backend by Triton's kernels, for the module that has this."""
    monkeypatch.setitem(BACKENDS, "triton", lambda model, *a, **o: on_cuda(model, *a, kernels=TritonKernels(WIDE), **o))


def check_logits(model, theirs, count, error, bound, make_backend):
    """Of a prompt of `count` tokens at once, in pieces beside another, and token by token: beside transformers'."""
    stepper = Stepper(make_backend("triton", model))
    prompt, one, two = theirs.prompt[:count], stepper.sequence(), stepper.sequence()
    both = stepper.feed((two, prompt[:3]), (stepper.sequence(), prompt))
    found = [both[3:], np.concatenate([both[:3], stepper.feed((two, prompt[3:]))])]
    found.append(np.concatenate([stepper.feed((one, [t])) for t in prompt[:3]]))
    for logits in found:
        assert error(logits, theirs.truth[: len(logits)]) <= bound


def check_unfused(model, make_backend):
    """As many ops of a layer as there are, each by itself; tokens as the CPU's."""
    wanted = Stepper(make_backend("cpu", model)).greedy(SHORT, 4)
    assert Stepper(make_backend("triton", model, "none")).greedy(SHORT, 4) == wanted


def check_packed(folder, dtype, make_backend, tmp_path):
    """Of few tokens, which are not rounded here; on the CPU to 16 bits, and a key in bfloat16 may turn over by that."""
    quantize_folder(folder, tmp_path / "packed", Packing(dtype, dtype))
    model = open_model(tmp_path / "packed")
    (mine, its), prompt = (Stepper(make_backend(kind, model)) for kind in ("triton", "cpu")), SHORT[:3]
    found, wanted = (s.feed((s.sequence(), prompt)) for s in (mine, its))
    assert np.abs(found - wanted).max() < 0.01 * np.abs(wanted).max()


def check_captured(model, make_backend):
    """Tokens of captured steps, and of another expert in turn, which captures nothing."""
    driver = LazyDriver(settle_s=1e-3)
    wanted = Stepper(make_backend("cpu", model)).greedy(SHORT, 6, 3)
    backend = make_backend("triton", model, driver=driver)
    assert Stepper(backend).greedy(SHORT, 6, 3) == wanted
    captured = driver.captured
    backend.move_weights()
    assert Stepper(backend).greedy(SHORT, 6, 3) == wanted
    assert driver.captured <= captured + 1  # the prompt's bucket, met for the second time
    assert backend.device.remarks == ()


def check_in_one_launch(model, make_backend):
    """Tokens of a run whose steps are one launch, by three programs in turns."""
    driver = LazyDriver(settle_s=1e-3)
    driver.facts = replace(driver.facts, multiprocessors=3)
    wanted = Stepper(make_backend("cpu", model)).greedy(SHORT, 5, 4)
    with in_turns() as turns:
        backend = make_backend("triton", model, orchestration="persistent", driver=driver)
        assert Stepper(backend).greedy(SHORT, 5, 4) == wanted
        assert turns.atomics > 0
        assert backend.device.remarks == ()
