"""A base with a fine-tune's packed difference beside it on the CUDA device, a GPU that is none, by Triton's kernels.

Weights lie in two arenas; what they are worth is test_difference.py's. Knows nothing about a GPU's time.
"""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra cuda is not installed: torch is missing")

from tests.device.interpreted import WIDE
from tests.device.test_triton_programs import MANY, rounding_linear
from tests.model import differences
from tests.model.runner import BACKENDS, Stepper, in_turns
from tests.model.runner import on_cuda as device_of
from tests.model.test_difference import made
from tests.model.theirs import most_lost, prompt_of, relative_error

from coterie.core.dtypes import DType, from_f32, to_f32
from coterie.devices.cuda.kernels import TritonKernels
from coterie.graph import delta as graph_delta
from coterie.graph.reference import OPS
from coterie.models.fine_tunes.delta import open_delta
from coterie.models.fine_tunes.delta_write import write_delta
from coterie.models.model import open_model
from coterie.models.packing import Packing
from coterie.models.quantize import quantize_folder

Q2, Q4, Q4Z, Q8, MX4 = DType.Q2, DType.Q4, DType.Q4Z, DType.Q8, DType.MX4
# Of the largest logit: a CPU's activations are whole numbers of 16 bits where they meet packed weights. Of a GPU's that
# are rounded to bfloat16 one near the middle of two may go to the other, and be 2^-8 apart in each of three layers.
ONE_ROUNDED, MANY_ROUNDED = 2e-3, 0.03


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """A backend by Triton's kernels."""
    kernels = TritonKernels(WIDE)
    monkeypatch.setattr(graph_delta, "_FEW_BITS", 0)  # else a CPU rounds to 8 bits what a GPU leaves as it is
    monkeypatch.setitem(BACKENDS, "triton", lambda model, *a, **o: device_of(model, *a, kernels=kernels, **o))


def beside(row, folder_of, tmp_path, layers, base_type=None, tables=Q8):
    """A delta of this type beside a base, which may be packed."""
    base = folder_of(row)
    tuned = differences.tune(base, tmp_path / "tuned")
    if base_type:
        quantize_folder(base, tmp_path / "packed", Packing(base_type, base_type))
        base = tmp_path / "packed"
    write_delta(base, tuned, tmp_path / "delta", Packing(layers, tables))
    return open_delta(open_model(base), tmp_path / "delta")


def rounding_both(step, op, operands):
    """The reference's product of many tokens as a GPU has it: packed weights are rounded to bfloat16 as well."""
    x_TK, weight_NK, *rest = operands
    if x_TK.shape[0] > MANY and step.graph.values[op.inputs[1]].dtype.is_packed:
        weight_NK = to_f32(from_f32(np.asarray(weight_NK), DType.BF16), DType.BF16)
    return rounding_linear(step, op, [x_TK, weight_NK, *rest])


def logits(stepper, tokens):
    return stepper.feed((stepper.sequence(), tokens))


@pytest.mark.long
@pytest.mark.parametrize(
    ("row", "layers", "base_type", "tables"),
    [
        ("llama-tied", Q2, Q4, Q2),
        ("llama", Q4Z, None, Q8),
        ("qwen3", MX4, MX4, MX4),
        ("gemma2", Q2, Q8, Q4Z),
        ("phi3-partial", Q2, None, Q2),
        ("mixtral", Q2, MX4, Q8),
        ("qwen3.5", Q2, Q4, Q8),
    ],
)
def test_tokens_are_the_cpus_and_logits_near_them(
    row, layers, base_type, tables, folder_of, tmp_path, make_backend, monkeypatch
):
    """A prompt of few tokens, then captured steps; and one of many beside the reference that rounds as a GPU does."""
    model = beside(row, folder_of, tmp_path, layers, base_type, tables)
    prompt = prompt_of(model.config.vocab_size)[:7]
    mine, its = (Stepper(make_backend(backend, model)) for backend in ("triton", "cpu"))
    found, wanted = (logits(s, prompt[:3]) for s in (mine, its))
    assert relative_error(found, wanted) <= most_lost(model, ONE_ROUNDED)
    with monkeypatch.context() as patch:
        patch.setitem(OPS, "linear", rounding_both)
        wanted = logits(Stepper(make_backend("reference", model)), prompt)
    assert relative_error(logits(mine, prompt), wanted) <= MANY_ROUNDED
    assert mine.greedy(prompt[:3], 4, 2) == its.greedy(prompt[:3], 4, 2)


@pytest.mark.parametrize("orchestration", ["device", pytest.param("persistent", marks=pytest.mark.long)])
def test_two_deltas_in_turn_are_each_as_alone(orchestration, folder_of, tmp_path, make_backend):
    """A switch rewrites rows, of what is in either arena; the CPU's kernels, so to the bit."""
    base, models = open_model(folder_of("llama")), []
    for seed in (1, 2):
        _, _, folder = made("llama", folder_of, tmp_path / str(seed), Packing(Q2, Q8), seed=seed)
        models.append(open_delta(base, folder))
    prompt = prompt_of(base.config.vocab_size)[:6]
    alone = [Stepper(make_backend("cpu", model)).greedy(prompt, 4) for model in models]
    assert alone[0] != alone[1]
    assert in_turns(make_backend("cuda", models[0], orchestration=orchestration), models, prompt, 4) == alone


@pytest.mark.long
@pytest.mark.parametrize("layers", [Q2, MX4])
def test_one_launch_gives_the_bits_of_captured_steps(layers, folder_of, tmp_path, make_backend):
    model = beside("qwen3", folder_of, tmp_path, layers)
    prompt = prompt_of(model.config.vocab_size)[:2]
    captured, walked = (
        Stepper(make_backend("triton", model, orchestration=how)).greedy(prompt, 4, 2)
        for how in ("device", "persistent")
    )
    np.testing.assert_array_equal(captured, walked)
